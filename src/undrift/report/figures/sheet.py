"""The sheet that figures are drawn on: sizes, inks, panels with shared axes, a fitting legend.

Layout is arithmetic in inches, not a search for a layout that fits: ten runs make dozens of
figures, and matplotlib's layout engines draw each several times. Every ink is a mid tone that
stands out from white paper and from a dark page alike (a test computes the contrasts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from undrift.errors import ConfigError
from undrift.report.figures.lettering import LIGHT, light_font

COLUMN, PAGE = 3.3, 6.9  # inches: one column of a paper, and both
INK, SOFT, LINE = "#010101", "#555556", "#d0d0d1"  # `drawing` finds them by these exact values
ACCENT = "#2a7fc0"
SERIES = (
    *("#0072b2", "#d55e00", "#009e73", "#c5709f", "#b08400"),
    *("#8a63d2", "#3c97cc", "#9a6a4f", "#d03a5b", "#7f7f7f"),
)
_MARKERS = ("o", "s", "^", "D", "v", "X", "P", "<", ">", "*", "h", "d")
_DASHES = ((0, ()), (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_SMALL = 6.5  # points

RULES = matplotlib.rc_context(
    {
        "font.family": LIGHT,
        "font.size": _SMALL,
        "text.color": INK,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "axes.titlesize": 7,
        "axes.titlepad": 3,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": INK,
        "axes.facecolor": "none",
        "axes.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.4,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.width": 0.5,
        "ytick.major.width": 0.5,
        "xtick.major.size": 2,
        "ytick.major.size": 2,
        "xtick.major.pad": 2,
        "ytick.major.pad": 2,
        "lines.linewidth": 1.0,
        "lines.markersize": 2.8,
        "hatch.color": INK,
        "hatch.linewidth": 0.4,
        "legend.frameon": False,
        "legend.fontsize": _SMALL,
        "legend.handlelength": 2.4,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.2,
        "legend.labelspacing": 0.3,
        "legend.borderpad": 0,
        "legend.borderaxespad": 0,
    }
)
"""What every function that makes a figure runs under; also a decorator."""


@dataclass(frozen=True)
class Style:
    """How a series looks: told apart by colour, by marker and, from the second round on, by dash.

    Args:
        color: One of SERIES.
        marker: A marker of matplotlib.
        linestyle: A dash of matplotlib.
    """

    color: str
    marker: str
    linestyle: tuple[float, Sequence[float]]


def styles(count: int) -> list[Style]:
    """Choose a style for each of so many series; no two of the first twenty look alike."""
    looks = zip(cycle(SERIES), cycle(_MARKERS), strict=False)
    return [
        Style(color, marker, _DASHES[index // len(SERIES) % len(_DASHES)])
        for index, (color, marker) in enumerate(islice(looks, count))
    ]


def key(names: Sequence[str], looks: Sequence[Style]) -> list[Line2D]:
    """Make the entries of a legend of lines.

    Args:
        names: The names of the series.
        looks: Their styles.

    Returns:
        A handle for each.
    """
    return [
        Line2D([], [], color=s.color, marker=s.marker, linestyle=s.linestyle, label=name)
        for name, s in zip(names, looks, strict=True)
    ]


@dataclass(frozen=True)
class Sheet:
    """A figure and its panels.

    Args:
        figure: The figure.
        axes: Its panels in reading order.
        wide: The width of a panel in inches.
    """

    figure: Figure
    axes: list[Axes]
    wide: float

    def stages(self, count: int) -> None:
        """Number the horizontal axes by the tasks learned, with gaps where there are many.

        Args:
            count: The number of tasks.
        """
        least = max(1, math.ceil(0.14 * count / self.wide))
        even = (n for n in range(least, 2 * least + 1) if (count - 1) % n == 0)
        every = next(even, least)  # both ends are labelled where that can be
        for panel in self.axes:
            panel.set_xticks(range(1, count + 1, every))
            panel.set_xlim(1 - 0.04 * count, count + 0.04 * count)

    def percent(self, lowest: float = 0) -> None:
        """Let the vertical axes reach up to 100, with room for the markers at both ends.

        Args:
            lowest: The smallest value; if above 50, the axes start there.
        """
        start, step = (50, 10) if lowest > 50 else (0, 25)
        for panel in self.axes:
            panel.set_ylim(start - step * 0.16, 100 + step * 0.16)
            panel.set_yticks(range(start, 101, step))


def sheet(
    title: str,
    panels: Sequence[str],
    *,
    x: str,
    y: str,
    height: float = 1.1,
    left: float = 0.26,
    above: float = 0.0,
    below: float = 0.17,
    right: float = 0.1,
    legend: Sequence[Artist] = (),
    across: int | None = None,
    width: float | None = None,
    share: bool = True,
) -> Sheet:
    """Lay out panels, with the names of the axes at the edge and a legend above.

    Args:
        title: What is shown; becomes the accessible name, papers have their own captions.
        panels: The panels' headings.
        x: Name and unit of the horizontal axis.
        y: Name and unit of the vertical axis; none where each panel names its own.
        height: Of a panel, in inches.
        left: Room for the labels of the vertical axis, in inches.
        above: Room for labels above each panel, in inches.
        below: Room for labels below each panel, in inches.
        right: Room beside the last panel, in inches.
        legend: Handles with labels.
        across: How many panels stand side by side; chosen by their number if None.
        width: Of the figure, in inches; a column for up to two panels side by side if None.
        share: Whether the panels share one vertical axis, so that only the first of a row is
            labelled; otherwise each has `left` inches.

    Returns:
        The empty panels.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    if not panels:
        raise ConfigError(
            f"nothing to draw for {title!r}: expected at least one run; leave the figure out"
        )
    across = across or _across(len(panels))
    width = width or (COLUMN if across <= 2 else PAGE)
    down = math.ceil(len(panels) / across)
    room, gap = left + (0.17 if y else 0.02), 0.14 if share else left + 0.12
    above += 0.18 if any(panels) else 0.06
    rows = _legend_rows([str(handle.get_label()) for handle in legend], width)
    top, bottom = (0.122 * rows + 0.06 if rows else 0.0), 0.17
    tall = top + down * (above + height + below) + bottom
    wide = (width - room - right - (across - 1) * gap) / across
    figure = _blank(title, width, tall)
    axes = []
    for index, heading in enumerate(panels):
        row, column = divmod(index, across)
        x0 = room + column * (wide + gap)
        y0 = tall - top - (row + 1) * (above + height) - row * below
        panel = figure.add_axes((x0 / width, y0 / tall, wide / width, height / tall))
        panel.set_title(fitting(heading, wide), loc="left", y=1.0)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_label_coords(0, 0)  # without names of their own; else they are placed anew
        if share and column:
            panel.tick_params(labelleft=False)
        axes.append(panel)
    centre = max((room + width - right) / 2, broad([x]) / 2)
    figure.text(centre / width, 0.05 / tall, x, ha="center")
    middle = (bottom + below + tall - top - above) / 2
    figure.text(0.03 / width, middle / tall, y, rotation=90, va="center")
    if legend:
        figure.legend(
            handles=legend,
            labels=[fitting(str(handle.get_label()), width - 0.6) for handle in legend],
            loc="upper left",
            bbox_to_anchor=(0.06 / width, 1 - 0.06 / tall),
            ncols=math.ceil(len(legend) / rows),
        )
    return Sheet(figure, axes, wide)


