"""Long and strange texts: no scorer takes more than a moment, and no score changes for it."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.within import SECOND, held
from tests.sweeps import mostly_slow
from undrift.errors import DataError
from undrift.report.page import BOX
from undrift.scoring import (
    PROFILES,
    SCORERS,
    TASKS,
    AnswerStyle,
    caption_scores,
    rules_of,
    score,
    scores_of,
)
from undrift.scoring.captions import _common_length
from undrift.scoring.edit_distance import COMPARED, edit_distance, similarity
from undrift.scoring.rules_lenient import content

LONG = {
    "letters": "abcd " * 40_000,
    "one letter": "a" * 200_000,
    "digits": "1" * 200_000,
    "a box of digits": f"[{'1' * 100_000}, {'2' * 100_000}, 3, 4",
    "leads": "the answer is " * 20_000,
    "quotes and periods": "'." * 100_000,
    "commas": "1" + "," * 200_000,
    "words": " ".join(map(str, range(30_000))),
    "space": "[" + " " * 200_000,
}


SOME = """
letter trigap/DocVQA coin/Grounding exact coin/ScienceQA mllm_dcl/Sci coin/VQAv2 coin/TextVQA
""".split()


def edit_distance_by_hand(left, right):
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        current = [row]
        for column, b in enumerate(right, start=1):
            replaced = previous[column - 1] + (a != b)
            current.append(min(replaced, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


@pytest.mark.foreign("2.7")
def test_one_very_long_pair_of_answers():
    draw = random.Random(0)
    left, right = ("".join(draw.choices("abc ", k=30_000)) for _ in range(2))
    with held():
        assert 0 < similarity(left, right) < 1
        assert scores_of("trigap/DocVQA", left, [right], {}, "prism")["strict"] > 0


@pytest.mark.foreign("2.7")
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("scorer", mostly_slow(SOME, SOME[:3]))
def test_no_scorer_takes_more_than_a_moment(scorer, name):
    said = LONG[name]
    extra = {"question": "Which states?", "subset": "MapQA", "choices": ["red", said]}
    answers = ["[1, 2, 3, 4]"] if scorer == "coin/Grounding" else [said[::-1], "red"]
    with held():
        scores_of(scorer, said, answers, extra, "coin")


@pytest.mark.foreign("2.7")
def test_captions_of_many_words():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("a red bird sits on some tree".split(), k=9000)) for _ in "12"]
    with held():
        found = caption_scores({"1": texts[0], "2": "a bird"}, {"1": [texts[1]], "2": ["a bird"]})
    assert 0 < found["rouge_l"] <= 100


@pytest.mark.foreign("2.7")
def test_leads_that_never_end():
    with held():
        assert content("the answer is " * 50_000 + "B") == "b"


@pytest.mark.foreign("2.7")
def test_boxes_in_a_report_are_looked_for_in_a_moment():
    with held():
        assert not BOX.fullmatch(f"[{'1' * 50_000}")


@pytest.mark.parametrize("name", LONG)
def test_drift_of_form_neither(name):
    line = {"prediction": LONG[name], "answers": ["red", "[1, 2, 3, 4]"], "strict": 0.0}
    with held():
        rules_of("exact", {**line, "caseless": 0.0})
        later = {"later": AnswerStyle([["[1, 2, 3, 4]"]])}
        AnswerStyle([["red"], ["1"]]).borrowed_from(LONG[name], later)


def test_the_distance_is_the_one_by_hand():
    draw = random.Random(1)
    for _ in range(500):
        left, right = ("".join(draw.choices("abé \U0001f600", k=draw.randint(0, 20))) for _ in "12")
        assert edit_distance(left, right) == edit_distance_by_hand(left, right)


def test_beyond_the_bound_all_that_follows_counts_as_edited():
    head = "x" * COMPARED
    assert edit_distance(head + "abc", head + "abc") == 0
    assert edit_distance(head + "abc", head + "abd") == 3
    assert edit_distance(head + "abc", "x") == COMPARED + 2
    assert edit_distance("", head + "abc") == COMPARED + 3
    assert 0 < similarity(head, head + "abc") < 1


def test_common_words_are_counted_as_by_hand():
    def by_hand(left, right):
        row = [0] * (len(right) + 1)
        for a in left:
            diagonal = 0
            for column, b in enumerate(right, start=1):
                above = row[column]
                row[column] = diagonal + 1 if a == b else max(above, row[column - 1])
                diagonal = above
        return row[-1]

    draw = random.Random(2)
    for _ in range(300):
        left, right = (
            draw.choices(["a", "b", "", "\0", "ab"], k=draw.randint(0, 12)) for _ in "12"
        )
        assert _common_length(left, right) == by_hand(left, right)


@pytest.mark.parametrize(
    "corners", ["0 0 {0} {0}", "-{0} -{0} {0} {0}", "0.{1}1 0.{1}1 0.{1}2 0.{1}2"]
)
def test_boxes_beyond_floats_have_a_score(corners):
    said = corners.format("9" * 300, "0" * 200)
    for prediction in (said, "0 0 1 1"):
        assert score("box", prediction, [said]).strict in (0.0, 1.0)


def test_there_is_no_scorer_left_out():
    """`held` is of use only if it fails: the slowest of before took minutes."""
    assert SECOND <= 1 and len(SCORERS) + len(TASKS) * len(PROFILES) > 100
    with pytest.raises(AssertionError), held():
        raise AssertionError
    with held():
        raise DataError("ours")
