from __future__ import annotations

import pytest

from undrift.errors import DataError
from undrift.scoring import domains

MAP = {"subset": "MapQA", "question": "Which states have a value of 3?"}


@pytest.mark.parametrize(
    ("rule", "prediction", "answer", "expected"),
    [
        (domains.contains, "Yes, it is", "yes", 1.0),
        (domains.contains, "yesterday", "yes", 1.0),
        (domains.contains, "", "yes", 0.0),
        (domains.contains, "no", "yes", 0.0),
        (domains.contains_word, "no", "no", 1.0),
        (domains.contains_word, "snow", "no", 1.0),  # no space, so plain containment
        (domains.contains_word, "it snows", "no", 0.0),
        (domains.contains_word, "well, No.", "no", 1.0),
        (domains.contains_word, "a casino is", "no", 1.0),  # one side is enough
        (domains.contains_word, "turn left, then stop", "turn left", 1.0),
        (domains.contains_word, "", "no", 0.0),
        (domains.same_without_spaces, " B. ", "b", 1.0),
        (domains.same_without_spaces, "T r u e", "true", 1.0),
        (domains.same_without_spaces, "up trend", "up trend", 0.0),  # the answer keeps its space
        (domains.same_without_spaces, "(B)", "B", 0.0),
    ],
)
def test_golden(rule, prediction, answer, expected):
    assert rule(prediction, [answer], {}) == expected


def test_unanswerable_in_the_output_scores_nothing():
    extra = {"subset": "AI2D", "question": ""}
    text = "Unanswerable yes"
    rules = (domains.contains, domains.contains_word, domains.science, domains.same_without_spaces)
    for rule in rules:
        assert rule(text, [text], extra) == 0.0
    assert domains.contains("unanswerable yes", ["yes"], {}) == 1.0  # this spelling only


@pytest.mark.parametrize("subset", ["AI2D", "TQA", "VQA", "SciVerse"])
def test_sci_wants_equality(subset):
    extra = {"subset": subset, "question": "Which states"}
    assert domains.science("b", ["B"], extra) == 1.0
    assert domains.science("B.", ["B"], extra) == 0.0


def test_sci_renaming_a_picture_changes_its_score():
    assert domains.science("B.", ["B"], {"subset": "AI2D", "question": "?"}) == 0.0
    assert domains.science("B.", ["B"], {"subset": "renamed", "question": "?"}) == 1.0


def test_mapqa_which_states_is_the_share_of_states_found_with_their_spaces():
    assert domains.science("Ohio,Iowa", ["ohio,iowa,utah,maine"], MAP) == 0.5
    assert domains.science("ohio, iowa", ["ohio,iowa"], MAP) == 0.5
    assert domains.science("ohio, iowa", ["ohio, iowa"], MAP) == 1.0
    assert domains.science("", ["ohio"], MAP) == 0.0
    other = {**MAP, "question": "Is Ohio higher?"}
    assert domains.science("I say yes", ["Yes"], other) == 1.0


def test_sci_without_what_it_needs():
    with pytest.raises(DataError, match="'subset'"):
        domains.science("a", ["a"], {})
    with pytest.raises(DataError, match="'question'"):
        domains.science("a", ["a"], {"subset": "MapQA"})
