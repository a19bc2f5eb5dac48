"""Runs side by side: one table for the terminal, the same one in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from undrift.report.results import PROTOCOL, Results, labels

METRICS = {
    "last": "average at the end",
    "mft": "average when just learned",
    "bwt": "backward transfer",
    "forgetting": "forgetting",
}
CASE_ONLY = "errors of letter case only"


@dataclass(frozen=True)
class Grid:
    """The text of a comparison, cell by cell.

    Args:
        header: "task", "zero-shot", then one name per run.
        tasks: One row per task: the score when just learned and at the end.
        totals: One row per metric, and one for the share of errors of letter case only; their
            second cell is empty.
    """

    header: Sequence[str]
    tasks: Sequence[Sequence[str]]
    totals: Sequence[Sequence[str]]


def grid(runs: Sequence[Results]) -> Grid:
    """Lay the runs out side by side.

    Args:
        runs: The runs, one column each.

    Returns:
        The cells as text.
    """
    names = list(dict.fromkeys(task for run in runs for task in run.tasks))
    tasks = [
        [name, next((zero for run in runs if (zero := _zero_shot(run, name))), "")]
        + [_learned_and_last(run, name) for run in runs]
        for name in names
    ]
    totals = [
        [words, "", *(_number(run.metrics[metric]) for run in runs)]
        for metric, words in METRICS.items()
    ]
    totals.append([CASE_ONLY, "", *(_number(run.case_only, " %") for run in runs)])
    return Grid(["task", "zero-shot", *labels(runs)], tasks, totals)


def table(runs: Sequence[Results]) -> Table:
    """Draw the comparison for a terminal.

    Args:
        runs: The runs, one column each.

    Returns:
        A rich table, to be printed with `rich.console.Console().print`.
    """
    cells = grid(runs)
    drawn = Table(title="accuracy in percent: just learned → at the end", caption=protocol(runs))
    for index, name in enumerate(cells.header):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in cells.tasks:
        drawn.add_row(*row)
    drawn.add_section()
    for row in cells.totals:
        drawn.add_row(*row, style="bold" if row[0] == METRICS["last"] else None)
    return drawn


def markdown(runs: Sequence[Results]) -> str:
    """Write the comparison as a Markdown table.

    Args:
        runs: The runs, one column each.

    Returns:
        The table and a line with the protocol, ending in a newline.
    """
    cells = grid(runs)
    rule = ["---", *["---:"] * (len(cells.header) - 1)]
    lines = [cells.header, rule, *cells.tasks, *([f"*{r[0]}*", *r[1:]] for r in cells.totals)]
    text = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)
    return f"{text}\n\nJust learned → at the end, in percent. {protocol(runs)}\n"


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
        parts.append(f"{name}{' and '.join(values)}{' (differs!)' if len(values) > 1 else ''}")
    return " · ".join(parts)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _zero_shot(run: Results, task: str) -> str:
    return _number(run.zero_shot[run.tasks.index(task)]) if task in run.tasks else ""


def _learned_and_last(run: Results, task: str) -> str:
    if task not in run.tasks:
        return ""
    index = run.tasks.index(task)
    last, learned = _number(run.last[index]), _number(run.learned[index])
    return f"{learned} → {last}" if learned else last


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:z.1f}{unit}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
