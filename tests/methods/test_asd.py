"""Other answer styles, written by rules: what is asked, what is right, what is left alone."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from undrift.data.types import Example
from undrift.methods.sefe import (
    RULES,
    STYLES,
    diversified,
    kind_of,
    options,
    style_of,
    task_style,
)

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def brief_task(size=200):
    names = ("red", "green", "blue", "dark grey", "7")
    return [
        Example(str(i), f"Which colour is thing {i}?\n{WORD}", (names[i % 5], "other"))
        for i in range(size)
    ]


def choice_task(size=100):
    return [
        Example(
            str(i),
            f"What is {i}?\nContext: none.\nA. a fern\nB. a moss\nC. a pine\n{LETTER}",
            ("ABC"[i % 3],),
            extra={"solution": "Ferns have no flowers." if i % 2 else "word " * 50},
        )
        for i in range(size)
    ]


def rewritten(examples, share=0.2, **options):
    made = diversified(examples, share, Random(0), **options)
    changed = [(old, new) for old, new in zip(examples, made, strict=True) if old is not new]
    return made, changed


def test_a_fifth_of_a_task_is_asked_evenly_in_the_styles_that_are_not_its_own():
    _, changed = rewritten(brief_task())
    assert Counter(new.extra["style"] for _, new in changed) == {"yes_no": 20, "choice": 20}
    _, changed = rewritten(choice_task(), 0.4)
    styles = Counter(new.extra["style"] for _, new in changed)
    assert styles.keys() == {"yes_no", "brief", "explanation", "detail"}
    assert styles.total() == 40 and max(styles.values()) - min(styles.values()) <= 2
    for old, new in changed:
        assert (old.id, old.images) == (new.id, new.images)
        assert new.question.endswith(f"\n{STYLES[new.extra['style']]}")


def test_what_a_rewritten_question_holds_to_be_right_is_right():
    for old, new in rewritten(brief_task())[1]:
        assert WORD not in new.question and new.question.startswith(old.question.split("\n")[0])
        if new.extra["style"] == "choice":
            offered = options(new.question)
            assert offered[new.answers[0]] == old.answers[0]
            assert list(offered.values()).count(old.answers[0]) == 1
            assert {kind_of(text) for text in offered.values()} == {kind_of(old.answers[0])}
        else:
            shown = new.question.split("Is the answer ")[1].split("?")[0]
            assert new.answers[0] == ("yes" if shown == old.answers[0] else "no")
    said = Counter(n.answers[0] for _, n in rewritten(brief_task(2000))[1] if n.answers[0] in
                   ("yes", "no"))  # fmt: skip
    assert min(said.values()) > 70


def test_the_options_of_a_multiple_choice_are_its_distractors_and_words_its_answer():
    for old, new in rewritten(choice_task(), 0.4)[1]:
        right = options(old.question)[old.answers[0]]
        assert not options(new.question) and "Context: none." in new.question
        if new.extra["style"] == "brief":
            assert new.answers == (right,)
        if new.extra["style"] in ("explanation", "detail"):
            assert new.answers[0] == f"{right}. {old.extra['solution'].strip()}"
            short = len(old.extra["solution"].split()) <= 35
            assert short == (new.extra["style"] == "explanation")


def test_what_no_rule_can_write_stays_as_it_is():
    alike = [Example(str(i), "what?", ("[0.1,0.2]",)) for i in range(20)]
    assert rewritten(alike)[1] == []
    few = rewritten(alike, writers={**RULES, "detail": lambda asked, random: ("q", "a")})[1]
    assert [new.extra["style"] for _, new in few] == ["detail"] * 4
    assert diversified(alike[:2], 0.2, Random(0)) == alike[:2]


@pytest.mark.parametrize(
    ("question", "answer", "style"),
    [
        ("Is it red?", "No", "yes_no"),
        ("Which?\nA. one\nB. two", "(B)", "choice"),
        ("Which letter is shown?", "B", "brief"),
        (f"Which bar is the longest, A or B?\n{LETTER}", "B", "choice"),
        (f"Is it red?\n{WORD}", "no", "brief"),
        ("Where?", "[0.1,0.2,0.3,0.4]", "brief"),
        ("Why?", "because " * 20, "explanation"),
        ("Why?", "because " * 50, "detail"),
    ],
)
def test_a_style_is_told_from_the_answer(question, answer, style):
    assert style_of(Example("1", question, (answer,))) == style


def test_a_task_has_the_style_of_most_of_its_answers():
    assert task_style([*brief_task(10), *choice_task(4)]) == "brief"
    assert kind_of("12.5%") == "number" and kind_of("two words") == "words"
