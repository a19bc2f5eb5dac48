from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.errors import UnknownName
from undrift.scoring import ERROR_KINDS, KINDS, error_kind, form

BOX = "[0.10, 0.20, 0.30, 0.40]"


@pytest.mark.parametrize(
    ("kind", "prediction", "answers", "expected"),
    [
        ("letter", "A", ["C"], None),  # wrong, in the right form
        ("letter", " C\n", ["C"], None),
        ("letter", "c", ["C"], "case"),
        ("letter", "C", ["c"], "case"),
        ("letter", "c.", ["C"], "case"),
        ("letter", "C.", ["C"], "punctuation"),
        ("letter", "(B)", ["C"], "punctuation"),
        ("letter", "C. a cat", ["C"], "sentence instead of letter"),
        ("letter", "cat", ["C"], "sentence instead of letter"),
        ("letter", "3", ["C"], "sentence instead of letter"),
        ("letter", "", ["C"], "empty"),
        ("letter", "...", ["C"], "sentence instead of letter"),
        ("letter", "I cannot tell", ["C"], "refusal"),
        ("choice", "b", ["A"], "case"),
        ("choice", "the cat", ["A"], "sentence instead of letter"),
        ("choice", "A", ["cat"], "letter instead of word"),
        ("choice", "dog", ["cat"], None),
        ("class name", "Cat", ["cat"], "case"),
        ("class name", "Dog", ["cat"], "case"),
        ("class name", "dog", ["cat"], None),
        ("class name", "great white shark", ["Great White Shark"], "case"),
        ("class name", "Hammerhead", ["Great White Shark"], None),  # mixed case shows no rule
        ("class name", "cat.", ["cat"], "punctuation"),
        ("class name", "It is a cat", ["cat"], "extra words"),
        ("class name", "great white shark", ["great white shark"], None),
        ("short text", "Yes", ["yes"], None),  # case does not count in these tasks
        ("short text", "yes.", ["no"], "punctuation"),
        ("short text", '"yes"', ["yes"], "punctuation"),
        ("short text", "U.S.", ["Canada"], None),
        ("short text", "St.", ["U.S."], None),
        ("short text", "on the left", ["left"], "extra words"),
        ("short text", "on the left", ["to the right"], None),
        ("short text", "unanswerable", ["yes"], "refusal"),
        ("short text", "unanswerable", ["unanswerable"], None),
        ("short text", "I’m sorry, I can't see it", ["unanswerable"], "extra words"),
        ("short text", "", ["yes"], "empty"),
        ("consensus", "two words", ["yes"], None),
        ("document", "three words here", ["yes"], "extra words"),
        ("chart", "12%", ["10"], None),
        ("number", "12", ["3"], None),
        ("number", "-0.5", ["3"], None),
        ("number", "3.", ["3"], "punctuation"),
        ("number", "1,000", ["3"], "punctuation"),
        ("number", "3 cubes", ["3"], "extra words"),
        ("number", "three", ["3"], "not a number"),
        ("box", "[0,0,1,1]", [BOX], None),
        ("box", "[ 0.1 , .2 , 3. , -4 ]", [BOX], None),
        ("box", "0,0,1,1", [BOX], "punctuation"),
        ("box", "at [0,0,1,1]", [BOX], "extra words"),
        ("box", "[0,0,1]", [BOX], "unparsable box"),
        ("box", "on the left", [BOX], "unparsable box"),
        ("caption", "A cat sits on a mat.", ["A dog."], None),
        ("caption", "A cat sits on a mat", ["A dog."], "punctuation"),
        ("caption", "A cat.", ["A dog."], "too short"),
        ("caption", "a dog.", ["Look: A dog."], None),
        ("caption", "", ["A dog."], "empty"),
        ("caption", "We cannot be sure what I cannot see.", ["A dog."], None),
    ],
)
def test_golden(kind, prediction, answers, expected):
    assert error_kind(kind, prediction, answers) == expected
    assert form(kind, prediction, answers) == float(expected is None)


def test_the_golden_table_has_every_kind_of_error():
    rows = test_golden.pytestmark[0].args[1]
    assert {row[3] for row in rows} == {*ERROR_KINDS, None}
    assert {row[0] for row in rows} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
class TestContract:
    @given(answer=st.text(min_size=1, max_size=20).filter(str.strip))
    def test_an_accepted_answer_has_no_error(self, kind, answer):
        assert error_kind(kind, f" {answer}\n", ["first", answer]) is None

    @given(prediction=st.text(max_size=20), answer=st.sampled_from(["A", "cat", "7", BOX]))
    def test_any_text_has_a_known_error_or_none(self, kind, prediction, answer):
        assert error_kind(kind, prediction, [answer]) in {*ERROR_KINDS, None}

    def test_blanks_are_empty(self, kind):
        assert {error_kind(kind, blank, ["A"]) for blank in ("", " ", "\n\t")} == {"empty"}


def test_unknown_kind():
    with pytest.raises(UnknownName, match="did you mean 'letter'"):
        error_kind("leter", "A", ["A"])


def test_mif_does_not_see_the_letter_case_that_form_sees():
    assert KINDS["letter"].mif("c", ["C"]) == 1.0
    assert form("letter", "c", ["C"]) == 0.0


@pytest.mark.parametrize(
    ("kind", "prediction", "answers", "expected"),
    [
        ("letter", " z ", ["C"], 1.0),
        ("letter", "C.", ["C"], 0.0),
        ("letter", "é", ["C"], 0.0),
        ("letter", "ß", ["C"], 0.0),  # upper-cased it is two letters
        ("letter", "", ["C"], 0.0),
        ("short text", "", ["yes"], 1.0),  # at most two words
        ("short text", "two words", ["yes"], 1.0),
        ("short text", "now three words", ["yes"], 0.0),
        ("class name", "Great white shark", ["great White shark"], 1.0),
        ("consensus", "now three words", ["no", "now three words"], 0.0),  # the first answer only
        ("caption", "Now there are five words.", ["A dog."], 1.0),
        ("caption", "There are four words.", ["A dog."], 0.0),
        ("caption", "a DOG.", ["x", "See a dog."], 1.0),
        ("caption", "Now there are five words", ["A dog."], 0.0),
        ("caption", "", [""], 0.0),
    ],
)
def test_mif_golden(kind, prediction, answers, expected):
    assert KINDS[kind].mif(prediction, answers) == expected


def test_mif_is_not_made_up_where_it_is_not_defined():
    assert {name for name, kind in KINDS.items() if kind.mif is None} == {
        "choice",
        "document",
        "chart",
        "number",
        "box",
    }
