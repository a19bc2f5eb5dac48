"""The figures of a report: heat maps, lines over the sequence of tasks, bars of what was lost.

Every function takes a title, which becomes the accessible name of the figure (papers have captions
of their own), and raises a ConfigError where there is nothing to draw. A task is counted from 1,
a score is in percent, None is what was not measured. In a heat map a cell is the accent colour at
an opacity that grows with its value, at most 0.8, so the text's own colour is readable on it.

matplotlib takes most of a second to import: import this module where figures are drawn, not at the
top of a module that a command loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

from undrift.errors import ConfigError
from undrift.report.comparison import short_number
from undrift.report.drawing import (
    ACCENT,
    COLUMN,
    INK,
    PAGE,
    SERIES,
    SOFT,
    STYLED,
    Sheet,
    Style,
    hover,
    legend_of,
    sheet,
    shortened,
    styles,
    text_width,
)

if TYPE_CHECKING:
    from undrift.report.forgetting import FormCell, RunLoss, TaskLoss

Rows = Sequence[Sequence[float | None]]
Cells = Sequence[Mapping[str, Any]]
"""The cells of a file of `undrift diagnose`."""

STRONGEST = 0.8
LOSS = "#c4561a"
_CELL = 0.19  # inches high
_BROADEST = 0.45  # inches
_BAR = 0.27  # inches a row
_DOTTED = (0, (1, 1))
_EDGE: dict[str, Any] = {"edgecolor": SOFT, "linewidth": 0.4}

# ------------------------------------------------------------ heat maps


@STYLED
def heat_map(
    title: str, tasks: Sequence[str], matrix: Rows, zero_shot: Sequence[float | None] = ()
) -> Figure:
    """Draw an accuracy matrix: a row after each task learned, a column for each task asked.

    What was just learned is framed. The scores of the untouched model are row 0, if any was
    measured; a matrix of one row was trained once or never.
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
                inside = (column + 0.04, down + 0.04)
                panel.add_patch(
                    Rectangle(inside, 0.92, 0.92, fill=False, edgecolor=INK, clip_on=False)
                )
    return page.figure


@STYLED
def effects(title: str, tasks: Sequence[str], rows: Rows) -> Figure:
    """Draw who taught whom: a row for each task learned, the points that others gained or lost.

    Gains and losses have colours and signs of their own.
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


@STYLED
def expert_use(title: str, routes: Mapping[str, Any]) -> Figure:
    """Draw which experts each task's inputs use, at a first, a middle and a last linear.

    Of `diagnose/routes.json` the latest cell of each task is drawn: a panel a linear, a row a task,
    a column an expert.
    """
    latest = {cell["task"]: cell for cell in sorted(routes["cells"], key=lambda c: c["after"])}
    cells = [latest[task] for task in sorted(latest)]
    names = [f"{cell['task']} {cell['name']}" for cell in cells]
    linears, experts = routes["linears"], routes["experts"]
    picked = sorted({0, len(linears) // 2, len(linears) - 1}) if linears and cells else []
    page = sheet(
        title,
        [_short_linear(linears[index]) for index in picked],
        x="expert  (cells: share of the route, %, where it is above an even one)",
        y="",
        left=0.06 + text_width(names),
        height=_CELL * len(cells),
        across=3,
    )
    even = 1 / max(experts, 1)
    most = max((s for cell in cells for i in picked for s in cell["use"][i]), default=1.0)
    for panel, index in zip(page.axes, picked, strict=True):
        _ruled(panel, experts, names)
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
    left = 0.08 + text_width(rows)
    page = sheet(
        title,
        [""],
        x=x,
        y=y if len(rows) > 3 else "",
        left=left,
        height=_CELL * len(rows),
        above=text_width(names),
        below=0.0,
        right=max(0.1, COLUMN - left - 0.17 - _BROADEST * len(tasks)),
        width=COLUMN if len(tasks) <= 12 else PAGE,
    )
    (panel,) = page.axes
    _ruled(panel, len(tasks), rows)
    panel.tick_params(labeltop=True, labelbottom=False)
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
    panel: Axes, column: int, row: int, share: float, number: str, text: str, color: str = ACCENT
) -> None:
    cell = Rectangle((column, row), 1, 1, facecolor=color, alpha=STRONGEST * share, clip_on=False)
    cell.set_linewidth(0)
    hover(cell, text)
    panel.add_artist(cell)
    panel.text(column + 0.5, row + 0.5, number, ha="center", va="center_baseline")


def _short_linear(linear: str) -> str:
    """Name a linear by its layer and its own name: "layer 3 down_proj"."""
    found = re.search(r"\.(\d+)\.(?:.*\.)?(\w+)$", linear)
    return f"layer {found[1]} {found[2]}" if found else linear


# ------------------------------------------------------------ lines over the sequence of tasks


@STYLED
def curves(title: str, runs: Mapping[str, Rows], tasks: Sequence[str]) -> Figure:
    """Draw how the score of each task went over the sequence: a panel a task, a line a run.

    Runs are accuracy matrices by label; one of one row (trained once or never) is a level line
    without markers.
    """
    looks = styles(len(runs))
    page = sheet(
        title,
        [f"{number} {task}" for number, task in enumerate(tasks, 1)] if runs else [],
        x="after learning task",
        y="accuracy, %",
        legend=legend_of(list(runs), looks),
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
            _line(panel, learned, look, f"{label}, {tasks[index]}")
    return page.figure


@STYLED
def route_drift(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw how alike the experts' shares of a task's inputs stay to those just after learning it.

    The cells are those of each run's `diagnose/routes.json`: a panel a run, a line a task.
    """
    page = _by_task(title, runs, "overlap", "overlap of routes, %")
    known = [c["overlap"] for cells in runs.values() for c in cells if c["overlap"] is not None]
    page.percent(min(known, default=0))
    return page.figure


