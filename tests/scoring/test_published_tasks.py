from __future__ import annotations

import pytest

from undrift.errors import DataError, UnknownName
from undrift.scoring import KINDS, PROFILES, TASKS, Scores, find_task, score_all

BOX = "[0.10,0.20,0.50,0.89]"
ANSWER = {
    "letter": "B",
    "choice": "B",
    "class name": "tench",
    "short text": "cat",
    "consensus": "cat",
    "document": "total 7",
    "chart": "12",
    "number": "7",
    "box": BOX,
    "caption": "A cat sits on a mat.",
}
EXTRA = {"subset": "AI2D", "question": "Which?", "choices": ["dog", "cat", "fig"]}
WITHOUT_METRIC = {"Roadside", "ChemVQA", "RS", "Med", "AD", "Sci", "Fin"}


def strict(task, prediction, answer, profile, **extra):
    return score_all(task, prediction, [answer], extra, profile).strict


def test_the_benchmarks_have_their_tasks_in_their_order():
    expected = {
        "coin": "ScienceQA TextVQA ImageNet GQA VizWiz Grounding VQAv2 OCRVQA",
        "ucit": "ImageNet-R ArxivQA VizWiz IconQA CLEVR Flickr30k",
        "trigap": "PMCVQA DocVQA ChartQA IconQA InfographicVQA ArxivQA Roadside ChemVQA "
        "FloodNetVQA CLEVR",
        "mllm_dcl": "RS Med AD Sci Fin",
    }
    listed = [f"{name}/{task}" for name, tasks in expected.items() for task in tasks.split()]
    assert list(TASKS) == listed
    assert {entry.kind for entry in TASKS.values()} == set(KINDS) == set(ANSWER)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("profile", PROFILES)
def test_the_answer_itself_is_right_in_every_profile(task, profile):
    name, kind = task.split("/")[1], TASKS[task].kind
    answers = [ANSWER[kind]] * (10 if name in {"TextVQA", "VizWiz", "VQAv2"} else 1)
    if kind == "caption":
        found = score_all(task, answers[0], answers, EXTRA, profile)
        assert found == Scores(None, None, None, 1.0)
    elif profile.startswith("official") and name in WITHOUT_METRIC:
        with pytest.raises(DataError, match=r"official metric of .* is not known"):
            score_all(task, answers[0], answers, EXTRA, profile)
    else:
        official = None if name in WITHOUT_METRIC else 1.0
        found = score_all(task, answers[0], answers, EXTRA, profile)
        assert found == pytest.approx(Scores(1.0, official, 1.0, 1.0))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prediction", ["", "?!.,;:", "日本語", "wrong " * 400])
def test_nasty_predictions_are_scored_and_never_right(task, prediction):
    answers = [ANSWER[TASKS[task].kind]] * 10
    found = score_all(task, prediction, answers, EXTRA, "prism")
    lucky = task == "coin/ImageNet" and prediction == ""
    assert (found.strict or 0.0) == pytest.approx(float(lucky), abs=0.2)  # 0.2: similar letters
    assert (found.official or 0.0) == 0.0
    assert (found.lenient or 0.0) == pytest.approx(0.0, abs=0.2)


def test_the_profiles_differ_on_scienceqa():
    found = {name: strict("coin/ScienceQA", "b", "B", name) for name in PROFILES}
    assert found == {"coin": 1.0, "hide": 0.0, "prism": 0.0, "official": 0.0,
                     "official-2015": 0.0, "lenient": 1.0}  # fmt: skip


def test_the_profiles_differ_on_grounding():
    box = "[0.1,0.2,0.3,0.4]"
    found = {name: strict("coin/Grounding", box, box, name) for name in PROFILES}
    assert found == {"coin": 0.0, "hide": 0.0, "prism": 1.0, "official": 1.0,
                     "official-2015": 1.0, "lenient": 1.0}  # fmt: skip


def test_a_small_letter_is_an_error_of_form_and_not_of_content():
    found = score_all("coin/ScienceQA", "b", ["B"], {}, "hide")
    assert found == Scores(strict=0.0, official=0.0, lenient=1.0, form=0.0)


def test_an_empty_imagenet_prediction_is_right_for_the_public_rule_only():
    found = score_all("coin/ImageNet", "", ["tench"], {}, "coin")
    assert found == Scores(strict=1.0, official=0.0, lenient=0.0, form=0.0)


def test_chartqa_within_five_percent_is_right_officially_only():
    found = score_all("trigap/ChartQA", "12.5", ["12"], {}, "prism")
    assert found == Scores(strict=0.0, official=1.0, lenient=0.0, form=1.0)


def test_docvqa_below_one_half_scores_in_prism_only():
    found = score_all("trigap/DocVQA", "axyz", ["abcd"], {}, "prism")
    assert found == Scores(strict=0.25, official=0.0, lenient=0.25, form=1.0)


def test_vqav2_without_ten_answers_has_no_official_score():
    assert score_all("coin/VQAv2", "cat", ["cat"], {}, "coin") == Scores(1.0, None, 1.0, 1.0)
    with pytest.raises(DataError, match="ten people"):
        score_all("coin/VQAv2", "cat", ["cat"], {}, "official")
    with pytest.raises(DataError, match="ten people"):
        score_all("coin/TextVQA", "cat", ["cat"], {}, "coin")


def test_vqav2_is_one_answer_strictly_and_ten_people_officially():
    ten = {"human_answers": ["cat"] * 2 + ["dog"] * 8}
    found = score_all("coin/VQAv2", "Cat.", ["cat"], ten, "coin")
    assert found == pytest.approx(Scores(strict=0.0, official=0.6, lenient=1.0, form=0.0))


def test_unknown_names_and_missing_answers():
    with pytest.raises(UnknownName, match="did you mean 'coin/ScienceQA'"):
        find_task("coin/ScienceQ")
    with pytest.raises(UnknownName, match="did you mean 'prism'"):
        score_all("coin/GQA", "a", ["a"], {}, "prisma")
    with pytest.raises(DataError, match="no answers"):
        score_all("coin/GQA", "a", [], {}, "coin")
