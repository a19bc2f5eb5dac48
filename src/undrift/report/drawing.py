"""How a figure is drawn: sizes, inks, panels with a shortened legend; and written as SVG and PDF.

Layout is arithmetic in inches, not a search for a layout that fits: ten runs make dozens of
figures, and matplotlib's layout engines draw each several times. Every ink is a mid tone that
stands out from white paper and from a dark page alike (a test computes the contrasts).

One SVG text serves a page and a file. matplotlib's is made for a file of its own: it has a document
type, ids that another figure on the page may have too, a style sheet for every element of the page,
and six digits a number. What is written here has none of these.
"""

from __future__ import annotations

import atexit
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from html import escape, unescape
from io import BytesIO, StringIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib
from fontTools import subset
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager
from matplotlib.lines import Line2D

from undrift.errors import ConfigError
from undrift.rundir import atomic_write
from undrift.rundir.files import temporary_folder

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
_LETTER = 0.6 * _SMALL / 72  # inches: a little more than DejaVu's mean
_HOVER = "hover:"  # begins the id of a mark that says what it is

THEME = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
"""The inks, and the variables of the page that stand for them in an inline drawing."""

_ON_PAGE = 1.35 * 96  # CSS pixels an inch: 6.5 points become about 12 pixels
_FONTS = "DejaVu Sans, Verdana, Arial, sans-serif"
_FULL_FONT = "DejaVu Sans"
_FONT = "Report Sans"
_LETTERS = (
    *range(0x20, 0x250),  # Latin
    *range(0x370, 0x530),  # Greek, Cyrillic
    *range(0x2010, 0x2040),  # dashes, quotation marks, the ellipsis
    *(0x2190, 0x2192, 0x2212),  # arrows, minus
)
_NAMES = (1, 4, 6, 16)  # family, full name, PostScript name, typographic family

_TICKS = {"color": SOFT, "labelcolor": INK, "major.width": 0.5, "major.size": 2, "major.pad": 2}
_SETTINGS: dict[Any, Any] = {
    "font.family": _FONT,
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
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in _TICKS.items()},
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
STYLED = matplotlib.rc_context(_SETTINGS)
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
    """Choose a style for each of so many series; no two of the first forty look alike."""
    looks = zip(cycle(SERIES), cycle(_MARKERS), strict=False)
    return [
        Style(color, marker, _DASHES[index // len(SERIES) % len(_DASHES)])
        for index, (color, marker) in enumerate(islice(looks, count))
    ]


def legend_of(looks: Mapping[str, Style]) -> list[Line2D]:
    """Make the entries of a legend of lines, one for each series."""
    return [Line2D([], [], **asdict(look), label=name) for name, look in looks.items()]


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
        """Number the horizontal axes by the tasks learned, with gaps where there are many."""
        least = max(1, math.ceil(0.14 * count / self.wide))
        even = (n for n in range(least, 2 * least + 1) if (count - 1) % n == 0)
        every = next(even, least)  # both ends are labelled where that can be
        for panel in self.axes:
            panel.set_xticks(range(1, count + 1, every))
            panel.set_xlim(1 - 0.04 * count, count + 0.04 * count)

    def percent(self, lowest: float = 0) -> None:
        """Let the vertical axes reach from 0 to 100, or from 50 if the lowest value is above it."""
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
            f"nothing to draw for {title!r}: nothing of it was measured; leave the figure out"
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
    light_font()
    figure = Figure(figsize=(width, tall), facecolor="none")
    figure.set_label(title)
    axes = []
    for index, heading in enumerate(panels):
        row, column = divmod(index, across)
        x0 = room + column * (wide + gap)
        y0 = tall - top - (row + 1) * (above + height) - row * below
        panel = figure.add_axes((x0 / width, y0 / tall, wide / width, height / tall))
        panel.set_title(shortened(heading, wide), loc="left", y=1.0)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_label_coords(0, 0)  # without names of their own; else they are placed anew
        if share and column:
            panel.tick_params(labelleft=False)
        axes.append(panel)
    centre = max((room + width - right) / 2, text_width([x]) / 2)
    figure.text(centre / width, 0.05 / tall, x, ha="center")
    middle = (bottom + below + tall - top - above) / 2
    figure.text(0.03 / width, middle / tall, y, rotation=90, va="center")
    if legend:
        figure.legend(
            handles=legend,
            labels=[shortened(str(handle.get_label()), width - 0.6) for handle in legend],
            loc="upper left",
            bbox_to_anchor=(0.06 / width, 1 - 0.06 / tall),
            ncols=math.ceil(len(legend) / rows),
        )
    return Sheet(figure, axes, wide)


def shortened(text: str, inches: float) -> str:
    """Shorten a text in its middle until it fits; names of runs differ at both ends."""
    most = max(3, int(inches / _LETTER))
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def text_width(texts: Sequence[str]) -> float:
    """Estimate how many inches the longest of some texts takes in the small size."""
    return _LETTER * max(map(len, texts), default=0)


def hover(artist: Artist, text: str) -> None:
    """Let a mark say what it is where a pointer rests on it: the text becomes a `<title>`."""
    artist.set_gid(_HOVER + text)


def _across(panels: int) -> int:
    if panels <= 4:
        return (1, 2, 3, 2)[panels - 1]
    return {5: 3, 6: 3}.get(panels, 4 if panels <= 8 else 5)


def _legend_rows(names: Sequence[str], width: float) -> int:
    """Count the rows of a legend whose columns are as text_width as its longest name."""
    if not names:
        return 0
    handle = (2.4 + 0.5 + 1.2) * _SMALL / 72
    columns = max(1, int((width - 0.1) / (min(text_width(names), width - 0.6) + handle)))
    return math.ceil(len(names) / columns)


@cache
def light_font() -> str:
    """Make a copy of matplotlib's own font known to it, so that a PDF takes a third of the time.

    A PDF carries the letters that it uses, cut out of the font. Most of that time goes into tables
    for scripts and ligatures that no label needs; a copy without them is made once a process.
    """
    options = subset.Options(layout_features=[], name_IDs=["*"], glyph_names=True)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "MATH", "FFTM", "kern"]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=_LETTERS)
    kept = ExitStack()
    folder = kept.enter_context(temporary_folder())
    atexit.register(kept.close)
    with subset.load_font(str(findfont(_FULL_FONT)), options) as font:
        cutter.subset(font)
        names = font["name"]
        for record in list(names.names):
            if record.nameID in _NAMES:
                where = (record.nameID, record.platformID, record.platEncID, record.langID)
                names.setName(_FONT.replace(" ", "" if record.nameID == 6 else " "), *where)
        font.save(folder / "light.ttf")
    fontManager.addfont(folder / "light.ttf")
    return _FONT


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure with its words.

    Args:
        stem: The name of its files, without an ending.
        title: What it shows.
        caption: How to read it.
        figure: The drawing.
    """

    stem: str
    title: str
    caption: str
    figure: Figure


Figures = Sequence[CaptionedFigure]


@dataclass(frozen=True)
class Drawn:
    """A figure as it stands in a page.

    Args:
        svg: An `<svg>` element for the body of a page that defines --ink, --soft and --line.
        width: In CSS pixels at which its text has the size of a page's small text; a narrower
            window should scroll a figure that is much wider than itself.
    """

    svg: str
    width: int


def draw(figure: Figure) -> Drawn:
    """Draw a figure for a page: transparent, texts and lines in the page's colours and font."""
    inner = _inner(figure)
    for ink, variable in THEME.items():
        inner = inner.replace(ink, variable)
    width = round(figure.get_figwidth() * _ON_PAGE)
    size = f'style="width:100%;max-width:{width}px;height:auto"'
    return Drawn(f"{_root(figure, size)}{inner}</svg>", width)


