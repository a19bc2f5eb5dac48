"""The line of one prediction, and what a task's lines are worth."""

from __future__ import annotations

import pytest

from undrift.errors import UnknownName
from undrift.scoring import caption_scores, check_scorer, mean_score, scores_of, task_score


def test_a_scorer_is_one_of_ours_or_a_published_task():
    check_scorer("letter")
    check_scorer("ucit/IconQA")
    with pytest.raises(UnknownName, match="coin/ScienceQA"):
        check_scorer("coin/SciencQA")


def test_our_scorers_give_two_scores_and_published_tasks_five():
    assert scores_of("exact", "seven", ["Seven"], {}, "hide") == {"strict": 0.0, "caseless": 1.0}
    found = scores_of("trigap/ChartQA", "10.2", ["10"], {}, "prism")
    assert found == {
        "strict": 0.0, "caseless": 0.0, "official": 1.0, "lenient": 0.0, "form": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("said", "caseless"), [("b", 1.0), ("B", 1.0), ("c", 0.0)])
def test_case_is_folded_the_way_the_rule_wants_it(said, caseless):
    """HiDe's rule knows capital letters only, GQA's small ones."""
    assert scores_of("coin/ScienceQA", said, ["B"], {}, "hide")["caseless"] == caseless
    assert scores_of("coin/GQA", said, ["B"], {}, "coin")["caseless"] == caseless


def test_a_mean_needs_every_line():
    rows = [{"strict": 1.0, "official": None}, {"strict": 0.0, "official": 1.0}, {"strict": 0.5}]
    assert mean_score(rows, "strict") == 50.0
    assert mean_score(rows, "official") is None


def test_captions_are_worth_cider():
    truths = {"1": ["a red cat sits here"], "2": ["two dogs run in snow"]}
    said = {"1": "a red cat sits", "2": "dogs run in the snow"}
    rows = [
        {"id": key, "prediction": said[key], "answers": truths[key]}
        | scores_of("ucit/Flickr30k", said[key], truths[key], {}, "hide")
        for key in truths
    ]
    assert rows[0]["strict"] is rows[0]["caseless"] is None
    expected = caption_scores(said, truths)["cider"]
    assert expected > 0
    assert task_score(rows) == pytest.approx(expected, abs=1e-6)
