"""Writes a figure: into a page, where it follows the theme, and as files in a paper's size.

One SVG text serves both. matplotlib's is made for a file of its own: it has a document type, ids
that another figure on the page may have too, a style sheet for every element of the page, and six
digits a number. What is written here has none of these.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from html import escape, unescape
from io import BytesIO, StringIO
from pathlib import Path
from weakref import WeakKeyDictionary

import matplotlib
from matplotlib.figure import Figure

from undrift.report.figures.sheet import INK, LINE, SOFT, TOLD
from undrift.rundir import atomic_write

THEME = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
"""The inks, and the variables of the page that stand for them in an inline drawing."""

_ON_PAGE = 1.35 * 96  # CSS pixels an inch: 6.5 points become about 12 pixels
_FONTS = "DejaVu Sans, Verdana, Arial, sans-serif"


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
    """Draw a figure for a page.

    Args:
        figure: What a function of `undrift.report.figures` has made.

    Returns:
        The drawing, transparent, with its texts and lines in the page's colours and font.
    """
    inner = _inner(figure)
    for ink, variable in THEME.items():
        inner = inner.replace(ink, variable)
    width = round(figure.get_figwidth() * _ON_PAGE)
    size = f'style="width:100%;max-width:{width}px;height:auto"'
    return Drawn(f"{_root(figure, size)}{inner}</svg>", width)


def export(figure: Figure, folder: Path, stem: str) -> None:
    """Write a figure as STEM.svg and STEM.pdf: on white, in inches, with nothing to look up.

    The bytes depend on the figure and on matplotlib's version only.

    Args:
        figure: What a function of `undrift.report.figures` has made.
        folder: Where to; made if it is not there.
        stem: The files' name without its ending.
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


def _inner(figure: Figure) -> str:
    """Return what stands between <svg> and </svg>, in the inks of print."""
    if figure not in _KEPT:
        _KEPT[figure] = _drawn(figure)
    return _KEPT[figure]


_KEPT: WeakKeyDictionary[Figure, str] = WeakKeyDictionary()  # most are drawn and exported


def _drawn(figure: Figure) -> str:
    written = StringIO()
    unsaid = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "undrift"}):
        figure.savefig(written, format="svg", metadata=unsaid)
    inner = re.sub(r"^.*?<svg[^>]*>|</svg>\s*$", "", written.getvalue(), flags=re.DOTALL)
    inner = re.sub(r"\s*<style.*?</style>\s*", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<[^>]+>", _plain, inner)
    inner = re.sub(r">\s*\n\s*<", "><", inner).strip().replace("<defs></defs>", "")
    salt = hashlib.sha256(f"{figure.get_label()}{inner}".encode()).hexdigest()[:6]
    ids = dict.fromkeys(re.findall(r'(?:url\(|href=")#([^)"]+)', inner))
    for number, old in enumerate(ids):
        inner = re.sub(rf'(#|id="){old}(?=[)"])', rf"\g<1>f{salt}{number}", inner)
    return inner


def _plain(tag: re.Match[str]) -> str:
    """Shorten a tag: no id of a group, no font, no third digit; what a group tells is a title."""
    text = " ".join(tag[0].split())
    if text.startswith("<g id="):
        told = unescape(text.split('"')[1])
        said = f"<title>{escape(told.removeprefix(TOLD))}</title>" if TOLD in told else ""
        return "" if text.endswith("/>") else f"<g>{said}"
    text = re.sub(r" font-family: [^;\"]*;?", "", text).replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)
