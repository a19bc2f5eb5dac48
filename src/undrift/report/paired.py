"""Two runs compared question by question, and three sources of noise: questions, seeds, orders.

What two runs of one seed and order are apart is the mean over tasks of the mean difference d_e of
their strict scores at the end. Its standard error is clustered by picture, u_e = (d_e - mean of the
task) / (T n_task): SE^2 = m/(m-1) sum over m pictures of (sum of u_e over its questions)^2.

Over cells of several seeds and orders the questions are the same ones, so more cells do not lessen
their part; seeds and orders have parts of their own. Of O x S cells, each seed under each order:
V = (MS_orders + MS_seeds - MS_rest) / (O S), as for two crossed random effects, at least the larger
of the two first parts; freedom by Satterthwaite, at least 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from undrift.report.results import Results, RunFiles, results_of
from undrift.rundir import read_record
from undrift.rundir.records import Begun

NORMAL = 1.959964  # two-sided, 5 %
POWER = 0.841621  # 80 %
RULE = (
    "Question by question, strict scores at the end; ± is half the 95 % interval over questions, "
    "clustered by picture. Could have shown: a true difference as large as this would have been "
    "above that noise in 80 of 100 such tests."
)

Question = tuple[str, str]  # the task's name, the example's id
Cell = tuple[str, int]  # order, seed


@dataclass(frozen=True)
class Answers:
    """What a run says of each question at its end.

    Args:
        strict: In [0, 1] by question; captions, which have no such score, are left out.
        picture: What a question is about; itself, where it has no picture.
    """

    strict: Mapping[Question, float]
    picture: Mapping[Question, Hashable]


@dataclass(frozen=True)
class Difference:
    """How far two runs, or several pairs of them, are apart, in points.

    Args:
        mean: The mean over tasks of the mean over questions.
        error: Its standard error over questions, clustered by picture; None for one picture.
        questions: How many were compared.
        pictures: How many they are about.
    """

    mean: float
    error: float | None
    questions: int
    pictures: int

    @property
    def detectable(self) -> float | None:
        """The least true difference that is told from none in 80 of 100 such tests."""
        return None if self.error is None else (NORMAL + POWER) * self.error

    @property
    def noise(self) -> float | None:
        """Half the 95 % interval over questions."""
        return None if self.error is None else NORMAL * self.error


def answers_of(run: Results) -> Answers:
    """Read what a finished run has answered at its end."""
    files, strict, picture = run.files, dict[Question, float](), dict[Question, Hashable]()
    begun = files.paths.root / "data.json"
    rows = read_record(begun, Begun)["rows"] if begun.is_file() else {}
    for on, task in enumerate(run.tasks, 1):
        if not files.asked(files.last_stage, on):
            continue
        of_task = rows.get(f"{task}, test", {})
        for line in files.answers(files.last_stage, on):
            if line["strict"] is not None:
                key = (task, line["id"])
                strict[key] = line["strict"]
                shown = tuple(of_task.get(line["id"], ())[1:])
                picture[key] = shown or key
    return Answers(strict, picture)


def difference(pairs: Sequence[tuple[Answers, Answers]]) -> Difference | None:
    """Compare runs question by question.

    Args:
        pairs: A run, and the one that it is compared with; several pairs are averaged first, each
            question over those that have it.

    Returns:
        The first ones above the second ones; None where no question is shared.
    """
    each: dict[Question, list[float]] = {}
    for ours, theirs in pairs:
        for key in ours.strict.keys() & theirs.strict.keys():
            each.setdefault(key, []).append(100 * (ours.strict[key] - theirs.strict[key]))
    if not each:
        return None
    by_task: dict[str, dict[Question, float]] = {}
    for key in sorted(each):
        by_task.setdefault(key[0], {})[key] = fmean(each[key])
    runs = [run for pair in pairs for run in pair]
    means = {task: fmean(found.values()) for task, found in by_task.items()}
    pictures: dict[Hashable, float] = {}
    for task, found in by_task.items():
        for key, value in found.items():
            part = (value - means[task]) / (len(found) * len(by_task))
            about = next(
                (run.picture[key] for run in runs if run.picture.get(key, key) != key), key
            )
            pictures[about] = pictures.get(about, 0.0) + part
    count = len(pictures)
    squares = math.fsum(part**2 for part in pictures.values())
    error = math.sqrt(count / (count - 1) * squares) if count > 1 else None
    return Difference(fmean(means.values()), error, len(each), count)


@dataclass(frozen=True)
class Spread:
    """The noise of a mean over seeds and orders.

    Args:
        mean: The mean of the cells.
        error: Its standard error; None where there is one cell only.
        freedom: Its degrees of freedom.
        orders: Over how many orders.
        seeds: Over how many seeds.
    """

    mean: float
    error: float | None
    freedom: float
    orders: int
    seeds: int


def spread_of(cells: Mapping[Cell, float]) -> Spread:
    """Say how far the mean over seeds and orders may be off, each a source of its own.

    Args:
        cells: A value by order and seed, at least one. Seeds that lack an order are left out of the
            error, unless all do: then the orders' means stand for one seed.

    Returns:
        The mean over all cells, and its error.
    """
    orders = list(dict.fromkeys(order for order, _ in cells))
    seeds = list(dict.fromkeys(seed for _, seed in cells))
    whole = [seed for seed in seeds if all((order, seed) in cells for order in orders)]
    mean, rows, columns = fmean(cells.values()), len(orders), len(whole)
    if not whole:
        table = [[fmean(v for (o, _), v in cells.items() if o == order)] for order in orders]
        columns = 1
    else:
        table = [[cells[order, seed] for seed in whole] for order in orders]
    if rows * columns < 2:
        return Spread(mean, None, 0, rows, columns)
    centre = fmean(value for row in table for value in row)
    by_order = [fmean(row) for row in table]
    by_seed = [fmean(column) for column in zip(*table, strict=True)]
    between_orders = columns * sum((m - centre) ** 2 for m in by_order) / max(1, rows - 1)
    between_seeds = rows * sum((m - centre) ** 2 for m in by_seed) / max(1, columns - 1)
    count = rows * columns
    if rows == 1 or columns == 1:
        error = math.sqrt((between_orders + between_seeds) / count)
        return Spread(mean, error, count - 1, rows, columns)
    free = (rows - 1) * (columns - 1)
    rest = sum(
        (value - by_order[i] - by_seed[j] + centre) ** 2
        for i, row in enumerate(table)
        for j, value in enumerate(row)
    )
    parts = (between_orders, rows - 1), (between_seeds, columns - 1), (-rest / free, free)
    total = max(sum(part for part, _ in parts), between_orders, between_seeds)
    under = sum(part**2 / freedom for part, freedom in parts)
    freedom = max(1.0, total**2 / under) if under else 1.0
    return Spread(mean, math.sqrt(total / count), freedom, rows, columns)


class Pairing:
    """Pairs the cells of a study, and remembers what each run has answered."""

    def __init__(self) -> None:
        self._known: dict[Path, Answers] = {}

    def __call__(
        self, cells: Sequence[tuple[Mapping[str, Any], Path]], against: str
    ) -> list[dict[str, Any]]:
        """Compare every row and rate of a study with one row.

        Args:
            cells: Each finished cell's entry in the results, and its run's folder.
            against: The label of that row.

        Returns:
            For each label and rate: the difference, its error over questions and its error over
            seeds and orders, what the whole could have shown, and the same of every cell.
        """
        base = {_cell(run): folder for run, folder in cells if run["label"] == against}
        rows: dict[tuple[str, float | None], dict[Cell, Path]] = {}
        for run, folder in cells:
            if run["label"] != against:
                rows.setdefault((run["label"], run["learning_rate"]), {})[_cell(run)] = folder
        found = []
        for (label, rate), own in rows.items():
            if rate is None:  # not trained: one seed stands for all
                own = {(o, s): folder for o, s in base for (p, _), folder in own.items() if p == o}
            shared = {at: (self._of(own[at]), self._of(base[at])) for at in base if at in own}
            line = paired_line(shared)
            found += [{"label": label, "learning_rate": rate, **line}] if line else []
        return found

    def _of(self, folder: Path) -> Answers:
        if folder not in self._known:
            self._known[folder] = answers_of(results_of(RunFiles(folder)))
        return self._known[folder]


def paired_line(cells: Mapping[Cell, tuple[Answers, Answers]]) -> dict[str, Any] | None:
    """Say how far two rows are apart, over all cells and in each; None without a question."""
    whole = difference(list(cells.values()))
    each = {at: found for at, pair in cells.items() if (found := difference([pair])) is not None}
    if whole is None:
        return None
    spread = spread_of({at: found.mean for at, found in each.items()})
    errors = [error for error in (whole.error, spread.error) if error is not None]
    detectable = (NORMAL + POWER) * math.hypot(*errors) if spread.error is not None else None
    return {
        "difference": _rounded(spread.mean),
        "error_questions": _rounded(whole.error),
        "error_seeds_orders": _rounded(spread.error),
        "detectable": _rounded(detectable),
        "questions": whole.questions,
        "pictures": whole.pictures,
        "cells": [
            {
                "order": order,
                "seed": seed,
                "difference": _rounded(found.mean),
                "error": _rounded(found.error),
                "detectable": _rounded(found.detectable),
            }
            for (order, seed), found in each.items()
        ],
    }


def _cell(run: Mapping[str, Any]) -> Cell:
    order = run["order"]
    return (order if isinstance(order, str) else ", ".join(order)), run["seed"]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
