"""The numbers of a stream without boundaries: what tasks are worth against time.

A point is a moment at which all tasks seen so far were asked: a score for each task, in percent,
None for one that had not been seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from undrift.scoring.matrix import Row, of_all

TIME_FORMULAS = {
    "last": "(1/T) sum_i A[P][i]: average of all tasks at the end",
    "anytime": "(1/P) sum_p average of the tasks seen until point p",
    "forgetting": "(1/T) sum_i (max_p A[p][i] - A[P][i]): fall from each task's best point",
}


def seen_average(points: Sequence[Row]) -> list[float | None]:
    """Average, at each point, the tasks seen so far; None where there was none."""
    return [of_all([score for score in row if score is not None]) for row in points]


def fall_from_best(points: Sequence[Row]) -> list[float | None]:
    """Average, at each point, how far the tasks seen so far are below their best until then."""
    best: dict[int, float] = {}
    falls: list[float | None] = []
    for row in points:
        known = {task: score for task, score in enumerate(row) if score is not None}
        best |= {task: max(score, best.get(task, score)) for task, score in known.items()}
        falls.append(fmean(best[t] - s for t, s in known.items()) if known else None)
    return falls


def over_time(points: Sequence[Row]) -> dict[str, float | None]:
    """Compute every metric of TIME_FORMULAS.

    Args:
        points: At least one, the last one at the end of the stream.

    Returns:
        Each in percent or points; None where a score that it needs is missing.
    """
    averages = [each for each in seen_average(points) if each is not None]
    return {
        "last": of_all(points[-1]),
        "anytime": fmean(averages) if averages else None,
        "forgetting": fall_from_best(points)[-1],
    }
