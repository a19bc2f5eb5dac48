"""Probes that name the task of an example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from undrift.data import doctor_checks
from undrift.data.doctor import examine
from undrift.data.doctor_checks import TOLD_BY_TEXT, RowQuestion, Split, told_by_text
from undrift.data.tell_tasks import text_features, told_apart
from undrift.data.types import Example

FIXTURES = Path(__file__).parents[1] / "fixtures"


def split(task, name, questions):
    rows = [RowQuestion(i, Example(str(i), q, ("yes",))) for i, q in enumerate(questions, 1)]
    return Split(task, name, None, len(rows), tuple(rows), max_new_tokens=8, scorer="exact")


def test_text_of_its_own_names_a_task_and_shared_text_does_not():
    questions = {
        "birds": [f"Which bird is number {i}?" for i in range(20)],
        "cars": [f"Which car is number {i}?" for i in range(20)],
        "maps": [f"Which car is number {i}?" for i in range(20)],
    }
    fitted = [text_features(texts[:10]) for texts in questions.values()]
    asked = [text_features(texts[10:]) for texts in questions.values()]
    birds, cars, maps = told_apart(fitted, asked)
    assert birds == 1.0
    assert cars + maps == pytest.approx(1.0)
    assert text_features(["a b"]) == pytest.approx(text_features(["A  B"]))
    assert np.linalg.norm(text_features(["a b", ""]), axis=1) == pytest.approx([1.0, 0.0])


def test_a_task_of_many_examples_does_not_drown_a_small_one():
    few, many = text_features(["a b"] * 5 + ["c d"] * 5), text_features(["c d"] * 200)
    one, other = told_apart([few, many], [few, many])
    assert (one, other) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("words", "severity"), [(("bird", "car"), "warning"), (("it", "it"), "note")]
)
def test_the_audit(words, severity):
    splits = [
        split(task, name, [f"What is {word} here?"] * 12)
        for task, word in zip(("one", "two"), words, strict=True)
        for name in ("train", "test")
    ]
    (found,) = told_by_text(splits)
    assert (found.check, found.severity) == (TOLD_BY_TEXT, severity)
    assert ("prove little about pictures" in found.advice) == (severity == "warning")
    assert ("100.0 % of the test's (50 % by chance)" in found.message) == (severity == "warning")
    assert told_by_text(splits[:2]) == []  # one task


def test_without_a_test_a_half_is_held_out():
    (found,) = told_by_text([split("a", "train", ["x y"] * 20), split("b", "train", ["z"] * 20)])
    assert found.severity == "warning"
    few = [split("a", "train", ["x"] * 19), split("b", "train", ["z"] * 20)]
    assert told_by_text(few) == []  # too few to say


def test_published_benchmarks_are_looked_at_as_well(monkeypatch):
    monkeypatch.setattr(doctor_checks, "LEAST", 1)
    report = examine("coin", FIXTURES / "coin")
    (found,) = [f for f in report.findings if f.check == TOLD_BY_TEXT]
    assert len(found.items) == 8
    sound = report.sound
    assert sound == all(f.severity == "note" for f in report.findings if f is not found)


def test_a_small_task_weighs_as_much_as_a_large_one():
    small, large = ["which is it?"] * 4, ["which is it?", "where?"] * 150
    parts = [text_features(texts) for texts in (small, large)]
    assert told_apart(parts, parts) == [1.0, 0.5]
