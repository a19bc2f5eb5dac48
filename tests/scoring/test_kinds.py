from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.errors import DataError, UnknownName
from undrift.scoring import SCORERS, Score, find_scorer, score, share_case_only

RIGHT, FORM, WRONG = Score(1.0, 1.0), Score(0.0, 1.0), Score(0.0, 0.0)

# For the contract tests: an answer that each scorer accepts as its own prediction.
ANSWER = {"exact": "Seven", "caseless": "Seven", "letter": "C", "box": "[0.1, 0.2, 0.3, 0.5]"}

prose = st.text(alphabet=st.sampled_from("aAbBcCß K.,:;()[]-+0123456789\n"), max_size=30)
anything = st.one_of(st.text(max_size=30), prose)


@pytest.mark.parametrize(
    ("scorer", "prediction", "answers", "expected"),
    [
        ("exact", "Seven", ["Seven"], RIGHT),
        ("exact", " Seven\n", ["Seven"], RIGHT),
        ("exact", "seven", ["Seven"], FORM),
        ("exact", "Seven.", ["Seven"], WRONG),
        ("exact", "", ["Seven"], WRONG),
        ("exact", "Sev", ["Seven"], WRONG),
        ("exact", "7", ["Seven", "7"], RIGHT),
        ("exact", "New  York", ["New York"], WRONG),
        ("exact", "STRASSE", ["straße"], FORM),
        ("caseless", "seven", ["Seven"], RIGHT),
        ("caseless", "eight", ["Seven"], WRONG),
        ("letter", "C", ["C"], RIGHT),
        ("letter", "c", ["C"], FORM),
        ("letter", "C.", ["C"], RIGHT),
        ("letter", "C. a cat", ["C"], RIGHT),
        ("letter", "c. a cat", ["C"], FORM),
        ("letter", "(C)", ["C"], RIGHT),
        ("letter", "C) cat", ["C"], RIGHT),
        ("letter", "Cat", ["C"], WRONG),
        ("letter", "A cat", ["A"], WRONG),
        ("letter", "B", ["C"], WRONG),
        ("letter", "", ["C"], WRONG),
        ("letter", "The answer is C.", ["C"], RIGHT),
        ("letter", "I think the answer is C", ["C"], RIGHT),
        ("letter", "The answer is c.", ["C"], FORM),
        ("letter", "The answer is Cat.", ["C"], WRONG),
        ("letter", "The answer is A. The answer is C.", ["C"], WRONG),
        ("letter", "The answer is C. The answer is A.", ["C"], WRONG),
        ("letter", "C or D", ["C"], WRONG),
        ("box", "[0.1,0.2,0.3,0.5]", ["[0.10, 0.20, 0.30, 0.50]"], RIGHT),
        ("box", "0.1 0.2 0.3 0.5", ["[0.1,0.2,0.3,0.5]"], RIGHT),
        ("box", "[0, 0, 2, 1]", ["[0,0,1,1]"], RIGHT),  # IoU exactly 0.5
        ("box", "[0, 0, 2.01, 1]", ["[0,0,1,1]"], WRONG),
        ("box", "[0, 0, 1, 1]", ["[5,5,6,6]", "[0,0,1,1]"], RIGHT),
        ("box", "[1, 1, 0, 0]", ["[0,0,1,1]"], WRONG),
        ("box", "[0, 0, 1]", ["[0,0,1,1]"], WRONG),
        ("box", "[2, 0, 3, 1]", ["[0,0,1,1]"], WRONG),
        ("box", "no", ["[0,0,1,1]"], WRONG),
    ],
)
def test_golden(scorer, prediction, answers, expected):
    assert score(scorer, prediction, answers) == expected


def test_the_contract_covers_every_scorer():
    assert set(ANSWER) == set(SCORERS)


@pytest.mark.parametrize("scorer", SCORERS)
class TestContract:
    @given(prediction=anything)
    def test_scores_lie_in_the_unit_interval_and_strict_is_never_above_caseless(
        self, scorer, prediction
    ):
        strict, caseless = score(scorer, prediction, [ANSWER[scorer]])
        assert 0.0 <= strict <= caseless <= 1.0

    def test_the_answer_itself_is_right(self, scorer):
        assert score(scorer, ANSWER[scorer], [ANSWER[scorer]]) == RIGHT

    def test_nothing_is_wrong(self, scorer):
        for empty in ("", " ", "\n"):
            assert score(scorer, empty, [ANSWER[scorer]]) == WRONG

    @given(prediction=anything)
    def test_another_accepted_answer_never_hurts(self, scorer, prediction):
        rule = find_scorer(scorer)
        other = {"letter": "D", "box": "[5,5,6,6]"}.get(scorer, "eight")
        alone = rule(prediction, [ANSWER[scorer]])
        assert alone <= rule(prediction, [ANSWER[scorer], other])
        assert alone <= rule(prediction, [other, ANSWER[scorer]])

    @given(prediction=anything)
    def test_space_around_a_prediction_does_not_matter(self, scorer, prediction):
        answers = [ANSWER[scorer]]
        assert score(scorer, f" {prediction}\n", answers) == score(scorer, prediction, answers)

    def test_no_answers(self, scorer):
        with pytest.raises(DataError, match="no answers"):
            score(scorer, "Seven", [])


def test_an_answer_that_is_no_box():
    for answer in ("Seven", "[1,1,0,0]", "[0,0,1]"):
        with pytest.raises(DataError, match="is not a box"):
            score("box", "[0,0,1,1]", [answer])


def test_unknown_scorer():
    with pytest.raises(UnknownName, match="did you mean 'letter'"):
        score("leter", "C", ["C"])


def test_errors_of_letter_case_only():
    assert share_case_only([RIGHT, FORM, FORM, WRONG, FORM]) == 75.0
    assert share_case_only([RIGHT, WRONG]) == 0.0
    assert share_case_only([RIGHT]) is None
    assert share_case_only([]) is None
