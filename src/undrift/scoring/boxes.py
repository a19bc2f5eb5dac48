"""Boxes in texts: four numbers that stand together, in whichever way models and files write them.

Read are, the first that stands in the text and nothing of what follows it:

    [100, 100, 200, 200]    ((100, 100), (200, 200))    also inside JSON, tags and prose, in quotes,
                                                        with a score from 0 to 1 behind them
    {"x1": 100, "y1": 100, "x2": 200, "y2": 200}        also x0.., xmin.., left, top, right, bottom
    {"x": 100, "y": 100, "width": 50, "height": 50}     also w, h
    <loc0102><loc0205><loc0512><loc0922>                y first, in 1024ths of the picture
    <loc_205><loc_102><loc_922><loc_512>                x first, in 1000ths
    {<10><20><30><40>}

and, where there is none of these, numbers without brackets, if there are four of them together or a
multiple of four. Between the numbers stand commas, semicolons and spaces alone, and between two
points their brackets, a dash or `to`. A digit of a word (`bbox_2d`, `x1`, `v1.2.3`) or of a
fraction is no number, `10%` is 0.1 and `10px` is 10. Where the text says `xywh`, the last two are
width and height.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

# Possessive throughout: a long text is gone through once.
_NUMBER = (
    r"(?<![A-Za-z_\d./])[-+\u2212\u2013]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+\u2212]?\d++)?+"
    r"(?:\s?%|px\b)?+(?![A-Za-z_\d/]|\.\d)"
)
_APART = r"(?:\s*+[,;]\s*+|\s++)"
_NEXT = rf"[\"']?+{_APART}[\"']?+{_NUMBER}"  # of numbers that may be in quotes
_SCORE = r"(?:0(?:\.\d*+)?+|1(?:\.0*+)?+|\.\d++|[\d.]++%)(?![\w.])"
_LIST = (
    rf"[\[(]\s*+(?:[a-z_]\w*+\s*+[:=]\s*+)?+[\"']?+{_NUMBER}(?:{_NEXT}){{3}}"
    rf"(?:[\"']?+{_APART}[\"']?+{_SCORE})?+(?![\"']?\s*+[,;]?\s*+[\"']?[-+\u2212\u2013]?\.?\d)"
)
_POINT = rf"[\[(]\s*+[\"']?+{_NUMBER}{_NEXT}[\"']?+\s*+[\])]"
_POINTS = rf"{_POINT}\s*+(?:[,;\u2013\u2014\u2192]|->?+|to\b)?+\s*+{_POINT}"
_SIDES = (
    ("x1", "xmin", "left", "x"), ("y1", "ymin", "top", "y"), ("x2", "xmax", "right"),
    ("y2", "ymax", "bottom"), ("width", "w"), ("height", "h"),
)  # fmt: skip
_FROM_NAUGHT = {"x0": "x1", "y0": "y1", "x1": "x2", "y1": "y2"}
_KEY = r"[xy][012]|[xy]_?(?:min|max)|left|top|right|bottom|width|height|[xywh]"
_NAMED = rf"(?<![A-Za-z_\d])(?:{_KEY})[\"']?\s*+[:=]\s*+[\"']?{_NUMBER}"
_MARKED = re.compile(
    rf"(?P<tokens>(?:<loc_?\d{{1,4}}>\s*+){{4}})|(?P<angles>(?:<{_NUMBER}>\s*+){{4}}(?!<[-+\d]))"
    rf"|{_LIST}|{_POINTS}|(?P<named>{_NAMED}(?:[\s,;\"']*+{_NAMED}){{3,}})",
    re.IGNORECASE,
)
_BARE = re.compile(rf"{_NUMBER}(?:{_APART}{_NUMBER})*+", re.IGNORECASE)
_EACH = re.compile(_NUMBER, re.IGNORECASE)
_EACH_NAMED = re.compile(rf"({_KEY})[\"']?\s*+[:=]\s*+[\"']?({_NUMBER})", re.IGNORECASE)
_ORDER = re.compile(
    r"cxcywh|xywh|xyxy|\bx\W{1,4}y\W{1,4}w(?:idth)?\W{1,4}h(?:eight)?\b", re.IGNORECASE
)
_BRACKETS = re.compile(r"[\[\]()]")
_LOCATIONS = 1024


class Box(NamedTuple):
    """The corners of a box, x1 < x2 and y1 < y2, in any unit."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def shares(self) -> bool:
        """Whether it is in shares of the picture: no corner is beyond 1."""
        return max(self.x2, self.y2) <= 1


