from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.scoring import rules_lenient as lenient
from undrift.scoring.rules_official import box_half

FRUIT = {"choices": ["an apple", "Pear", "a fig", "A fig."]}
anything = st.text(alphabet=st.sampled_from("aAbC .,\"'()\n:7the answer is"), max_size=25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Cat. ", "cat"),
        ('"Cat."', "cat"),
        ("The answer is Cat.", "cat"),
        ('The answer is: "the answer is cat".', "cat"),
        ("The correct answer is cat", "cat"),
        ("I think the answer is cat", "i think the answer is cat"),
        ("The answer isn't cat", "the answer isn't cat"),
        ("New\n  York", "new york"),
        ("Straße", "strasse"),
        ("...", "..."),
        ("", ""),
        (" \n", ""),
    ],
)
def test_content_golden(text, expected):
    assert lenient.content(text) == expected


@given(anything)
def test_content_of_content_is_content_and_is_empty_for_blanks_only(text):
    assert lenient.content(lenient.content(text)) == lenient.content(text)
    assert (lenient.content(text) == "") == (not text.strip())


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Cat.", "cat", 1.0),
        ("a cat", "cat", 0.0),
        ("", "cat", 0.0),
        ("dog", "hotdog", 0.0),
        ("7.0", "7", 1.0),
        ("Seven.", "7", 1.0),
        ("7", "seven", 1.0),
        ("1,000", "1000", 1.0),
        ("1,00", "100", 0.0),
        ("$5", "5", 1.0),
        ("45 %", "45", 1.0),
        ("-3", "3", 0.0),
        (".5", "0.5", 1.0),
        ("7 dogs", "7", 0.0),
        ("9" * 400, "8" * 400, 0.0),
        ("+", "-", 0.0),
    ],
)
def test_same_content_golden(prediction, answer, expected):
    assert lenient.same_content(prediction, ["elephant", answer], {}) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B", 1.0),
        ("b", 1.0),
        ("(b)", 1.0),
        ("[B]", 1.0),
        ("b.", 1.0),
        ("B) Pear", 1.0),
        ("b: pear", 1.0),
        ("The answer is (B).", 1.0),
        ("pear", 1.0),
        ("The answer is pear.", 1.0),
        ("A", 0.0),
        ("an apple", 0.0),
        ("Bear", 0.0),
        ("B or C", 0.0),
        ("", 0.0),
    ],
)
def test_letter_in_any_form_or_the_text_of_its_option(prediction, expected):
    assert lenient.choice(prediction, ["B"], FRUIT) == expected


def test_the_text_of_two_options_chooses_neither():
    assert lenient.choice("a fig", ["C"], FRUIT) == lenient.choice("a fig", ["D"], FRUIT) == 0.0


def test_a_letter_stands_for_the_text_as_well():
    assert lenient.choice("b", ["Pear"], FRUIT) == 1.0
    assert lenient.choice("pear", ["B"], {}) == 0.0  # the options are not known


def test_a_single_letter_is_a_letter_even_where_an_option_is_that_letter():
    options = {"choices": ["B", "A"]}
    assert lenient.choice("A", ["A"], options) == 1.0
    assert lenient.choice("B", ["A"], options) == 0.0


def test_consensus_counts_people_by_content():
    ten = ["Cat."] * 2 + ["dog"] * 8
    assert lenient.consensus("cat", ten, {}) == pytest.approx(0.6)
    assert lenient.consensus("cat", ["x"], {"human_answers": ten}) == pytest.approx(0.6)
    assert lenient.consensus("cat", ["Cat."], {}) == 1.0  # ten are not known
    assert lenient.consensus("", ten, {}) == 0.0


def test_documents_are_alike_by_content():
    assert lenient.alike('"ABCD."', ["axyz", "abcz"], {}) == 0.75
    assert lenient.alike("", ["abcd"], {}) == 0.0


def test_boxes_by_the_first_four_numbers():
    assert box_half("it is at 0.1 0.2, 0.3 0.4!", ["[0.1,0.2,0.3,0.4]"], {}) == 1.0
    assert box_half("0.1 0.2 0.3", ["[0.1,0.2,0.3,0.4]"], {}) == 0.0


@given(st.text("aAbC .,\"'()\n7", max_size=12), st.sampled_from("aB7"))
def test_an_answer_in_any_dress_is_right(text, word):
    answer = f"{text}{word}"
    dressed = f'The answer is: "{answer.swapcase()}".'
    assert lenient.same_content(dressed, [answer], {}) == 1.0
