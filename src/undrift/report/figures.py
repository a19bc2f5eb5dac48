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
from dataclasses import asdict, replace
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

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
Values = Mapping[int, float | None]
"""What was measured, by the number of tasks learned."""

Cells = Sequence[Mapping[str, Any]]
"""The cells of a file of `undrift diagnose`."""

STRONGEST = 0.8
LOSS = "#c4561a"
_CELL = 0.19  # inches high
_BROADEST = 0.45  # inches
_BAR = 0.27  # inches a row
_DOTTED = (0, (1, 1))

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
            if score is None:
                continue
            text = f"{tasks[column]} {when}: {score:.1f} %"
            _cell(panel, column, down, score / 100, f"{score:.0f}", text)
            if name == str(column + 1):
                inside = (column + 0.04, down + 0.04)
                frame = Rectangle(inside, 0.92, 0.92, fill=False, edgecolor=INK, clip_on=False)
                panel.add_patch(frame)
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
    names = [f"{number} {task}" for number, task in enumerate(tasks, 1)]
    left = 0.08 + text_width(rows)
    page = sheet(
        title,
        [""] if rows and tasks else [],
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
    in_turn = {label: matrix for label, matrix in runs.items() if len(matrix) == len(tasks)}
    panels = {
        f"{index + 1} {task}": {
            label: {t: row[index] for t, row in enumerate(matrix, 1) if t > index}
            for label, matrix in in_turn.items()
        }
        for index, task in enumerate(tasks if runs else ())
    }
    across = 2 if len(panels) == 3 else None  # a column wide, beside a table
    page = _lines(title, panels, list(runs), y="accuracy, %", stages=len(tasks), across=across)
    page.percent()
    for (label, matrix), look in zip(runs.items(), styles(len(runs)), strict=True):
        level = matrix[-1] if matrix and label not in in_turn else ()
        for panel, score in zip(page.axes, level, strict=False):
            if score is not None:
                panel.axhline(score, color=look.color, linestyle=look.linestyle)
    return page.figure


@STYLED
def training_loss(
    title: str, logs: Mapping[str, Mapping[str, Values]], runs: Sequence[str]
) -> Figure:
    """Draw how the loss fell while a task was learned: a panel a task, a line a run, over steps."""
    looks = dict(zip(runs, styles(len(runs)), strict=True))
    legend = legend_of(looks) if len(runs) > 1 else []
    page = sheet(title, list(logs), x="step", y="loss", legend=legend)
    highest = max((v for own in logs.values() for line in own.values() for v in line.values() if v),
                  default=1.0)  # fmt: skip
    for panel, (heading, lines) in zip(page.axes, logs.items(), strict=True):
        for label, values in lines.items():
            _line(panel, values, looks[label], f"{label}, {heading}: loss")
        panel.set_ylim(0, 1.08 * highest)
        panel.set_xlim(left=0)
    return page.figure


@STYLED
def route_drift(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw how alike the experts' shares of a task's inputs stay to those just after learning it.

    The cells are those of each run's `diagnose/routes.json`: a panel a run, a line a task.
    """
    page = _by_task(title, runs, "overlap", "overlap of routes, %")
    page.percent(min(_known(runs, "overlap"), default=0))
    return page.figure


@STYLED
def expert_movement(title: str, runs: Mapping[str, Cells]) -> Figure:
    """Draw how far what the experts answer to a task's inputs has moved since it was learned.

    The cells are those of each run's `diagnose/experts.json`: a panel a run, a line a task;
    logarithmic above 0.1.
    """
    page = _by_task(title, runs, "moved", "relative movement, squared")
    most = max([1.0, *_known(runs, "moved")])
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
    cells = {f"{label}, {run['name']}": run["cells"] for label, run in runs.items()}
    kinds = {"accuracy, %": "strict", "entropy of the new router, % of log N": "entropy"}
    panels = {
        heading: {name: _by_stage(own, kind) for name, own in cells.items()}
        for heading, kind in kinds.items()
        if runs
    }
    two = [
        Line2D([], [], color=INK, label="router trained anew"),
        Line2D([], [], color=INK, label="as it is", linestyle=_DOTTED),
    ]
    page = _lines(title, panels, list(cells), two, y="", across=1, below=0.2)
    page.percent()
    for (name, own), look in zip(cells.items(), styles(len(cells)), strict=True):
        hollow = replace(look, linestyle=_DOTTED)
        _line(page.axes[0], _by_stage(own, "as_is"), hollow, f"{name}, as it is", fill="none")
    return page.figure


@STYLED
def against_time(title: str, stream: Mapping[str, Any]) -> Figure:
    """Draw a stream, of `stream.json`: each task's accuracy over the steps, and its share below."""
    tasks, steps = stream["tasks"], stream["steps"]
    looks = dict(zip(tasks, styles(len(tasks)), strict=True))
    panels = ["accuracy, %", "share of the stream, %"] if stream["points"] else []
    page = sheet(title, panels, x="step", y="", legend=legend_of(looks), across=1, below=0.2)
    page.percent()
    above, below = page.axes
    ends = [0, *(each["step"] for each in stream["mix"])]
    middles = [(start + end) / 2 for start, end in pairwise(ends)]
    floor = [0.0] * (len(middles) + 2)
    for place, (task, look) in enumerate(looks.items()):
        scores = {each["step"]: each["scores"][place] for each in stream["points"]}
        _line(above, scores, look, task)
        own = [100 * each["shares"][place] for each in stream["mix"]]
        top = [low + share for low, share in zip(floor, [own[0], *own, own[-1]], strict=True)]
        area = below.fill_between(
            [0, *middles, steps], floor, top, color=look.color, alpha=STRONGEST, linewidth=0
        )
        hover(area, f"{task}: {max(own):.0f} % of the stream where it has most of it")
        floor = top
    for panel in page.axes:
        panel.set_xlim(0, 1.03 * steps)
    below.set_ylim(0, 100)
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
    lines = {
        text: {cell.after: getattr(cell, rule) for cell in own} for rule, text in _RULES.items()
    }
    panels = dict.fromkeys(names, lines)
    page = _lines(title, panels, list(lines), y="share of answers, %", across=1)
    page.percent()
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
    panels: dict[str, Mapping[str, Values]] = {}
    most: list[float] = []
    for kind, read in _COSTS.items():
        own = {label: dict(enumerate(map(read, run), 1)) for label, run in runs.items()}
        known = [v for values in own.values() for v in values.values() if v is not None]
        if known:
            panels[kind] = own
            most.append(max(known))
    across = min(4, len(panels))
    page = _lines(
        title, panels, list(runs), x="task", y="", left=0.4, below=0.2, across=across, share=False
    )
    for panel, highest in zip(page.axes, most, strict=True):
        panel.yaxis.set_major_formatter(lambda value, _: short_number(value))
        panel.set_ylim(0, 1.08 * highest or 1)
    return page.figure


def _by_task(title: str, runs: Mapping[str, Cells], what: str, y: str) -> Sheet:
    """Draw a panel a run and a line a task."""
    tasks = sorted({(cell["task"], cell["name"]) for own in runs.values() for cell in own})
    panels = {
        label: {
            f"{task} {name}": _by_stage([cell for cell in own if cell["task"] == task], what)
            for task, name in tasks
        }
        for label, own in runs.items()
    }
    return _lines(title, panels, [f"{task} {name}" for task, name in tasks], y=y)


def _by_stage(cells: Cells, what: str) -> Values:
    return {cell["after"]: cell[what] for cell in sorted(cells, key=lambda cell: cell["after"])}


def _known(runs: Mapping[str, Cells], what: str) -> list[float]:
    return [cell[what] for own in runs.values() for cell in own if cell[what] is not None]


def _lines(
    title: str,
    panels: Mapping[str, Mapping[str, Values]],
    names: Sequence[str],
    more: Sequence[Line2D] = (),
    *,
    x: str = "after learning task",
    stages: int = 1,
    **layout: Any,
) -> Sheet:
    """Draw lines over stages, panel by panel; every name has its look, and `more` is a legend."""
    looks = dict(zip(names, styles(len(names)), strict=True))
    legend = [*legend_of(looks), *more] if len(names) > 1 or more else []  # one needs no key
    page = sheet(title, list(panels), x=x, legend=legend, **layout)
    seen = [stage for own in panels.values() for values in own.values() for stage in values]
    page.stages(max([stages, *seen]))
    for panel, (heading, lines) in zip(page.axes, panels.items(), strict=True):
        for name, values in lines.items():
            _line(panel, values, looks[name], f"{name}, {heading}")
    return page


def _line(panel: Axes, values: Values, look: Style, told: str, fill: str | None = None) -> None:
    """Draw a line over stages, with a marker where something was measured."""
    known = {stage: value for stage, value in values.items() if value is not None}
    if not known:
        return
    (drawn,) = panel.plot(
        list(known),
        list(known.values()),
        **asdict(look),
        markerfacecolor=fill or look.color,
        markeredgewidth=0.6,
        clip_on=False,
    )
    first, *_, last = [*known.values(), *known.values()]
    hover(drawn, f"{told}: {first:.3g} → {last:.3g}")


# ------------------------------------------------------------ bars

_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++")
_CONTENT = "wrong content"


def _bar_look(color: str, hatch: str) -> dict[str, Any]:
    return {"facecolor": color, "hatch": hatch, "edgecolor": SOFT, "linewidth": 0.4}


_CAUSES = {
    "router": ("router", _bar_look(SERIES[0], "")),
    "expert": ("experts", _bar_look(SERIES[1], "////")),
    "content": ("router or experts", _bar_look(SERIES[9], "")),
    "form": ("form", _bar_look(SERIES[4], "\\\\\\\\")),
    "lost": ("cause not known", _bar_look(SERIES[9], "xxxx")),
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
    looks = [look for cause, look in _CAUSES.items() if cause in known]
    names = [shortened(name, 1.1) for name, _ in bars]
    page = sheet(
        title,
        [""] if bars else [],
        x=x,
        y="",
        left=0.06 + text_width(names),
        right=0.36,
        height=_BAR * len(bars),
        legend=[Patch(label=text, **look) for text, look in looks],
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
        text, look = _CAUSES[cause]
        start = right if points >= 0 else left
        (drawn,) = panel.barh(row, points, 0.62, start, **look)
        hover(drawn, f"{name}, {text}: {points:.1f} points")
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
        kind: _bar_look(SERIES[n % len(SERIES) - 1], _HATCHES[n % len(_HATCHES)])
        for n, kind in enumerate(kinds)
    }
    legend = [Patch(label=kind, **look) for kind, look in looks.items()]
    page = sheet(title, names, x="after learning task", y="wrong answers", legend=legend, across=1)
    (panel,) = page.axes
    page.stages(max(cell.after for cell in own))
    panel.grid(visible=False, axis="x")
    panel.set_ylim(0, 1.05 * max(1, *(cell.wrong for cell in own)))
    for cell in own:
        base = 0
        content = cell.wrong - sum(cell.errors.values())
        for kind, count in {_CONTENT: content, **cell.errors}.items():
            (bar,) = panel.bar(cell.after, count, 0.7, base, **looks[kind])
            hover(bar, f"after task {cell.after}, {kind}: {count} of {cell.wrong} wrong answers")
            base += count
    return page.figure


def _of_task(cells: Sequence[FormCell], task: int) -> tuple[list[FormCell], list[str]]:
    """Pick a task's cells in the order of the stages, and the panel's heading if there are any."""
    own = sorted((cell for cell in cells if cell.task == task), key=lambda cell: cell.after)
    return own, [f"{task} {own[0].name}"] if own else []
