"""Statistics of a study: means over orders, bootstrap intervals and paired differences."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

RESAMPLES = 10_000

Run = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Pairs:
    """One row against another.

    Args:
        mean: The mean difference in `last`.
        interval: Its 95 % interval over seeds; None where there is one seed only.
        wins: In how many pairs the row is better.
        count: How many pairs there are.
    """

    mean: float
    interval: Interval | None
    wins: int
    count: int


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Estimate the 95 % interval of a mean: the percentile bootstrap.

    Args:
        values: One per seed.
        resamples: How often as many values are drawn with replacement.
        seed: Of the drawing, so that the interval is the same every time.

    Returns:
        The 2.5th and the 97.5th percentile of the means.
    """
    return _bootstrap(tuple(values), resamples, seed)


def by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Average a metric over orders, so that each seed gives one value; None is left out."""
    seeds = dict.fromkeys(run["seed"] for run in runs if run[metric] is not None)
    return {
        seed: fmean(r[metric] for r in runs if r["seed"] == seed and r[metric] is not None)
        for seed in seeds
    }


def pairs(runs: Sequence[Run], against: Sequence[Run]) -> Pairs | None:
    """Compare two rows in `last`, each run with the one of the same seed and order.

    Args:
        runs: The runs of a row. What is not trained has one seed, which stands for all.
        against: The runs of the row it is compared with.

    Returns:
        The comparison, or None if no two runs have seed and order in common.
    """
    ours, theirs = ({_pair(run): run["last"] for run in group} for group in (runs, against))
    if all(run["learning_rate"] is None for run in runs):
        ours = {(s, o): last for s, _ in theirs for (_, o), last in ours.items()}
    common = {key: ours[key] - theirs[key] for key in theirs if key in ours}
    if not common:
        return None
    seeds = dict.fromkeys(seed for seed, _ in common)
    values = [fmean(v for key, v in common.items() if key[0] == seed) for seed in seeds]
    return Pairs(
        fmean(common.values()),
        bootstrap(values) if len(values) > 1 else None,
        sum(value > 0 for value in common.values()),
        len(common),
    )


def groups(runs: Iterable[Run]) -> dict[tuple[str, float | None], list[Run]]:
    """Gather the runs by label and rate, in the order in which they come."""
    out: dict[tuple[str, float | None], list[Run]] = {}
    for run in runs:
        out.setdefault((run["label"], run["learning_rate"]), []).append(run)
    return out


@cache  # the table is written after every cell, and most rows have not changed
def _bootstrap(values: tuple[float, ...], resamples: int, seed: int) -> Interval:
    draw, count = random.Random(seed), len(values)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(resamples))
    return _percentile(means, 0.025), _percentile(means, 0.975)


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _pair(run: Run) -> tuple[int, str]:
    return run["seed"], words(run["order"])


def words(order: str | Sequence[str]) -> str:
    """Write an order as one text."""
    return order if isinstance(order, str) else ", ".join(order)
