"""Planted errors of form are counted, to the exact share, and traced to the task they look like."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.scoring import (
    SCORERS,
    TASKS,
    AnswerStyle,
    Rules,
    form_share,
    kind_of_answer,
    rules_of,
    scores_of,
)

CHARTS = [["A"], ["B"], ["C"], ["D"]]
WORDS = [["sandal"], ["lemon"], ["hazel"], ["saddle"]]
DIGITS = [["Seven"], ["One"], ["Two"], ["Six"]]
NUMBERS = [["0"], ["25"], ["50"], ["100"]]
NAMES = [["Fritz Lang"], ["Ken Loach"], ["Wes Craven"]]
BOXES = [["[0.2,0.8,0.4,1.0]"], ["[0.0,0.0,0.2,0.2]"]]
CAPTIONS = [["A dog runs over the grass."], ["Two men sit on a bench."]]


def line(prediction, answers, scorer="exact", profile="coin", **extra):
    scores = scores_of(scorer, prediction, answers, extra, profile)
    return {"prediction": prediction, "answers": answers, **scores}


def borrowed(prediction, own, later):
    styles = {name: AnswerStyle(answers) for name, answers in later.items()}
    return AnswerStyle(own).borrowed_from(prediction, styles)


def judged(predictions, answers, scorer="exact"):
    return [rules_of(scorer, line(p, a, scorer)) for p, a in zip(predictions, answers, strict=True)]


@pytest.mark.parametrize(
    ("scorer", "prediction", "answers", "strict", "lenient", "error"),
    [
        ("exact", "sandal", ["sandal"], 1, 1, None),
        ("exact", "Sandal", ["sandal"], 0, 1, "case"),
        ("exact", "Six", ["sandal"], 0, 0, "case"),
        ("exact", "lemon", ["sandal"], 0, 0, None),
        ("exact", "sandal.", ["sandal"], 0, 1, "punctuation"),
        ("exact", "It is a sandal", ["sandal"], 0, 0, "extra words"),
        ("exact", "", ["sandal"], 0, 0, "empty"),
        ("exact", "I cannot tell", ["sandal"], 0, 0, "refusal"),
        ("exact", "B", ["sandal"], 0, 0, "letter instead of word"),
        ("exact", "7", ["Seven"], 0, 1, None),
        ("exact", "Seven", ["7"], 0, 1, "not a number"),
        ("exact", "7.", ["7"], 0, 1, "punctuation"),
        ("exact", "(a)", ["A"], 0, 1, "case"),
        ("exact", "sandal", ["A"], 0, 0, "sentence instead of letter"),
        ("caseless", "Sandal", ["sandal"], 1, 1, None),
        ("letter", "a", ["A"], 0, 1, "case"),
        ("letter", "C. a cat", ["C"], 1, 1, "sentence instead of letter"),
        ("letter", "I say the answer is C.", ["C"], 1, 1, "sentence instead of letter"),
        ("box", "[0.2,0.8]", ["[0.2,0.8,0.4,1.0]"], 0, 0, "unparsable box"),
        ("box", "0.2,0.8,0.4,1.0", ["[0.2,0.8,0.4,1.0]"], 1, 1, "punctuation"),
    ],
)
def test_rules_of_the_pocket_by_hand(scorer, prediction, answers, strict, lenient, error):
    found = rules_of(scorer, line(prediction, answers, scorer))
    assert found == Rules(strict, lenient, float(error is None), error)


def test_a_published_line_keeps_its_scores():
    kept = line("a", ["A"], "coin/ScienceQA", "hide")
    assert rules_of("coin/ScienceQA", kept) == Rules(0, 1, 0, "case")
    assert rules_of("coin/ScienceQA", {**kept, "lenient": 0.25, "form": 0.5})[1:3] == (0.25, 0.5)
    lucky = line("", ["dog"], "coin/ImageNet")
    assert rules_of("coin/ImageNet", lucky) == Rules(1, 0, 0, "empty")
    caption = line("a dog", ["A dog runs."], "ucit/Flickr30k")
    assert rules_of("ucit/Flickr30k", caption) == Rules(None, None, 0, "punctuation")


def test_case_that_only_the_strict_rule_sees_is_an_error_of_case():
    kept = line("left", ["Left"], "coin/GQA")  # whose rule folds the prediction alone
    assert (kept["strict"], kept["caseless"], kept["form"]) == (0, 1, 1)
    assert rules_of("coin/GQA", kept) == Rules(0, 1, 1, "case")


@pytest.mark.parametrize("scorer", [*SCORERS, *TASKS])
def test_every_scorer_has_a_kind_of_answer(scorer):
    assert kind_of_answer(scorer, ["cat"])


def test_planted_case_errors_give_the_exact_share():
    def lost(before, after):
        sides = [judged(before, CHARTS), judged(after, CHARTS)]
        strict = [100 * fmean(line.strict or 0 for line in side) for side in sides]
        lenient = [100 * fmean(line.lenient or 0 for line in side) for side in sides]
        return strict[0] - strict[1], lenient[0] - lenient[1]

    # Of four, one is right, two are lost to letter case alone, one is wrong.
    assert lost("ABCD", "AbcA") == (75, 25)
    assert form_share(*lost("ABCD", "AbcA")) == pytest.approx(200 / 3)
    assert form_share(*lost("ABCD", "abcd")) == 100
    assert form_share(*lost("ABCD", "BCDA")) == 0
    # Form alone cost one answer before, and none afterwards.
    assert form_share(*lost("ABCd", "ABDA")) == -100
    assert form_share(*lost("ABCA", "ABCA")) is None
    assert form_share(*lost("ABCA", "ABCD")) is None


@pytest.mark.parametrize(
    ("prediction", "own", "later", "expected"),
    [
        ("Six", WORDS, {"digits": DIGITS, "names": NAMES}, "digits"),  # word for word
        ("Sandal", WORDS, {"digits": DIGITS, "names": NAMES}, "digits"),  # one word, capital
        ("Virginia Woolf", WORDS, {"digits": DIGITS, "names": NAMES}, "names"),
        ("7", WORDS, {"numbers": NUMBERS, "digits": DIGITS}, "numbers"),
        ("Sandal", WORDS, {"numbers": NUMBERS}, None),
        ("sandal", CHARTS, {"words": WORDS, "digits": DIGITS}, "words"),
        ("b", CHARTS, {"words": WORDS}, "words"),  # a letter as before, but small as words are
        ("b", CHARTS, {"digits": DIGITS, "numbers": NUMBERS}, None),
        ("B", CHARTS, {"more": CHARTS}, None),  # its own form, whoever else has it
        ("E", CHARTS, {"more": [["E"]]}, None),
        ("sandal", CHARTS, {"words": WORDS, "more words": [["sandal"]]}, "more words"),
        ("Sandal", WORDS, {"digits": DIGITS, "more": [["One"]]}, "more"),  # a tie: the latest
        ("One", WORDS, {"digits": DIGITS, "names": [["Ada"]]}, "digits"),  # word for word first
        ("[0.1, 0.2, 0.3, 0.4]", WORDS, {"boxes": BOXES, "names": NAMES}, "boxes"),
        ("sandal.", WORDS, {"captions": CAPTIONS}, "captions"),  # the period
        ("It is a sandal", WORDS, {"captions": CAPTIONS}, "captions"),  # capital and length
        ("A, B", CHARTS, {"names": NAMES}, "names"),  # two words
        ("", WORDS, {"names": NAMES}, None),
        ("Six", WORDS, {}, None),
        ("Six", [], {"digits": DIGITS}, "digits"),
    ],
)
def test_borrowed_by_hand(prediction, own, later, expected):
    assert borrowed(prediction, own, later) == expected


def test_a_rare_look_is_not_a_tasks_own_and_not_usual_for_another():
    own = [["sandal"]] * 95 + [["Spain"]] * 5
    assert borrowed("Italy", own, {"digits": DIGITS}) == "digits"
    assert borrowed("Italy", [*own, ["Rome"]], {"digits": DIGITS}) is None
    later = [["Seven"]] * 2 + [["7"]] * 8
    assert borrowed("Italy", WORDS, {"digits": later}) == "digits"
    assert borrowed("Italy", WORDS, {"digits": [*later, ["8"]]}) is None


@given(st.text(max_size=20), st.lists(st.lists(st.text(max_size=8), min_size=1), max_size=4))
def test_borrowed_never_names_a_task_for_an_answer_of_ones_own(prediction, own):
    assert borrowed(prediction, [*own, [prediction]], {"words": WORDS, "boxes": BOXES}) is None
    assert borrowed(prediction, own, {"words": WORDS}) in ("words", None)
