"""Pictures from files: opened within a bound of pixels, and many of them tried at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from undrift.errors import DataError
from undrift.untrusted import open_regular

MAX_PIXELS = 2**28 // 3
"""A quarter of a GiB as RGB, 9,459 x 9,459: the number above which Pillow suspects a bomb. With a
higher one there would be pictures that are opened, but with Pillow's warning."""

Progress = Callable[[int, int], None]

_HEADERS_ONLY = Lock()
_AT_ONCE = 32  # pictures a job, so that a million pictures are no million jobs


class Survey(NamedTuple):
    """What many pictures are like.

    Args:
        sizes: Width and height of those that can be read.
        unreadable: What is wrong with those that cannot.
    """

    sizes: dict[Path, tuple[int, int]]
    unreadable: dict[Path, str]


def open_picture(path: Path) -> Image.Image:
    """Open a picture as RGB.

    Args:
        path: The file.

    Returns:
        The picture, fully read.

    Raises:
        DataError: If the file is missing, damaged or no picture, if it is no regular file, or if
            its header tells of more than `MAX_PIXELS`; then nothing has been decoded.
    """
    opened = _opened(path)
    if isinstance(opened, str):
        raise DataError(f"cannot read the picture {path}: {opened}")
    return opened


def small_picture(path: Path, side: int) -> Image.Image:
    """Open a picture for people to look at: small, and turned as its camera says.

    Args:
        path: The file.
        side: Its longest side has at most so many pixels.

    Returns:
        The picture as RGB.

    Raises:
        DataError: See `open_picture`.
    """
    opened = _opened(path, side)
    if isinstance(opened, str):
        raise DataError(f"cannot read the picture {path}: {opened}")
    return opened


def survey(
    paths: Iterable[Path], workers: int | None = None, progress: Progress | None = None
) -> Survey:
    """Open pictures as `open_picture` would, in parallel, each of them once.

    Threads do, since Pillow decodes without holding the interpreter's lock.

    Args:
        paths: Picture files, in any order, repetitions allowed.
        workers: Threads; one a CPU if not given, and 32 at the most.
        progress: Called with (pictures done, pictures in all).

    Returns:
        The sizes of those that can be read, and what is wrong with the others.
    """
    once, done, found = list(dict.fromkeys(paths)), 0, Survey({}, {})
    jobs = [once[start : start + _AT_ONCE] for start in range(0, len(once), _AT_ONCE)]
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 32))
    try:
        for job, outcomes in zip(jobs, pool.map(_try, jobs), strict=True):
            for path, outcome in zip(job, outcomes, strict=True):
                if isinstance(outcome, str):
                    found.unreadable[path] = outcome
                else:
                    found.sizes[path] = outcome
            done += len(job)
            if progress is not None:
                progress(done, len(once))
    finally:
        pool.shutdown(cancel_futures=True)  # when stopped, the rest is not opened first
    return found


def unreadable(
    paths: Iterable[Path], workers: int | None = None, progress: Progress | None = None
) -> dict[Path, str]:
    """Find the pictures that `open_picture` would refuse; see `survey`.

    Args:
        paths: Picture files, in any order, repetitions allowed.
        workers: Threads; one a CPU if not given, and 32 at the most.
        progress: Called with (pictures done, pictures in all).

    Returns:
        What is wrong with each of them; the good ones are left out.
    """
    return survey(paths, workers, progress).unreadable


def _try(paths: Iterable[Path]) -> list[tuple[int, int] | str]:
    opened = map(_opened, paths)
    return [picture if isinstance(picture, str) else picture.size for picture in opened]


def _opened(path: Path, side: int | None = None) -> Image.Image | str:
    """Open a picture, in full or small, or say what is wrong with it."""
    try:
        with open_regular(path) as file, Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return _too_large(*picture.size)
            if picture.format == "EPS":
                return "it is PostScript, a program; make a PNG of it"
            return picture.convert("RGB") if side is None else _small(picture, side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _too_large(*_size(path))
    except UnidentifiedImageError:
        return "it is no picture, or of a kind that Pillow does not know"
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        if isinstance(error, OSError) and error.strerror:  # the file system's word, no decoder's
            return error.strerror
        return f"{str(error) or type(error).__name__}; the file is damaged, get it again"


def _small(picture: Image.Image, side: int) -> Image.Image:
    picture.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a fraction of its size
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    ImageOps.exif_transpose(small, in_place=True)
    small.info.clear()  # a colour profile may be larger than the picture
    return small


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