def find_box(text: str) -> Box | None:
    """Return the first box in a text.

    None if there is no box, or if the corners of the first are swapped, on one line, or beyond what
    a float can hold.
    """
    numbers = four_numbers(text)
    if numbers is None or not all(map(math.isfinite, numbers)):
        return None
    box = Box(*numbers)
    return box if box.x1 < box.x2 and box.y1 < box.y2 else None


@lru_cache(maxsize=64)  # each rule, and the form, asks for the same texts
def four_numbers(text: str) -> tuple[float, ...] | None:
    """Return x1, y1, x2, y2: the first four numbers that stand together as those of a box do."""
    marked = _MARKED.search(text)
    if marked is not None and marked["tokens"]:
        return _located(marked["tokens"])
    if marked is not None and marked["named"]:
        return _by_name(marked["named"])
    if marked is not None:
        numbers = _EACH.findall(marked.group())
    else:
        bare = (_EACH.findall(run) for run in _outside_brackets(text))
        numbers = next((run for run in bare if len(run) % 4 == 0), None)
    if numbers is None:
        return None
    x, y, third, fourth = map(_value, numbers[:4])
    orders = {order.lower() for order in _ORDER.findall(text)}
    if orders <= {"xyxy"}:
        return x, y, third, fourth
    return None if orders & {"xyxy", "cxcywh"} else (x, y, x + third, y + fourth)


def _located(tokens: str) -> tuple[float, ...] | None:
    """Read location tokens: PaliGemma's have four digits, Florence's an underscore."""
    found = re.findall(r"(_?)(\d+)", tokens)
    numbers = [int(digits) for _, digits in found]
    if all(mark and number < 1000 for (mark, _), number in zip(found, numbers, strict=True)):
        return tuple(number / 1000 for number in numbers)
    if any(mark or len(digits) != 4 for mark, digits in found):
        return None
    y1, x1, y2, x2 = (number / _LOCATIONS for number in numbers)
    return x1, y1, x2, y2


def _by_name(text: str) -> tuple[float, ...] | None:
    """Read numbers with keys; of a key that comes twice the first counts."""
    pairs = [(key.lower().replace("_", ""), _value(n)) for key, n in _EACH_NAMED.findall(text)]
    named = dict(reversed(pairs))
    if "x0" in named and "y0" in named:
        named = {_FROM_NAUGHT.get(key, key): number for key, number in named.items()}
    x1, y1, x2, y2, width, height = (
        next((named[name] for name in names if name in named), None) for names in _SIDES
    )
    if x1 is None or y1 is None:
        return None
    if x2 is not None and y2 is not None:
        return x1, y1, x2, y2
    if x2 is not None or y2 is not None or width is None or height is None:
        return None
    return x1, y1, x1 + width, y1 + height


def _outside_brackets(text: str) -> Iterator[str]:
    """Yield the runs of numbers that stand in no list: part of one is no box."""
    brackets = list(_BRACKETS.finditer(text))
    depth = at = 0
    for run in _BARE.finditer(text):
        while at < len(brackets) and brackets[at].start() < run.start():
            mark = brackets[at].group()
            depth = depth + 1 if mark in "[(" else max(0, depth - (mark in "])"))
            at += 1
        if depth == 0:
            yield run.group()


def _value(number: str) -> float:
    plain = number.replace("\u2212", "-").replace("\u2013", "-")
    if plain.endswith("%"):
        return float(plain[:-1]) / 100
    return float(plain.lower().removesuffix("px"))


def overlap(a: Box, b: Box) -> float:
    """Compute the intersection of two boxes over their union (IoU), between 0 and 1.

    0 where corners are so far apart, or so near, that an area is no float.
    """
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both
    return both / union if 0 < union < math.inf else 0.0


def other_unit(prediction: str, answers: Sequence[str]) -> bool:
    """Tell whether a predicted box is in shares of the picture and its answers are not, or reverse.

    Their overlap is then next to nothing, whatever they show. False where one side is no box.
    """
    box = find_box(prediction)
    truths = [truth for truth in map(find_box, answers) if truth is not None]
    return box is not None and bool(truths) and all(t.shares != box.shares for t in truths)
