"""Bars that say where the lost points went: to the router, to the experts, to the answers' form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from undrift.report.figures.sheet import INK, RULES, SERIES, SOFT, broad, fitting, sheet, tell

if TYPE_CHECKING:
    from undrift.report.causes import RunLoss


class _Look(NamedTuple):
    name: str
    color: str
    hatch: str


_LOOKS = {
    "router": _Look("router", SERIES[0], ""),
    "expert": _Look("experts", SERIES[1], "////"),
    "content": _Look("router or experts", SERIES[9], ""),
    "form": _Look("form", SERIES[4], "\\\\\\\\"),
    "lost": _Look("cause not known", SERIES[9], "xxxx"),
}
_BAR = 0.27  # inches a row


class _Bar(NamedTuple):
    name: str
    parts: dict[str, float]
    lost: float | None


@RULES
def shares(title: str, losses: Sequence[RunLoss]) -> Figure:
    """Draw the points that each run lost, and to what.

    Args:
        title: What is drawn; becomes the accessible name.
        losses: The runs; each number a mean over the tasks but the last.

    Returns:
        The figure: a stacked bar a run. A cause that won points back reaches left of zero.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    bars = [
        _Bar(run.label, _parts(run.lost, run.router, run.expert, run.form), run.lost)
        for run in losses
    ]
    return _stacked(title, bars, "points lost since learning, mean over tasks")


@RULES
def task_shares(title: str, loss: RunLoss) -> Figure:
    """Draw the points that a run lost on each task, and to what.

    Args:
        title: What is drawn; becomes the accessible name.
        loss: The run.

    Returns:
        The figure: a stacked bar a task. A cause that won points back reaches left of zero.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    bars = [
        _Bar(
            f"{task.task} {task.name}",
            _parts(task.lost, task.router, task.expert, task.form),
            task.lost,
        )
        for task in loss.tasks
    ]
    return _stacked(title, bars, "points lost since learning")


def _parts(
    lost: float | None, router: float | None, expert: float | None, form: float | None
) -> dict[str, float]:
    """Split a loss as far as it is known."""
    if lost is None:
        return {}
    if form is None:
        return {"lost": lost}
    if router is None or expert is None:
        return {"content": lost - form, "form": form}
    return {"router": router, "expert": expert, "form": form}


def _stacked(title: str, bars: Sequence[_Bar], x: str) -> Figure:
    told_apart = [cause for cause in _LOOKS if any(cause in bar.parts for bar in bars)]
    legend = [
        Patch(
            facecolor=_LOOKS[cause].color,
            hatch=_LOOKS[cause].hatch,
            edgecolor=SOFT,
            linewidth=0.4,
            label=_LOOKS[cause].name,
        )
        for cause in told_apart
    ]
    names = [fitting(bar.name, 1.1) for bar in bars]
    page = sheet(
        title,
        [""] if bars else [],
        x=x,
        y="",
        left=0.06 + broad(names),
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
    ends = [end for row, bar in enumerate(bars) for end in _bar(panel, row, bar)]
    low, high = min([0.0, *ends]), max([1.0, *ends])
    panel.set_xlim(low - (0.02 * (high - low) if low < 0 else 0), high * 1.02)
    for row, bar in enumerate(bars):
        text = "" if bar.lost is None else f"{bar.lost:.1f}".replace("-", "−")
        panel.annotate(
            text, (1, row), (3, 0), xycoords=panel.get_yaxis_transform(),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    return page.figure


def _bar(panel: Axes, row: int, bar: _Bar) -> tuple[float, float]:
    """Stack what was lost to the right of zero and what was won back to the left."""
    right = left = 0.0
    for cause, points in bar.parts.items():
        look = _LOOKS[cause]
        start = right if points >= 0 else left
        (drawn,) = panel.barh(
            row, points, 0.62, start, color=look.color, hatch=look.hatch, edgecolor=SOFT,
            linewidth=0.4,
        )  # fmt: skip
        tell(drawn, f"{bar.name}, {look.name}: {points:.1f} points")
        right, left = (start + points, left) if points >= 0 else (right, start + points)
    if bar.lost is not None and left < 0:
        (mark,) = panel.plot(bar.lost, row, marker="|", color=INK, markersize=9)
        tell(mark, f"{bar.name}: {bar.lost:.1f} points in all")
    return left, right
