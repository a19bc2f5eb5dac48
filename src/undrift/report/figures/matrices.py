"""Tables drawn as heat maps: accuracy after each task, what learning a task did, use of experts.

A cell is the accent colour at an opacity that grows with its value, at most 0.8, so the text's own
colour is readable on every cell: black on what is lighter than the accent, white on what is darker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from undrift.errors import ConfigError
from undrift.report.figures.sheet import (
    ACCENT,
    COLUMN,
    INK,
    PAGE,
    RULES,
    Sheet,
    broad,
    sheet,
    tell,
)

STRONGEST = 0.8
LOSS = "#c4561a"
_CELL = 0.19  # inches high
_BROADEST = 0.45  # inches
Rows = Sequence[Sequence[float | None]]


@RULES
def heat_map(
    title: str, tasks: Sequence[str], matrix: Rows, zero_shot: Sequence[float | None] = ()
) -> Figure:
    """Draw an accuracy matrix: a row after each task learned, a column for each task asked.

    Args:
        title: What is drawn; becomes the accessible name.
        tasks: Column names, in the order of learning.
        matrix: Scores in percent, None where nothing was measured.
        zero_shot: The scores of the untouched model, drawn as row 0 if any was measured.

    Returns:
        The figure; what was just learned is framed.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    one_row = len(matrix) < len(tasks)
    rows = [("end" if one_row else str(t), row) for t, row in enumerate(matrix, 1)]
    if any(score is not None for score in zero_shot):
        rows.insert(0, ("0", zero_shot))
    names = [name for name, _ in rows]
    page = _grid(title, tasks, names, "task asked  (cells: accuracy, %)")
    (panel,) = page.axes
    for down, (name, row) in enumerate(rows):
        when = "at the end" if one_row and name != "0" else f"after task {name}"
        for column, score in enumerate(row):
            if score is not None:
                text = f"{tasks[column]} {when}: {score:.1f} %"
                _cell(panel, column, down, score / 100, f"{score:.0f}", text)
            if score is not None and name == str(column + 1):
                panel.add_patch(_frame(column, down))
    return page.figure


@RULES
def effects(title: str, tasks: Sequence[str], rows: Rows) -> Figure:
    """Draw who taught whom: what learning a task did to the score on another.

    Args:
        title: What is drawn; becomes the accessible name.
        tasks: The tasks, in the order of learning.
        rows: A row for each task learned: the points that each task gained or lost by it, None
            where that was not measured.

    Returns:
        The figure; gains and losses have colours and signs of their own.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    names = [str(t) for t in range(1, len(rows) + 1)]
    page = _grid(title, tasks, names, "task asked  (cells: change, points)", "by learning task")
    (panel,) = page.axes
    for down, row in enumerate(rows):
        for column, points in enumerate(row):
            if points is not None:
                sign = "+" if points > 0.5 else "−" if points < -0.5 else ""
                text = f"{tasks[column]}, by learning {tasks[down]}: {points:+.1f} points"
                color = LOSS if points < 0 else ACCENT
                share = min(1.0, abs(points) / 50)
                _cell(panel, column, down, share, f"{sign}{abs(points):.0f}", text, color)
    return page.figure


@RULES
def use(title: str, routes: Mapping[str, Any]) -> Figure:
    """Draw which experts each task's inputs use, at a first, a middle and a last linear.

    Args:
        title: What is drawn; becomes the accessible name.
        routes: What `diagnose/routes.json` holds; of each task, the latest cell is drawn.

    Returns:
        The figure: a panel a linear, a row a task, a column an expert.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    latest = {cell["task"]: cell for cell in sorted(routes["cells"], key=lambda c: c["after"])}
    cells = [latest[task] for task in sorted(latest)]
    linears, experts = routes["linears"], routes["experts"]
    picked = sorted({0, len(linears) // 2, len(linears) - 1}) if linears and cells else []
    page = sheet(
        title,
        [_short(linears[index]) for index in picked],
        x="expert  (cells: share of the route, %, where it is above an even one)",
        y="",
        left=0.06 + broad([_named(cell) for cell in cells]),
        height=_CELL * len(cells),
        across=3,
    )
    even = 1 / max(experts, 1)
    most = max((s for cell in cells for i in picked for s in cell["use"][i]), default=1.0)
    for panel, index in zip(page.axes, picked, strict=True):
        _ruled(panel, experts, [_named(cell) for cell in cells])
        panel.set_xticks([e + 0.5 for e in range(experts)], [str(e + 1) for e in range(experts)])
        for down, cell in enumerate(cells):
            for expert, share in enumerate(cell["use"][index]):
                text = f"{cell['name']}, expert {expert + 1}: {100 * share:.1f} %"
                number = f"{100 * share:.0f}" if share >= even and experts <= 12 else ""
                _cell(panel, expert, down, share / max(most, 1e-9), number, text)
    return page.figure


def _grid(
    title: str, tasks: Sequence[str], rows: Sequence[str], x: str, y: str = "after learning task"
) -> Sheet:
    """Make the one panel of a table, with the tasks' names above it."""
    if not rows or not tasks:
        raise ConfigError(f"nothing to draw for {title!r}: no row has been measured")
    names = [f"{number} {task}" for number, task in enumerate(tasks, 1)]
    left = 0.08 + broad(rows)
    page = sheet(
        title,
        [""],
        x=x,
        y=y if len(rows) > 3 else "",
        left=left,
        height=_CELL * len(rows),
        above=broad(names),
        below=0.0,
        right=max(0.1, COLUMN - left - 0.17 - _BROADEST * len(tasks)),
        width=COLUMN if len(tasks) <= 12 else PAGE,
    )
    (panel,) = page.axes
    _ruled(panel, len(tasks), rows)
    panel.xaxis.tick_top()
    panel.set_xticks([i + 0.5 for i in range(len(tasks))], names, rotation=90)
    return page


def _ruled(panel: Axes, columns: int, rows: Sequence[str]) -> None:
    """Prepare a panel for cells: the first row on top, no ticks, no frame."""
    panel.grid(visible=False)
    panel.tick_params(left=False, top=False, bottom=False)
    panel.set_xlim(0, columns)
    panel.set_ylim(len(rows), 0)
    panel.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    for spine in panel.spines.values():
        spine.set_visible(False)


def _cell(
    panel: Axes,
    column: int,
    row: int,
    share: float,
    number: str,
    told: str,
    color: str = ACCENT,
) -> None:
    cell = Rectangle((column, row), 1, 1, facecolor=color, alpha=STRONGEST * share, clip_on=False)
    cell.set_linewidth(0)
    tell(cell, told)
    panel.add_artist(cell)
    panel.text(column + 0.5, row + 0.5, number, ha="center", va="center_baseline")


def _frame(column: int, row: int) -> Rectangle:
    inside = (column + 0.04, row + 0.04)
    return Rectangle(inside, 0.92, 0.92, fill=False, edgecolor=INK, clip_on=False)


def _named(cell: Mapping[str, Any]) -> str:
    return f"{cell['task']} {cell['name']}"


def _short(linear: str) -> str:
    """Name a linear by its layer and its own name: "layer 3 down_proj"."""
    found = re.search(r"\.(\d+)\.(?:.*\.)?(\w+)$", linear)
    return f"layer {found[1]} {found[2]}" if found else linear