def export(figure: Figure, folder: Path, stem: str) -> None:
    """Write a figure as FOLDER/STEM.svg and STEM.pdf: on white, in inches, fonts embedded.

    The bytes depend on the figure and on matplotlib's version only.
    """
    width, height = figure.get_size_inches()
    size = f'width="{width:g}in" height="{height:.4g}in" font-family="{_FONTS}"'
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    svg = f"{_root(figure, size)}{paper}{_inner(figure)}</svg>\n"
    atomic_write(folder / f"{stem}.svg", svg)
    pdf = BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(pdf, format="pdf", facecolor="white", metadata={"CreationDate": None})
    atomic_write(folder / f"{stem}.pdf", pdf.getvalue())


def _root(figure: Figure, size: str) -> str:
    width, height = (72 * inches for inches in figure.get_size_inches())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" '
        f'aria-label="{escape(str(figure.get_label()))}" '
        f'viewBox="0 0 {width:.2f} {height:.2f}" stroke-linejoin="round" {size}>'
    )


@lru_cache(maxsize=128)  # most are drawn and exported
def _inner(figure: Figure) -> str:
    """Return what stands between <svg> and </svg>, in the inks of print."""
    written = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    salt = str(figure.get_label())  # no two figures of a page have an id in common
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(written, format="svg", metadata=nothing)
    inner = re.sub(r"^.*?<svg[^>]*>|</svg>\s*$", "", written.getvalue(), flags=re.DOTALL)
    inner = re.sub(r"\s*<style.*?</style>\s*", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<[^>]+>", _plain, inner)
    return re.sub(r">\s*\n\s*<", "><", inner).strip().replace("<defs></defs>", "")


def _plain(tag: re.Match[str]) -> str:
    """Shorten a tag: no id of a group, no font, no third digit; what a group tells is a title."""
    text = " ".join(tag[0].split())
    if text.startswith("<g id="):
        words = unescape(text.split('"')[1])
        title = f"<title>{escape(words.removeprefix(_HOVER))}</title>" if _HOVER in words else ""
        return "" if text.endswith("/>") else f"<g>{title}"
    text = re.sub(r" font-family: [^;\"]*;?", "", text).replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)
