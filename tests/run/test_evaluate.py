"""Scores of a cell, from a model whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from undrift.data.types import Example, Task
from undrift.run.answer import measure_cell, scored
from undrift.run.progress import Progress
from undrift.run.session import Session, make_method
from undrift.rundir import read_lines
from undrift.scoring import mean_score


def session(backbone, progress=None) -> Session:
    return Session(backbone, backbone.model, make_method("zeroshot", {}), progress or Progress())


def test_strict_and_caseless_are_both_kept():
    line = scored("exact", Example("7", "which?", ("Seven",)), "seven")
    assert (line["strict"], line["caseless"]) == (0.0, 1.0)
    assert (line["id"], line["prediction"], line["answers"]) == ("7", "seven", ["Seven"])


def test_a_line_of_a_published_task_has_every_score_and_the_profile_decides_the_strict_one():
    example = Example("7", "which?", ("A",), extra={"choices": ["a fish", "a cat"]})
    line = scored("coin/ScienceQA", example, "a", "coin")
    assert [line[key] for key in ("strict", "caseless", "official", "lenient", "form")] == [
        1.0, 1.0, 0.0, 1.0, 0.0,
    ]  # fmt: skip
    assert scored("coin/ScienceQA", example, "a", "hide")["strict"] == 0.0
    assert scored("coin/ScienceQA", example, "a", "hide")["caseless"] == 1.0


def test_a_cell_keeps_the_order_of_the_test_set(backbone, tiny, tmp_path: Path, monkeypatch):
    task = tiny.tasks[1]
    truth = {example.id: example.answers[0] for example in task.test}
    wrong = task.test[2].id
    told = dict(reversed(truth.items())) | {wrong: truth[wrong].lower()}
    monkeypatch.setattr("undrift.run.answer.answers", lambda *given: iter(told.items()))
    score = measure_cell(session(backbone), task, tmp_path / "on-02.jsonl", "asking")
    assert score == pytest.approx(100 * 5 / 6, abs=1e-4)
    lines = read_lines(tmp_path / "on-02.jsonl")
    assert [line["id"] for line in lines] == list(truth)
    assert mean_score(lines, "caseless") == 100.0
    assert not (tmp_path / "on-02.part").exists()


@pytest.mark.foreign("5.3")
def test_boxes_in_other_units_are_told_when_they_are_asked(backbone, tmp_path, monkeypatch):
    told = []

    class Told(Progress):
        def event(self, kind, text, **values):
            told.append((kind, text, values))

    asked = tuple(Example(str(n), "where?", ("[0.1, 0.1, 0.4, 0.4]",)) for n in range(3))
    task = Task("t", asked, (), asked, "box", 9)
    said = {"0": "[100, 100, 400, 400]", "1": "[0.1, 0.1, 0.4, 0.4]", "2": "a bus"}
    monkeypatch.setattr("undrift.run.answer.answers", lambda *given: iter(said.items()))
    score = measure_cell(session(backbone, Told()), task, tmp_path / "on-01.jsonl", "asking")
    assert score == pytest.approx(100 / 3)
    ((kind, text, values),) = told
    assert (kind, values) == ("units", {"task": "t"})
    assert text.startswith("task t: 1 of 3 predictions are boxes in other units")
