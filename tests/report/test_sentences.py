"""The sentences by hand, where runs with planted causes do not reach."""

from __future__ import annotations

import pytest

from undrift.report.forms import Slip
from undrift.report.sentences import of_run, of_task, verdict

LOST = {"router": 0.0, "expert": 4.0, "form": 6.0, "content": 4.0}


def task(lost=10.0, parts=LOST, *, alone=(), worn=(), wrong=10, judged=True):
    both = "router and experts"
    return of_task(
        "charts", 90.0, lost, parts, both, judged=judged,
        alone=dict(alone), worn=dict(worn), wrong=wrong,
    )  # fmt: skip


def test_the_most_common_error_of_form_gives_the_example():
    slips = [
        (Slip("punctuation", "x.", "x"), 3),
        (Slip("case", "a", "A"), 2),
        (Slip("case", "b", "B"), 2),
        (Slip("extra words", "a c", "C"), 1),
    ]
    assert task(alone=slips) == (
        "charts lost 10.0 points: "
        "6.0 in form alone (letter case and punctuation, such as “a” for “A”), "
        "4.0 because the experts changed"
    )


def test_an_example_is_cut_short():
    assert "such as “The answer is, as far as I kn…” for “B”)" in task(
        alone=[(Slip("extra words", "The answer is, as far as I know, B", "B"), 1)]
    )


@pytest.mark.parametrize(
    ("worn", "wrong", "said"),
    [
        ({"words": 4, "digits": 3}, 12, "; 4 of the 12 wrong answers look like those of words"),
        ({"words": 3, "digits": 4}, 12, "; 4 of the 12 wrong answers look like those of digits"),
        ({"words": 4}, 13, ""),
        ({"words": 2}, 2, ""),  # too few to speak of
        ({}, 0, ""),
    ],
)
def test_a_look_is_mentioned_where_it_is_common(worn, wrong, said):
    plain = task()
    assert task(worn=worn, wrong=wrong) == plain + said


def test_what_was_won_back_comes_last():
    parts = {"router": -2.0, "expert": 15.0, "form": -3.0, "content": 13.0}
    assert task(parts=parts) == (
        "charts lost 10.0 points: 15.0 because the experts changed, "
        "less 2.0 that the change of the router won back and 3.0 that form alone no longer costs"
    )


def test_a_loss_that_is_not_clear_is_not_shared_out():
    parts = {"router": 0.3, "expert": 0.3, "form": 0.3, "content": 0.6}
    assert of_run("same", 90.0, 0.9, parts, {"router and experts"}).count("%") == 0
    assert of_run("same", 90.0, 1.0, {**parts, "form": 0.4}, {"router and experts"}).count("%") == 3


def test_a_small_part_is_not_mentioned():
    parts = {"router": 0.04, "expert": 6.0, "form": 3.96, "content": 6.04}
    assert "router" not in task(parts=parts)
    assert task(0.04, parts) == "charts kept its 90.0 points"


def test_the_verdict_names_every_other_run():
    others = [("a", 80.0, 3.0), ("b", 70.0, 0.0), ("c", 60.0, -1.0)]
    assert verdict("x forgets 9.0.", others) == (
        "x forgets 9.0. a forgets 3.0 of 80.0; b forgets nothing of 70.0; c gains 1.0 on 60.0."
    )
