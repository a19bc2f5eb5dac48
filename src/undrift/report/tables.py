"""Runs side by side in one compact table: a column a method, a mean if it has several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from undrift.report.noise import Group, grouped, half_width
from undrift.report.protocol import SEED
from undrift.report.results import PROTOCOL, Results, Row

METRICS = {
    "last": "average at the end",
    "mft": "average when just learned",
    "bwt": "backward transfer",
    "forgetting": "forgetting",
}
COSTS = {
    "stored": "parameters stored",
    "active": "parameters active",
    "state_bytes": "bytes of state",
}
BUDGET = "budget matched"
CASE_ONLY = "errors of letter case only"
TITLE = "accuracy in percent: just learned → at the end"


@dataclass(frozen=True)
class Grid:
    """The text of a comparison, cell by cell.

    Args:
        header: "task", "zero-shot", then one name per group of runs.
        tasks: One row per task: the score when just learned and at the end.
        totals: One row per metric, one for the share of errors of letter case only, and what the
            methods cost after the last task; their second cell is empty.
    """

    header: Sequence[str]
    tasks: Sequence[Sequence[str]]
    totals: Sequence[Sequence[str]]


def grid(runs: Sequence[Results]) -> Grid:
    """Lay the runs out side by side.

    Args:
        runs: The runs; those that differ in their seed only share a column.

    Returns:
        The cells as text; a mean over seeds has half its 95 % interval behind it.
    """
    groups = grouped(runs)
    names = list(dict.fromkeys(task for run in runs for task in run.tasks))
    tasks = [
        [name, number(zero_shot(runs, name)), *(_learned_and_last(g, name) for g in groups)]
        for name in names
    ]
    totals = [
        [words, "", *(spread(group.by_seed(metric).values()) for group in groups)]
        for metric, words in METRICS.items()
    ]
    totals.append([CASE_ONLY, "", *(number(_case_only(group), " %") for group in groups)])
    totals += _costs(groups)
    return Grid(["task", "zero-shot", *(group.label for group in groups)], tasks, totals)


def table(runs: Sequence[Results]) -> Table:
    """Draw the comparison for a terminal.

    Args:
        runs: The runs, one column each.

    Returns:
        A rich table, to be printed with `rich.console.Console().print`.
    """
    cells = grid(runs)
    drawn = Table(title=TITLE, caption=protocol(runs))
    for index, name in enumerate(cells.header):
        drawn.add_column(
            name.replace(" (", "\n("), justify="right" if index else "left", no_wrap=True
        )
    for row in cells.tasks:
        drawn.add_row(*row)
    drawn.add_section()
    for row in cells.totals:
        drawn.add_row(*row, style="bold" if row[0] == METRICS["last"] else None)
    return drawn


def protocol(runs: Sequence[Results]) -> str:
    """Say under which conditions the numbers were measured, and where the runs differ in them.

    Args:
        runs: The runs that are compared.

    Returns:
        Such as "pocket · order default · seed 0 and 1 (differs!) · ...".
    """
    parts = []
    for key in PROTOCOL:
        values = list(dict.fromkeys(_words(run.protocol[key]) for run in runs))
        name = "" if key == "benchmark" else f"{key} "
        trained = [group for group in grouped(runs) if group.trained]
        sides = [{_words(run.protocol[key]) for run in group.runs} for group in trained]
        differs = any(side != sides[0] for side in sides) if key == SEED else len(values) > 1
        parts.append(f"{name}{' and '.join(values)}{' (differs!)' if differs else ''}")
    bad = list(dict.fromkeys(run.facts.get("skipped", "0") for run in runs))
    if bad != ["0"]:
        parts.append(f"without {' and '.join(bad)} bad examples")
    return " · ".join(parts)


def number(value: float | None, unit: str = "") -> str:
    """Write a number with one decimal; nothing for None."""
    return "" if value is None else f"{value:z.1f}{unit}"


def thousands(number: float) -> str:
    """Write 112345 as "112k"."""
    return f"{number / 1000:.0f}k"


def spread(values: Iterable[float]) -> str:
    """Write the mean of values; of several, with half the 95 % interval."""
    known = list(values)
    if not known:
        return ""
    width = half_width(known)
    return number(fmean(known)) + ("" if width is None else f" ± {width:.1f}")


def scores_of(group: Group, task: str, row: str) -> list[float]:
    """Return a task's scores, one for each run of a group that has it.

    Args:
        group: The runs.
        task: The task.
        row: "last", "learned" or "zero_shot", or one of `results.RULES`.

    Returns:
        In percent.
    """
    found = [
        at(run, task, run.ends[row] if row in run.ends else getattr(run, row)) for run in group.runs
    ]
    return [score for score in found if score is not None]


def zero_shot(runs: Sequence[Results], task: str) -> float | None:
    """Return the untouched model's score on a task, from the first run that has measured it."""
    known = (at(run, task, run.zero_shot) for run in runs)
    return next((score for score in known if score is not None), None)


def at(run: Results, task: str, row: Row) -> float | None:
    """Return a row's score on a task; None if the run has no such task."""
    return row[run.tasks.index(task)] if task in run.tasks else None


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _learned_and_last(group: Group, task: str) -> str:
    learned, last = (scores_of(group, task, row) for row in ("learned", "last"))
    if not last:
        return ""
    return f"{number(fmean(learned))} → {number(fmean(last))}" if learned else number(fmean(last))


def _costs(groups: Sequence[Group]) -> list[list[str]]:
    rows = [[words, "", *(_cost(group, key) for group in groups)] for key, words in COSTS.items()]
    budgets = [", ".join(dict.fromkeys(run.budget for run in group.runs)) for group in groups]
    if any(budget != "none" for budget in budgets):
        rows.append([BUDGET, "", *budgets])
    return [row for row in rows if any(row[1:])]


def _cost(group: Group, key: str) -> str:
    known = [size for run in group.runs if (size := run.cost.get(key)) is not None]
    return thousands(fmean(known)) if known else ""


def _case_only(group: Group) -> float | None:
    known = [run.case_only for run in group.runs if run.case_only is not None]
    return fmean(known) if known else None
