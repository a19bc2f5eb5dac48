"""Who taught whom: what learning each task did to the others, and whether tasks were told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undrift.report.results import Results, Row
from undrift.rundir import RunDir, read_record
from undrift.rundir.records import Identified


@dataclass(frozen=True)
class Transfer:
    """What learning one task did to the others, in points; None where it was not measured.

    Lists count from 0: task 1 stands at index 0.

    Args:
        tasks: Names in the order of learning.
        backward: Row i, column t: the effect of learning task t on task i, A[t][i] - A[t-1][i];
            None unless task i was learned before task t.
        forward: For task i the effect of all tasks before it, A[i-1][i] - A[0][i]: what the model
            could do before it learned the task, above the untouched model. None for the first.
        identified: Row t, column i: the percentage of task i's prompts that the method, which must
            find the task by itself, took for task i after learning task t. None where the method
            does not look for tasks.
    """

    tasks: Sequence[str]
    backward: Sequence[Row]
    forward: Row
    identified: Sequence[Row] | None


def transfer(run: Results) -> Transfer:
    """Read off the matrix who taught whom.

    Args:
        run: The run.

    Returns:
        The transfer; all None for a run without a row for each task.

    Raises:
        RunDirError: If a file of facts beside the predictions is damaged.
    """
    numbers = range(len(run.tasks))
    A = [*run.matrix, *[[None] * len(run.tasks)] * (len(run.tasks) - len(run.matrix))]
    if len(run.matrix) < len(run.tasks):
        A[0] = A[-1]  # the only row is the end, not the stage after the first task
    backward = [[_less(A[t][i], A[t - 1][i]) if t > i else None for t in numbers] for i in numbers]
    forward = [_less(A[i - 1][i], run.zero_shot[i]) if i else None for i in numbers]
    return Transfer(run.tasks, backward, forward, _identified(run))


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _identified(run: Results) -> list[Row] | None:
    files, numbers = RunDir(run.folder), range(1, len(run.tasks) + 1)
    rows: list[Row] = []
    for after in numbers:
        row: Row = []
        for on in numbers:
            file = files.predictions(after, on).with_suffix(".json")
            facts = read_record(file, Identified) if file.is_file() else {}
            row.append(facts.get("identified"))
        rows.append(row)
    return rows if any(share is not None for row in rows for share in row) else None
