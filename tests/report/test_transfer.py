"""The transfer between tasks, read off the matrix by hand."""

from __future__ import annotations

import pytest

from undrift.errors import RunDirError
from undrift.report import load
from undrift.report.transfer import transfer
from undrift.rundir import RunDir, write_json

from .conftest import FORGETS


def test_by_hand(write_run):
    found = transfer(load(write_run("run", "moelora", FORGETS)))
    assert found.tasks == ["digits", "icons", "words"]
    assert found.backward == [[None, -30, -20], [None, None, -50], [None, None, None]]
    assert found.forward == [None, 20 - 25, 5 - 0]
    assert found.identified is None


def test_what_was_not_measured_is_none(write_run):
    matrix = [[90.0], [None, 80.0], [40.0, 30.0, 100.0]]
    found = transfer(load(write_run("run", "moelora", matrix, zero_shot=None)))
    assert found.backward == [[None, None, None], [None, None, -50], [None, None, None]]
    assert found.forward == [None, None, None]


@pytest.mark.parametrize("trained", [True, False])
def test_one_row_has_no_transfer(write_run, trained):
    found = transfer(load(write_run("run", "joint", [[90.0, 80.0, 70.0]], trained=trained)))
    assert found.backward == [[None] * 3] * 3
    assert found.forward == [None] * 3


def test_identification_is_read_where_a_method_tells_it(write_run):
    folder = write_run("run", "hide", FORGETS)
    files = RunDir(folder)
    write_json(files.predictions(1, 1).with_suffix(".json"), {"identified": 100.0, "prompts": 4})
    write_json(files.predictions(3, 2).with_suffix(".json"), {"identified": 25.0, "prompts": 4})
    write_json(files.predictions(3, 3).with_suffix(".json"), {"something else": 1})
    found = transfer(load(folder))
    assert found.identified == [[100.0, None, None], [None, None, None], [None, 25.0, None]]


def test_facts_that_are_no_object_are_refused(write_run):
    folder = write_run("run", "hide", FORGETS)
    file = RunDir(folder).predictions(1, 1).with_suffix(".json")
    file.parent.mkdir()
    file.write_text("[1]")
    with pytest.raises(RunDirError, match=r"on-01\.json is damaged"):
        transfer(load(folder))