@STYLED
def expert_movement(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw how far what the experts answer to a task's inputs has moved since it was learned.

    The cells are those of each run's `diagnose/experts.json`: a panel a run, a line a task;
    logarithmic above 0.1.
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


@STYLED
def reroute(title: str, runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw what a router trained anew on an old task finds in later experts; a line a run.

    Of each run's `diagnose/reroute.json`: above, the accuracy with the new router and as it is
    (hollow and dotted); below, how evenly the new router uses the experts.
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
        legend=[*legend_of(list(runs), looks), *kinds],
    )
    page.stages(max((c["after"] for run in runs.values() for c in run["cells"]), default=1))
    page.percent()
    above, below = page.axes
    for (label, run), look in zip(runs.items(), looks, strict=True):
        name, cells = f"{label}, {run['name']}", run["cells"]
        _line(above, _by_stage(cells, "strict"), look, f"{name}, router trained anew")
        _line(above, _by_stage(cells, "as_is"), look, f"{name}, as it is", hollow=True)
        _line(below, _by_stage(cells, "entropy"), look, name)
    return page.figure


_RULES = {
    "strict": "strict: as the benchmark counts",
    "lenient": "lenient: the content alone",
    "form": "form: in the form asked for",
}


@STYLED
def form_scores(title: str, cells: Sequence[FormCell], task: int) -> Figure:
    """Draw one task's strict, lenient and form scores over the sequence, from a run's cells."""
    own, names = _of_task(cells, task)
    looks = styles(len(_RULES))
    page = sheet(
        title,
        names,
        x="after learning task",
        y="share of answers, %",
        legend=legend_of(list(_RULES.values()), looks),
        across=1,
    )
    page.stages(max(cell.after for cell in own))
    page.percent()
    for rule, look in zip(_RULES, looks, strict=True):
        _line(page.axes[0], {cell.after: getattr(cell, rule) for cell in own}, look, rule)
    return page.figure


def _speed(entry: Mapping[str, Any]) -> float | None:
    tokens, seconds = entry.get("tokens"), entry.get("seconds")
    return tokens / seconds if tokens is not None and seconds else None


def _resting(entry: Mapping[str, Any]) -> float | None:
    return fmean(entry["resting"].values()) if entry.get("resting") else None


_COSTS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "training, seconds": lambda entry: entry.get("seconds"),
    "peak memory, bytes": lambda entry: entry.get("peak_bytes"),
    "speed, tokens a second": _speed,
    "state, bytes": lambda entry: entry.get("state_bytes"),
    "experts at rest, mean": _resting,
}


