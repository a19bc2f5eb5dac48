"""Boxes in texts: four numbers that stand together, in whichever way models and files write them.

Read are, the first that stands in the text and nothing of what follows it:

    [100, 100, 200, 200]    ((100, 100), (200, 200))    also inside JSON, tags and prose
    {"x1": 100, "y1": 100, "x2": 200, "y2": 200}        also xmin.., left, top, right, bottom
    <loc0102><loc0205><loc0512><loc0922>                y first, in 1024ths of the picture

and, where there is none of these, numbers without brackets, if there are four of them together or a
multiple of four. Between the numbers stand commas, semicolons and spaces alone, and between two
points their brackets. A digit of a word (`bbox_2d`, `x1`, `v1.2.3`) is no number, `10%` is 0.1 and
`10px` is 10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

# Possessive throughout: a long text is gone through once.
_NUMBER = (
    r"(?<![A-Za-z_\d.])[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+"
    r"(?:\s?%|px\b)?+(?![A-Za-z_\d]|\.\d)"
)
_APART = r"(?:\s*+[,;]\s*+|\s++)"
_LIST = rf"[\[(]\s*+{_NUMBER}(?:{_APART}{_NUMBER}){{3}}"
_POINT = rf"[\[(]\s*+{_NUMBER}{_APART}{_NUMBER}\s*+[\])]"
_SIDES = (
    ("x1", "xmin", "left"), ("y1", "ymin", "top"), ("x2", "xmax", "right"), ("y2", "ymax", "bottom")
)  # fmt: skip
_KEY = r"x1|y1|x2|y2|[xy]_?(?:min|max)|left|top|right|bottom"
_NAMED = rf"(?<![A-Za-z_\d])(?:{_KEY})[\"']?\s*+[:=]\s*+{_NUMBER}"
_MARKED = re.compile(
    rf"(?P<tokens>(?:<loc\d{{4}}>\s*+){{4}})|{_LIST}|{_POINT}\s*+[,;]?+\s*+{_POINT}"
    rf"|(?P<named>{_NAMED}(?:[\s,;\"']*+{_NAMED}){{3}})",
    re.IGNORECASE,
)
_BARE = re.compile(rf"{_NUMBER}(?:{_APART}{_NUMBER})*+")
_EACH = re.compile(_NUMBER)
_EACH_NAMED = re.compile(rf"({_KEY})[\"']?\s*+[:=]\s*+({_NUMBER})", re.IGNORECASE)
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

    Args:
        text: An answer or a prediction.

    Returns:
        Its corners. None if there is no box, or if the corners of the first are swapped, on one
        line, or beyond what a float can hold.
    """
    found = four_numbers(text)
    if found is None or not all(map(math.isfinite, found)):
        return None
    made = Box(*found)
    return made if made.x1 < made.x2 and made.y1 < made.y2 else None


def four_numbers(text: str) -> tuple[float, ...] | None:
    """Return the first four numbers that stand together as those of a box do, whatever they are.

    Args:
        text: An answer or a prediction.

    Returns:
        Four numbers in the order x1, y1, x2, y2; or None.
    """
    marked = _MARKED.search(text)
    if marked is None:
        bare = (_EACH.findall(run.group()) for run in _BARE.finditer(text))
        runs = (numbers for numbers in bare if len(numbers) % 4 == 0)
        return next((tuple(map(_value, numbers[:4])) for numbers in runs), None)
    if marked["tokens"]:
        y1, x1, y2, x2 = (int(n) / _LOCATIONS for n in re.findall(r"\d{4}", marked["tokens"]))
        return x1, y1, x2, y2
    if marked["named"]:
        named = {
            key.lower().replace("_", ""): number
            for key, number in _EACH_NAMED.findall(marked["named"])
        }
        sides = [next((named[n] for n in names if n in named), None) for names in _SIDES]
        there = [_value(number) for number in sides if number is not None]
        return tuple(there) if len(there) == 4 else None
    return tuple(_value(number) for number in _EACH.findall(marked.group())[:4])


def _value(number: str) -> float:
    if number.endswith("%"):
        return float(number[:-1]) / 100
    return float(number.removesuffix("px"))


def overlap(a: Box, b: Box) -> float:
    """Compute the intersection of two boxes over their union (IoU).

    Args:
        a: A box.
        b: Another, in the same unit.

    Returns:
        A number between 0 and 1; 0 where corners are so far apart, or so near, that an area is no
        float.
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

    Their overlap is then next to nothing, whatever they show.

    Args:
        prediction: What the model said.
        answers: The accepted boxes.

    Returns:
        False as well where one side is no box.
    """
    said = find_box(prediction)
    truths = [truth for truth in map(find_box, answers) if truth is not None]
    return said is not None and bool(truths) and all(t.shares != said.shares for t in truths)
