"""Runs compared: gathered by seed, margins against the noise of the seeds, who taught whom.

The interval is Student's: mean ± t(n-1) s / sqrt(n), 95 % over n seeds, which supposes nothing but
seeds drawn independently and values that are roughly normal. The bootstrap of a study's table is
not used for a verdict: it cannot reach beyond the smallest and the largest value, and of three
normal values its 95 % interval holds the true mean 77 times in a hundred (Student's 95 times).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev, variance

from undrift.report.results import SEED, Results, Row, labels

# Student's t, 97.5 %, for 1, 2, 3 ... degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
RULE = (
    "± is half the 95 % interval over n seeds: t(n-1) s / sqrt(n), Student's t. A margin is below "
    "the noise if its interval holds 0. Where two methods share two seeds or more, s is that of "
    "the differences seed by seed; else both sides' variances add up (Welch). What is not trained "
    "has no noise. No correction for looking at many margins; other task orders and the choice of "
    "test examples are not part of this noise."
)
ONE_SEED = "not measurable: one seed"
BELOW = "below the noise"
ABOVE = "above the noise"


@dataclass(frozen=True)
class Group:
    """Runs that are alike in all that was recorded but the seed; or one run.

    Args:
        label: A name for it.
        runs: Its runs, each with a seed of its own.
    """

    label: str
    runs: Sequence[Results]

    @property
    def trained(self) -> bool:
        """Whether seeds matter to it."""
        return self.runs[0].trained

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return a metric of `undrift.scoring.FORMULAS` for each seed that has it."""
        values = {run.seed: run.metrics[metric] for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Margin:
    """How much one side is above the other.

    Args:
        mean: The mean difference.
        noise: Half its 95 % interval; None where there is one seed only.
        seeds: Over how many seeds; of two unpaired sides, the smaller number.
        paired: Whether differences were taken seed by seed.
    """

    mean: float
    noise: float | None
    seeds: int
    paired: bool

    @property
    def verdict(self) -> str:
        """ONE_SEED, BELOW or ABOVE."""
        if self.noise is None:
            return ONE_SEED
        return BELOW if abs(self.mean) <= self.noise else ABOVE


def grouped(runs: Sequence[Results]) -> list[Group]:
    """Gather runs that differ in their seed only, in the order of their first runs.

    Two runs of one seed are no group: they are a repetition, and stay beside each other.
    """
    alike: dict[tuple[object, ...], list[tuple[str, Results]]] = {}
    for label, run in zip(labels(runs), runs, strict=True):
        shared = tuple(sorted((k, v) for k, v in run.facts.items() if k != SEED))
        alike.setdefault((run.method, tuple(run.tasks), shared), []).append((label, run))
    methods = Counter(key[0] for key in alike)
    found = []
    for key, members in alike.items():
        own = [run for _, run in members]
        if len({run.seed for run in own}) < len(own) or len(own) == 1:
            found += [Group(label, [run]) for label, run in members]
        else:
            first = f", {own[0].folder.name} ..." if methods[key[0]] > 1 else ""
            found.append(Group(f"{own[0].method} ({len(own)} seeds{first})", own))
    return found


def mean_run(group: Group) -> Results:
    """Return a group's first run, with the mean of each cell that all of its runs have measured."""
    matrices = [run.matrix for run in group.runs]
    matrix = [_mean_row(rows) for rows in zip(*matrices, strict=True)]
    zero_shot = _mean_row([run.zero_shot for run in group.runs])
    return replace(group.runs[0], matrix=matrix, zero_shot=zero_shot)


def half_width(values: Sequence[float]) -> float | None:
    """Compute half the 95 % interval of a mean, t(n-1) s / sqrt(n); None for fewer than two."""
    if len(values) < 2:
        return None
    return _t(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def margin(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Margin:
    """Say how much `ours` is above `theirs`, a metric by seed, by RULE."""
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) > 1:
        each = [ours[seed] - theirs[seed] for seed in shared]
        return Margin(fmean(each), half_width(each), len(each), paired=True)
    sides = [list(ours.values()), list(theirs.values())]
    mean, seeds = fmean(sides[0]) - fmean(sides[1]), min(map(len, sides))
    if seeds < 2:
        return Margin(mean, None, seeds, paired=False)
    return Margin(mean, _welch(sides), seeds, paired=False)


def pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Return every two groups whose tasks are the same ones, the later one first."""
    two = combinations(groups, 2)
    return [(b, a) for a, b in two if set(a.runs[0].tasks) == set(b.runs[0].tasks)]


def between(ours: Group, theirs: Group, metric: str) -> Margin | None:
    """Compare two groups in one metric, by RULE; None if one of them has not got the metric."""
    a, b = ours.by_seed(metric), theirs.by_seed(metric)
    if not a or not b:
        return None
    if not ours.trained:  # it would be the same under every seed
        a = dict.fromkeys(b, fmean(a.values()))
    elif not theirs.trained:
        b = dict.fromkeys(a, fmean(b.values()))
    return margin(a, b)


def _mean_row(rows: Sequence[Row]) -> Row:
    cells = zip(*rows, strict=True)
    return [None if None in cell else fmean(v for v in cell if v is not None) for cell in cells]


def _welch(sides: Sequence[Sequence[float]]) -> float:
    """Half the 95 % interval of a difference of two means: Welch, freedom rounded down."""
    shares = [variance(values) / len(values) for values in sides]
    if not sum(shares):
        return 0.0
    spread = sum(s**2 / (len(v) - 1) for s, v in zip(shares, sides, strict=True))
    return _t(int(sum(shares) ** 2 / spread)) * math.sqrt(sum(shares))


def _t(freedom: int) -> float:
    """Student's t; beyond 30 degrees of freedom that of 30, which is a little too wide."""
    return _T[min(max(freedom, 1), len(_T)) - 1]


# ------------------------------------------------------------ who taught whom


@dataclass(frozen=True)
class Transfer:
    """What learning one task did to the others, in points; None where it was not measured.

    Lists count from 0: task 1 stands at index 0.

    Args:
        backward: Row i, column t: the effect of learning task t on task i, A[t][i] - A[t-1][i];
            None unless task i was learned before task t.
        forward: For task i the effect of all tasks before it, A[i-1][i] - A[0][i]: what the model
            could do before it learned the task, above the untouched model. None for the first.
        identified: Row t, column i: the percentage of task i's prompts that the method, which must
            find the task by itself, took for task i after learning task t. None where the method
            does not look for tasks.
    """

    backward: Sequence[Row]
    forward: Row
    identified: Sequence[Row] | None


def transfer(run: Results) -> Transfer:
    """Read off the matrix who taught whom; all None for a run without a row for each task."""
    numbers = range(len(run.tasks))
    A = [*run.matrix, *[[None] * len(run.tasks)] * (len(run.tasks) - len(run.matrix))]
    if not run.in_turn:
        A[0] = A[-1]  # the only row is the end, not the stage after the first task
    backward = [[_less(A[t][i], A[t - 1][i]) if t > i else None for t in numbers] for i in numbers]
    forward = [_less(A[i - 1][i], run.zero_shot[i]) if i else None for i in numbers]
    rows = [[run.files.identified(after + 1, on + 1) for on in numbers] for after in numbers]
    identified = rows if any(share is not None for row in rows for share in row) else None
    return Transfer(backward, forward, identified)


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
