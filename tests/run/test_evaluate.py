"""Scores of a cell, from a model whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from undrift.data.types import Example
from undrift.run.evaluate import Examiner, percent, scored
from undrift.run.progress import Quiet
from undrift.rundir import read_lines


def test_strict_and_caseless_are_both_kept():
    line = scored("exact", Example("7", "which?", ("Seven",)), "seven")
    assert (line["strict"], line["caseless"]) == (0.0, 1.0)
    assert (line["id"], line["prediction"], line["answers"]) == ("7", "seven", ["Seven"])


def test_percent_is_the_mean_of_all_lines():
    rows = [{"strict": 1.0, "caseless": 1.0}] * 2 + [{"strict": 0.0, "caseless": 1.0}] * 2
    assert percent(rows) == 50.0 and percent(rows, "caseless") == 100.0


def test_a_cell_keeps_the_order_of_the_test_set(backbone, tiny, tmp_path: Path, monkeypatch):
    task = tiny.tasks[1]
    truth = {example.id: example.answers[0] for example in task.test}
    wrong = task.test[2].id
    told = dict(reversed(truth.items())) | {wrong: truth[wrong].lower()}
    monkeypatch.setattr("undrift.run.evaluate.answers", lambda *given: iter(told.items()))
    examiner = Examiner(backbone, backbone.model, backbone.collator(), 4, Quiet())
    score = examiner.cell(task, tmp_path / "on-02.jsonl", "asking")
    assert score == pytest.approx(100 * 5 / 6, abs=1e-4)
    lines = read_lines(tmp_path / "on-02.jsonl")
    assert [line["id"] for line in lines] == list(truth)
    assert percent(lines, "caseless") == 100.0
    assert not (tmp_path / "on-02.part").exists()