@STYLED
def costs(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw what training each task cost: a panel for each cost that was recorded, a line a run.

    Runs are what each `manifest.json` has in "budget", an entry a task.
    """
    found: dict[str, dict[str, list[float | None]]] = {}
    for kind, read in _COSTS.items():
        own = {label: [read(entry) for entry in run] for label, run in runs.items()}
        if any(value is not None for values in own.values() for value in values):
            found[kind] = own
    if not found:
        raise ConfigError(
            f"nothing to draw for {title!r}: no run has recorded what it cost; leave it out"
        )
    looks = styles(len(runs))
    page = sheet(
        title,
        list(found),
        x="task",
        y="",
        left=0.4,
        below=0.2,
        legend=legend_of(list(runs), looks),
        across=min(3, len(found)),
        share=False,
    )
    page.stages(max(len(values) for own in found.values() for values in own.values()))
    for panel, (kind, own) in zip(page.axes, found.items(), strict=True):
        for (label, values), look in zip(own.items(), looks, strict=True):
            _line(panel, dict(enumerate(values, 1)), look, f"{label}, {kind}")
        known = [value for values in own.values() for value in values if value is not None]
        panel.yaxis.set_major_formatter(lambda value, _: short_number(value))
        panel.set_ylim(0, 1.08 * max(known) or 1)
    return page.figure


def _by_task(title: str, runs: Mapping[str, Cells], what: str, y: str) -> Sheet:
    """Draw a panel a run and a line a task."""
    cells = [cell for own in runs.values() for cell in own]
    names = {cell["task"]: f"{cell['task']} {cell['name']}" for cell in cells}
    tasks = sorted(names)
    looks = dict(zip(tasks, styles(len(tasks)), strict=True))
    legend = legend_of([names[task] for task in tasks], list(looks.values()))
    page = sheet(title, list(runs), x="after learning task", y=y, legend=legend)
    page.stages(max((cell["after"] for cell in cells), default=1))
    for panel, (label, own) in zip(page.axes, runs.items(), strict=True):
        for task in tasks:
            values = _by_stage([cell for cell in own if cell["task"] == task], what)
            _line(panel, values, looks[task], f"{label}, {names[task]}")
    return page


def _by_stage(cells: Cells, what: str) -> dict[int, float | None]:
    return {cell["after"]: cell[what] for cell in sorted(cells, key=lambda cell: cell["after"])}


def _line(
    panel: Axes,
    values: Mapping[int, float | None],
    look: Style,
    name: str,
    *,
    hollow: bool = False,
) -> None:
    """Draw a line over stages, with a marker where something was measured."""
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
    hover(drawn, f"{name}: {first:.3g} → {last:.3g}")


# ------------------------------------------------------------ bars

_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++")
_CONTENT = "wrong content"


class _Look(NamedTuple):
    name: str
    color: str
    hatch: str


_CAUSES = {
    "router": _Look("router", SERIES[0], ""),
    "expert": _Look("experts", SERIES[1], "////"),
    "content": _Look("router or experts", SERIES[9], ""),
    "form": _Look("form", SERIES[4], "\\\\\\\\"),
    "lost": _Look("cause not known", SERIES[9], "xxxx"),
}


@STYLED
def shares(title: str, losses: Sequence[RunLoss]) -> Figure:
    """Draw the points that each run lost, mean over tasks, and to what: a stacked bar a run.

    A cause that won points back reaches left of zero.
    """
    bars = [(loss.label, loss) for loss in losses]
    return _stacked(title, bars, "points lost since learning, mean over tasks")


@STYLED
def task_shares(title: str, loss: RunLoss) -> Figure:
    """Draw the points that a run lost on each task, and to what, as in `shares`."""
    bars = [(f"{task.task} {task.name}", task) for task in loss.tasks]
    return _stacked(title, bars, "points lost since learning")


def _parts(loss: RunLoss | TaskLoss) -> dict[str, float]:
    """Split a loss as far as it is known."""
    if loss.lost is None:
        return {}
    if loss.form is None:
        return {"lost": loss.lost}
    if loss.router is None or loss.expert is None:
        return {"content": loss.lost - loss.form, "form": loss.form}
    return {"router": loss.router, "expert": loss.expert, "form": loss.form}


def _stacked(title: str, bars: Sequence[tuple[str, RunLoss | TaskLoss]], x: str) -> Figure:
    known = {cause for _, loss in bars for cause in _parts(loss)}
    legend = [_patch(look) for cause, look in _CAUSES.items() if cause in known]
    names = [shortened(name, 1.1) for name, _ in bars]
    page = sheet(
        title,
        [""] if bars else [],
        x=x,
        y="",
        left=0.06 + text_width(names),
        right=0.36,
        height=_BAR * len(bars),
        legend=legend,
    )
    (panel,) = page.axes
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)
    panel.set_yticks(range(len(bars)), names)
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.spines["left"].set_visible(False)
    panel.axvline(0, color=SOFT, linewidth=0.6)
    ends = [end for row, (name, loss) in enumerate(bars) for end in _bar(panel, row, name, loss)]
    low, high = min([0.0, *ends]), max([1.0, *ends])
    panel.set_xlim(low - (0.02 * (high - low) if low < 0 else 0), high * 1.02)
    for row, (_, loss) in enumerate(bars):
        text = "" if loss.lost is None else f"{loss.lost:.1f}".replace("-", "−")
        panel.annotate(
            text, (1, row), (3, 0), xycoords=panel.get_yaxis_transform(),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    return page.figure


def _bar(panel: Axes, row: int, name: str, loss: RunLoss | TaskLoss) -> tuple[float, float]:
    """Stack what was lost to the right of zero and what was won back to the left."""
    right = left = 0.0
    for cause, points in _parts(loss).items():
        look = _CAUSES[cause]
        start = right if points >= 0 else left
        (drawn,) = panel.barh(row, points, 0.62, start, color=look.color, hatch=look.hatch, **_EDGE)
        hover(drawn, f"{name}, {look.name}: {points:.1f} points")
        right, left = (start + points, left) if points >= 0 else (right, start + points)
    if loss.lost is not None and left < 0:
        (mark,) = panel.plot(loss.lost, row, marker="|", color=INK, markersize=9)
        hover(mark, f"{name}: {loss.lost:.1f} points in all")
    return left, right


@STYLED
def form_errors(title: str, cells: Sequence[FormCell], task: int) -> Figure:
    """Draw one task's wrong answers over the sequence, by kind: a stacked bar a stage."""
    own, names = _of_task(cells, task)
    kinds = [_CONTENT, *dict.fromkeys(kind for cell in own for kind in cell.errors)]
    looks = {
        kind: _Look(kind, SERIES[n % len(SERIES) - 1], _HATCHES[n % len(_HATCHES)])
        for n, kind in enumerate(kinds)
    }
    legend = [_patch(look) for look in looks.values()]
    page = sheet(title, names, x="after learning task", y="wrong answers", legend=legend, across=1)
    (panel,) = page.axes
    page.stages(max(cell.after for cell in own))
    panel.grid(visible=False, axis="x")
    panel.set_ylim(0, 1.05 * max(1, *(cell.wrong for cell in own)))
    for cell in own:
        base = 0
        content = cell.wrong - sum(cell.errors.values())
        for kind, count in {_CONTENT: content, **cell.errors}.items():
            look = looks[kind]
            (bar,) = panel.bar(
                cell.after, count, 0.7, base, color=look.color, hatch=look.hatch, **_EDGE
            )
            hover(bar, f"after task {cell.after}, {kind}: {count} of {cell.wrong} wrong answers")
            base += count
    return page.figure


def _patch(look: _Look) -> Patch:
    return Patch(facecolor=look.color, hatch=look.hatch, label=look.name, **_EDGE)


def _of_task(cells: Sequence[FormCell], task: int) -> tuple[list[FormCell], list[str]]:
    """Pick a task's cells in the order of the stages, and the panel's heading if there are any."""
    own = sorted((cell for cell in cells if cell.task == task), key=lambda cell: cell.after)
    return own, [f"{task} {own[0].name}"] if own else []
