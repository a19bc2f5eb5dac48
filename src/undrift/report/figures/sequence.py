"""Lines over the sequence of tasks: scores, drift of router and experts, re-routing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from undrift.report.figures.sheet import (
    INK,
    RULES,
    Sheet,
    Style,
    key,
    sheet,
    styles,
    tell,
)

Cells = Sequence[Mapping[str, Any]]


@RULES
def curves(
    title: str, runs: Mapping[str, Sequence[Sequence[float | None]]], tasks: Sequence[str]
) -> Figure:
    """Draw how the score of each task went over the sequence.

    Args:
        title: What is drawn; becomes the accessible name.
        runs: The accuracy matrix of each run, in percent; None where nothing was measured.
        tasks: The tasks, in the order of learning.

    Returns:
        The figure: a panel a task, a line a run; runs of one row (trained once or never) are
        level lines without markers.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    looks = styles(len(runs))
    page = sheet(
        title,
        [f"{number} {task}" for number, task in enumerate(tasks, 1)] if runs else [],
        x="after learning task",
        y="accuracy, %",
        legend=key(list(runs), looks),
    )
    page.stages(len(tasks))
    page.percent()
    for index, panel in enumerate(page.axes):
        for (label, matrix), look in zip(runs.items(), looks, strict=True):
            if len(matrix) < len(tasks):
                score = matrix[-1][index] if matrix else None
                if score is not None:
                    panel.axhline(score, color=look.color, linestyle=look.linestyle)
                continue
            scores = [row[index] if index < len(row) else None for row in matrix]
            learned = {t: score for t, score in enumerate(scores, 1) if t > index}
            line(panel, learned, look, f"{label}, {tasks[index]}")
    return page.figure


@RULES
def route_drift(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw how alike the experts' shares of a task's inputs stay to those just after learning it.

    Args:
        title: What is drawn; becomes the accessible name.
        runs: The cells of each run's `diagnose/routes.json`.

    Returns:
        The figure: a panel a run, a line a task.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    page = _by_task(title, runs, "overlap", "overlap of routes, %")
    known = [c["overlap"] for cells in runs.values() for c in cells if c["overlap"] is not None]
    page.percent(min(known, default=0))
    return page.figure


@RULES
def experts(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw how far what the experts answer to a task's inputs has moved since it was learned.

    Args:
        title: What is drawn; becomes the accessible name.
        runs: The cells of each run's `diagnose/experts.json`.

    Returns:
        The figure: a panel a run, a line a task; logarithmic above 0.1.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    page = _by_task(title, runs, "moved", "relative movement, squared")
    moved = [c["moved"] for cells in runs.values() for c in cells if c["moved"] is not None]
    most = max([1.0, *moved])
    ticks = [0, *(10.0**power for power in range(-1, math.ceil(math.log10(most)) + 1))]
    for panel in page.axes:
        panel.set_yscale("symlog", linthresh=0.1)  # as a logarithm, but zero has a place
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_ylim(-0.01, 1.3 * most)
    return page.figure


@RULES
def reroute(title: str, runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw what a router trained anew on an old task finds in later experts.

    Args:
        title: What is drawn; becomes the accessible name.
        runs: What each run's `diagnose/reroute.json` holds.

    Returns:
        The figure: the task's accuracy with the new router and as it is (hollow and dotted), and
        below it how evenly the new router uses the experts; a line a run.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    looks = styles(len(runs))
    kinds = [
        Line2D([], [], color=INK, label="router trained anew"),
        Line2D([], [], color=INK, label="as it is", linestyle=_DOTTED),
    ]
    page = sheet(
        title,
        ["accuracy, %", "entropy of the new router, % of log N"] if runs else [],
        x="after learning task",
        y="",
        across=1,
        below=0.2,
        legend=[*key(list(runs), looks), *kinds],
    )
    last = max((c["after"] for run in runs.values() for c in run["cells"]), default=1)
    page.stages(last)
    page.percent()
    above, below = page.axes
    for (label, run), look in zip(runs.items(), looks, strict=True):
        name, cells = f"{label}, {run['name']}", run["cells"]
        line(above, _over(cells, "strict"), look, f"{name}, router trained anew")
        line(above, _over(cells, "as_is"), look, f"{name}, as it is", hollow=True)
        line(below, _over(cells, "entropy"), look, name)
    return page.figure


def _by_task(title: str, runs: Mapping[str, Cells], what: str, y: str) -> Sheet:
    """Draw a panel a run and a line a task."""
    cells = [cell for own in runs.values() for cell in own]
    names = {cell["task"]: f"{cell['task']} {cell['name']}" for cell in cells}
    tasks = sorted(names)
    looks = dict(zip(tasks, styles(len(tasks)), strict=True))
    legend = key([names[task] for task in tasks], list(looks.values()))
    page = sheet(title, list(runs), x="after learning task", y=y, legend=legend)
    page.stages(max((cell["after"] for cell in cells), default=1))
    for panel, (label, own) in zip(page.axes, runs.items(), strict=True):
        for task in tasks:
            values = _over([cell for cell in own if cell["task"] == task], what)
            line(panel, values, looks[task], f"{label}, {names[task]}")
    return page


def _over(cells: Cells, what: str) -> dict[int, float | None]:
    return {cell["after"]: cell[what] for cell in sorted(cells, key=lambda cell: cell["after"])}


def line(
    panel: Axes,
    values: Mapping[int, float | None],
    look: Style,
    told: str,
    *,
    hollow: bool = False,
) -> None:
    """Draw a line over stages, with a marker where something was measured.

    Args:
        panel: Where to.
        values: The value after each stage.
        look: Its style.
        told: What it says if pointed at, before its first and its last value.
        hollow: Whether it is dotted, with hollow markers.
    """
    known = {stage: value for stage, value in values.items() if value is not None}
    if not known:
        return
    (drawn,) = panel.plot(
        list(known),
        list(known.values()),
        color=look.color,
        marker=look.marker,
        linestyle=_DOTTED if hollow else look.linestyle,
        markerfacecolor="none" if hollow else look.color,
        markeredgewidth=0.6,
        clip_on=False,
    )
    first, *_, last = [*known.values(), *known.values()]
    tell(drawn, f"{told}: {first:.3g} → {last:.3g}")


_DOTTED = (0, (1, 1))