def fitting(text: str, inches: float) -> str:
    """Shorten a text in its middle until it fits; names of runs differ at both ends.

    Args:
        text: The text, in the small size.
        inches: The room.

    Returns:
        The text, with an ellipsis if it was too long.
    """
    most = max(3, int(inches / _SIGN))
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def broad(texts: Sequence[str]) -> float:
    """Estimate how many inches the longest of some texts takes in the small size."""
    return _SIGN * max(map(len, texts), default=0)


def tell(artist: Artist, text: str) -> None:
    """Let a mark say what it is where a pointer rests on it.

    Args:
        artist: The mark.
        text: What it says; `drawing` turns it into a `<title>`.
    """
    artist.set_gid(TOLD + text)


TOLD = "told:"
_SIGN = 0.6 * _SMALL / 72  # inches a letter: a little more than DejaVu's mean


def _blank(title: str, width: float, height: float) -> Figure:
    light_font()
    figure = Figure(figsize=(width, height), facecolor="none")
    figure.set_label(title)
    return figure


def _across(panels: int) -> int:
    if panels <= 4:
        return (1, 2, 3, 2)[panels - 1]
    return {5: 3, 6: 3}.get(panels, 4 if panels <= 8 else 5)


def _legend_rows(names: Sequence[str], width: float) -> int:
    """Count the rows of a legend whose columns are as broad as its longest name."""
    if not names:
        return 0
    handle = (2.4 + 0.5 + 1.2) * _SMALL / 72
    columns = max(1, int((width - 0.1) / (min(broad(names), width - 0.6) + handle)))
    return math.ceil(len(names) / columns)
