"""Pictures from files: opened within a bound of pixels, and many of them tried at once.

A model sees what people see, in training, evaluation, `predict`, `doctor` and a report's pages: all
of them come here, and `as_seen` turns, flattens and scales. A colour profile is not applied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from undrift.errors import DataError
from undrift.untrusted import open_regular

MAX_PIXELS = 2**28 // 3
"""A quarter of a GiB as RGB, 9,459 x 9,459: the number above which Pillow suspects a bomb. With a
higher one there would be pictures that are opened, but with Pillow's warning."""

READING = 2
"""Another number whenever some picture's pixels become others: kept features carry it.
1 was before `as_seen`."""

OnProgress = Callable[[int, int], None]

Change = Literal["turned", "flattened", "scaled", "first of several"]
"""What was done to a picture to see it as people do."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""

_KEY_OF = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}
"""Pillow makes 8 bits a sample of a PNG's 2, 4 or 16, but not of its transparent colour."""

_BITS, _MEANING, _WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF

_HEADERS_ONLY = Lock()
_AT_ONCE = 32  # pictures a job, so that a million pictures are no million jobs


class Survey(NamedTuple):
    """What many pictures are like.

    Args:
        sizes: Width and height of those that can be read, as they are seen.
        unreadable: What is wrong with those that cannot.
        changes: What was done to those that would look otherwise.
    """

    sizes: dict[Path, tuple[int, int]]
    unreadable: dict[Path, str]
    changes: dict[Path, tuple[Change, ...]]


def open_picture(path: Path, side: int | None = None) -> Image.Image:
    """Open a picture as people see it, see `as_seen`; of several frames the first.

    Args:
        path: The file.
        side: For people to look at, its longest side is made to have at most so many pixels.

    Returns:
        The picture as RGB, fully read.

    Raises:
        DataError: If the file is missing, damaged or no picture, if it is no regular file, or if
            its header tells of more than `MAX_PIXELS`; then nothing has been decoded.
    """
    opened = _opened(path, side)
    if isinstance(opened, str):
        raise DataError(f"cannot read the picture {path}: {opened}")
    return opened[0]


def as_seen(picture: Image.Image) -> Image.Image:
    """Make of a picture what people see of it.

    It is turned as its camera says (EXIF's orientation), what is transparent is laid on white, and
    what has more than 8 bits is scaled by the range of its type, 65535 to 255. A picture of
    floating-point numbers is one from 0, black, to 1, white. A plain RGB picture stays as it is.

    Args:
        picture: A picture of any mode, which is left as it was. If it has several frames, the one
            that it stands at is taken.

    Returns:
        The picture as RGB, without anything that came along with it.

    Raises:
        DataError: If nothing says which of its values is white: numbers of 32 bits, or of 16 with a
            sign, and floating-point numbers beyond 0 to 1.
    """
    return _seen(picture)[0]


def survey(
    paths: Iterable[Path], workers: int | None = None, progress: OnProgress | None = None
) -> Survey:
    """Open pictures as `open_picture` would, in parallel, each of them once.

    Threads do, since Pillow decodes without holding the interpreter's lock.

    Args:
        paths: Picture files, in any order, repetitions allowed.
        workers: Threads; one a CPU if not given, and 32 at the most.
        progress: Called with (pictures done, pictures in all).

    Returns:
        What they are like, and what is wrong with those that cannot be read.
    """
    once, done, found = list(dict.fromkeys(paths)), 0, Survey({}, {}, {})
    jobs = [once[start : start + _AT_ONCE] for start in range(0, len(once), _AT_ONCE)]
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 32))
    try:
        for job, outcomes in zip(jobs, pool.map(_try, jobs), strict=True):
            for path, outcome in zip(job, outcomes, strict=True):
                if isinstance(outcome, str):
                    found.unreadable[path] = outcome
                else:
                    found.sizes[path], changes = outcome
                    if changes:
                        found.changes[path] = changes
            done += len(job)
            if progress is not None:
                progress(done, len(once))
    finally:
        pool.shutdown(cancel_futures=True)  # when stopped, the rest is not opened first
    return found


def _try(paths: Iterable[Path]) -> list[tuple[tuple[int, int], tuple[Change, ...]] | str]:
    opened = map(_opened, paths)
    return [each if isinstance(each, str) else (each[0].size, each[1]) for each in opened]


