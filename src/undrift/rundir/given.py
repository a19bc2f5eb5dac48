"""Paths that a user gives: what is said of one that is missing, and whether one can be written."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from undrift.errors import RunDirError
from undrift.rundir.files import TEMPORARY


def missing(path: Path) -> str:
    """Say that a path does not exist, and which name comes nearest.

    Args:
        path: The path.

    Returns:
        Such as `adapters/w1 does not exist; the nearest name in adapters is 'v1'`.
    """
    lost = path
    while not os.path.isdir(lost.parent) and lost.parent != lost:  # noqa: PTH112 (never raises)
        lost = lost.parent
    try:
        names = sorted(os.listdir(lost.parent))  # noqa: PTH208 (names are wanted, not paths)
    except OSError:
        names = []
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(lost.name.casefold(), folded, n=1, cutoff=0.0)
    place = "here" if lost.parent == Path() else f"in {lost.parent}"
    what = "" if lost == path else f": there is no {lost.name!r} {place}"
    return f"{path} does not exist{what}" + (
        f"; the nearest name {place} is {folded[near[0]]!r}" if near else ""
    )


def check_writable(
    path: Path, *, file: bool = False, choose: str = "choose another place with --out"
) -> None:
    """Refuse what cannot be written, before anything is computed for it.

    A few bytes are written beside it and deleted. Nothing stays behind, and no folder is made.

    Args:
        path: What is going to be written; it need not exist.
        file: It is a file, not a folder.
        choose: What to do otherwise, for the message.

    Raises:
        RunDirError: If it cannot be written.
    """
    try:
        folder = path.parent if file and path.is_file() else path
        lost = []
        while not os.path.lexists(folder):
            lost.append(folder.name)
            folder = folder.parent
        if folder == path and file:
            raise RunDirError(f"cannot write {path}: it is a folder; {choose}")
        if not folder.is_dir():
            kind = "is a file" if folder.is_file() else "is no folder"
            raise RunDirError(f"cannot write {path}: {folder} {kind}; {choose}")
        for name in lost:
            _looked_up(folder / name)
        probe = folder / f".undrift.{os.getpid()}{TEMPORARY}"
        try:
            with probe.open("wb") as opened:
                opened.write(b"undrift")
                opened.flush()
                os.fsync(opened.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # the second of a name with a zero byte
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise RunDirError(f"cannot write {path}: {said}; {choose}") from error


def _looked_up(path: Path) -> None:
    """Let the system refuse a name that there cannot be, such as one of 300 letters."""
    with suppress(FileNotFoundError):
        path.lstat()
