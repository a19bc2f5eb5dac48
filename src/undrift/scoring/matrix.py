"""The accuracy matrix and the numbers of continual learning that follow from it.

`A[t][i]` is the score on task i after training task t, in percent; tasks count from 1, row 0 (kept
apart as `zero_shot`) is the untouched model. A cell that was not measured is None, and a metric
that needs such a cell is None: nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from undrift.errors import DataError

Row = Sequence[float | None]

FORMULAS = {
    "last": "(1/T) sum_i A[T][i]: average of all tasks at the end, the headline number",
    "mft": "(1/T) sum_i A[i][i]: average of each task when just learned",
    "bwt": "(1/(T-1)) sum_{i<T} (A[T][i] - A[i][i]): backward transfer, negative = forgetting",
    "forgetting": "(1/(T-1)) sum_{i<T} (max_{i<=t<T} A[t][i] - A[T][i]): fall from the best",
    "maa": "(1/T) sum_t (1/t) sum_{i<=t} A[t][i]: average over stages of the tasks seen",
    "avg": "(1/T) sum_i (1/(T-i+1)) sum_{t>=i} A[t][i]: average over tasks since learned",
    "fwt": "(1/(T-1)) sum_{i>1} (A[i-1][i] - A[0][i]): forward transfer, over zero-shot",
}


def metrics(matrix: Sequence[Row], zero_shot: Row | None = None) -> dict[str, float | None]:
    """Compute every metric of FORMULAS.

    Args:
        matrix: One row per trained task, one column per task, in the same order. A row may end
            early: what follows was not measured. The longest row says how many tasks there are,
            so the rows of an unfinished run are to be filled up with None. A method that trains
            once for all tasks, or not at all, has one row; it gets `last` and None for the rest.
        zero_shot: Row 0, the score of the untouched model on each task.

    Returns:
        Each metric in percent, unrounded, or None where a cell that it needs is missing.

    Raises:
        DataError: If the matrix is empty or has more rows than columns, or if a score is not a
            finite number.
    """
    zero_shot = [] if zero_shot is None else zero_shot
    tasks = max(len(row) for row in (zero_shot, *matrix))
    if not 1 <= len(matrix) <= tasks:
        raise DataError(
            f"the matrix has {len(matrix)} rows and {tasks} columns; expected one row per trained "
            "task and one column per task, at least one of each"
        )
    A = [_padded(row, tasks) for row in matrix]
    zero = _padded(zero_shot, tasks)
    last = of_all(A[-1])
    if len(A) < tasks:
        return {name: last if name == "last" else None for name in FORMULAS}
    rows = range(tasks)
    final, diagonal = A[-1], [A[i][i] for i in rows]
    best = [of_all([A[t][i] for t in range(i, tasks - 1)], max) for i in rows[:-1]]
    before = [A[i - 1][i] for i in rows[1:]]
    return {
        "last": last,
        "mft": of_all(diagonal),
        "bwt": of_all(_differences(final[:-1], diagonal[:-1])),
        "forgetting": of_all(_differences(best, final[:-1])),
        "maa": of_all(stage_averages(A)),
        "avg": of_all([of_all([A[t][i] for t in range(i, tasks)]) for i in rows]),
        "fwt": of_all(_differences(before, zero[1:])),
    }


def stage_averages(matrix: Sequence[Row]) -> list[float | None]:
    """Average, after each training, the tasks seen so far: a_t = (1/t) sum_{i<=t} A[t][i].

    The mean of a_1, a_2 ... is MAA; one is None where a cell is missing.
    """
    seen = [_padded(row, t)[:t] for t, row in enumerate(matrix, start=1)]
    return [of_all(row) for row in seen]


def _padded(row: Row, length: int) -> list[float | None]:
    for score in row:
        if score is not None and not math.isfinite(score):
            raise DataError(f"a score in the matrix is {score}; expected a finite percentage")
    return [*row, *[None] * (length - len(row))]


def of_all(values: Row, reduce: Callable[[list[float]], float] = fmean) -> float | None:
    """Average the values (or reduce them); None where one is missing, or there is none."""
    known = [value for value in values if value is not None]
    return reduce(known) if known and len(known) == len(values) else None


def _differences(left: Row, right: Row) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(left, right, strict=True)]
