"""Drawing on a 96 x 96 picture: colours, text that fits its box, outlines; seeded."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from undrift.data.pocket import raw_data

SIDE = 96  # pixels
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

INKS: tuple[Colour, ...] = (
    (20, 20, 20), (130, 20, 25), (15, 60, 130), (10, 95, 50), (95, 30, 110), (120, 70, 10),
)  # fmt: skip


def paper(rng: Random) -> Colour:
    """A light background colour."""
    return (rng.randint(222, 255), rng.randint(222, 255), rng.randint(215, 255))


def canvas(rng: Random, colour: Colour | None = None) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture of 96 x 96 pixels and its pen."""
    picture = Image.new("RGB", (SIDE, SIDE), paper(rng) if colour is None else colour)
    return picture, ImageDraw.Draw(picture)


@functools.cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A TrueType font at a size in pixels."""
    return ImageFont.truetype(str(path), size)


def text(
    pen: ImageDraw.ImageDraw,
    box: Box,
    words: str,
    face: str | Path,
    ink: Colour,
    size: int,
    *,
    smallest: int = 6,
    centred: bool = False,
) -> None:
    """Write text inside a box, as large as fits.

    Args:
        pen: The picture's pen.
        box: Left, top, right, bottom in pixels.
        words: What is written.
        face: A font file, or the name of one of matplotlib's.
        ink: The colour.
        size: The largest size in pixels.
        smallest: The smallest size in pixels.
        centred: In the middle of the box instead of at its left.

    Raises:
        ValueError: the text does not fit at the smallest size, so it would be clipped.
    """
    path = face if isinstance(face, Path) else raw_data.font_path(face)
    left, top, right, bottom = box
    for pixels in range(size, smallest - 1, -1):
        x0, y0, x1, y1 = pen.textbbox((0, 0), words, font=font(path, pixels))
        if x1 - x0 <= right - left and y1 - y0 <= bottom - top:
            spare = (right - left) - (x1 - x0) if centred else 0
            y = top + ((bottom - top) - (y1 - y0)) / 2
            pen.text((left + spare / 2 - x0, y - y0), words, font=font(path, pixels), fill=ink)
            return
    raise ValueError(f"{words!r} does not fit a box of {right - left:g} x {bottom - top:g} pixels")


def shorten(words: str, limit: int) -> str:
    """Cut a title at a word so that it has at most `limit` characters, with three dots."""
    if len(words) <= limit:
        return words
    return words[: limit - 3].rsplit(" ", 1)[0].rstrip(" ,:;-") + "..."


def outline(
    pen: ImageDraw.ImageDraw, x: np.ndarray, y: np.ndarray, ink: Colour, fill: Colour | None = None
) -> None:
    """Draw a closed shape whose parts are separated by NaN; x and y in pixels."""
    cuts = np.flatnonzero(np.isnan(x))
    for part in np.split(np.arange(len(x)), cuts):
        part = part[~np.isnan(x[part])]
        if len(part) >= 3:
            pen.polygon([(float(x[i]), float(y[i])) for i in part], fill=fill, outline=ink)