def _opened(path: Path, side: int | None = None) -> tuple[Image.Image, tuple[Change, ...]] | str:
    """Open a picture, in full or small, and say what was changed; or say what is wrong."""
    try:
        with open_regular(path) as file, Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return _too_large(*picture.size)
            if picture.format == "EPS":
                return "it is PostScript, a program; make a PNG of it"
            if side is not None:
                picture.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded smaller
            seen, changes = _seen(picture)
            if side is not None:
                seen.thumbnail((side, side))
            return seen, (*changes, "first of several") if _goes_on(picture) else changes
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _too_large(*_size(path))
    except UnidentifiedImageError:
        return "it is no picture, or of a kind that Pillow does not know"
    except DataError as error:
        return str(error)
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        if isinstance(error, OSError) and error.strerror:  # the file system's word, no decoder's
            return error.strerror
        return f"{str(error) or type(error).__name__}; the file is damaged, get it again"


def _seen(picture: Image.Image) -> tuple[Image.Image, tuple[Change, ...]]:
    """See `as_seen`; also tell what was changed."""
    tags, key = getattr(picture, "tag_v2", {}), _transparent_colour(picture)
    turn: Any = tags.get(ExifTags.Base.Orientation)  # which Pillow obeys when it loads a TIFF
    changes: list[Change] = ["turned"] if turn in _TURNS else []
    picture.load()
    if picture.mode == "F" or picture.mode.startswith("I"):
        seen = _scaled(picture, tags)
        changes.append("scaled")
    elif picture.has_transparency_data:
        seen, alpha = Image.new("RGB", picture.size, "white"), _with_alpha(picture, key)
        seen.paste(alpha, mask=alpha)
        if alpha.getchannel("A").getextrema() != (255, 255):
            changes.append("flattened")
    else:
        seen = picture.convert("RGB")
    turn = _orientation(picture)
    if turn in _TURNS:
        seen = seen.transpose(_TURNS[turn])
        changes.append("turned")
    seen.info.clear()  # what is turned must not be turned again; a profile may be larger than it
    return seen, tuple(changes)


def _goes_on(picture: Image.Image) -> bool:
    """Tell whether further frames follow; those of a PSD are layers, which are seen as one."""
    try:
        return picture.format != "PSD" and getattr(picture, "is_animated", False)
    except Exception:  # what follows is damaged
        return True


def _orientation(picture: Image.Image) -> Any:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged, so that nobody sees it turned
        return None


def _transparent_colour(picture: Image.Image) -> Any:
    """Return the transparent colour as Pillow's pixels have it; this is known before they load."""
    key: Any = picture.info.get("transparency")
    tiles: Any = getattr(picture, "tile", None)
    factor = _KEY_OF.get(tiles[0][3]) if tiles and isinstance(tiles[0][3], str) else None
    if factor is None or key is None:
        return key
    return int(key * factor) if isinstance(key, int) else tuple(int(each * factor) for each in key)


def _with_alpha(picture: Image.Image, key: Any) -> Image.Image:
    """Return a picture with transparency as RGBA."""
    if picture.mode == "La":
        return picture.convert("LA").convert("RGBA")
    if key != picture.info.get("transparency"):
        picture = picture.copy()
        picture.info["transparency"] = key
    return picture.convert("RGBA")


def _scaled(picture: Image.Image, tags: Any) -> Image.Image:
    """Scale a picture of more than 8 bits by the range of its type."""
    pixels = np.asarray(picture)
    if picture.mode == "F":
        low, high, white = pixels.min(), pixels.max(), 1.0
        if not (low >= 0 and high <= white):  # also where one is not a number
            raise DataError(
                f"its floating-point numbers go from {low:g} to {high:g}, and only 0 for black to "
                "1 for white can be told; save it with 8 or 16 bits"
            )
    elif picture.mode == "I" and picture.format != "PPM":  # of which Pillow makes 16 bits
        raise DataError(
            "nothing says which of its numbers, of 32 bits or with a sign, is white; save it with "
            "8 bits, or with 16 without a sign"
        )
    else:
        white = float(2 ** tags.get(_BITS, (16,))[0] - 1)
    grey = np.rint(pixels * np.float32(255 / white)).astype(np.uint8)
    if tags.get(_MEANING) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if picture.info.get("transparency") is not None:
        grey[pixels == picture.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _too_large(width: int, height: int) -> str:
    return (
        f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are opened; "
        "make it smaller, or leave its rows out"
    )


def _size(path: Path) -> tuple[int, int]:
    """Read the size of a picture that Pillow refuses to open; nothing is decoded."""
    with _HEADERS_ONLY:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with open_regular(path) as file, Image.open(file) as picture:
                return picture.size
        finally:
            Image.MAX_IMAGE_PIXELS = limit
