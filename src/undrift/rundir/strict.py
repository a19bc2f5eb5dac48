"""Texts and JSON read strictly: what another reader could understand otherwise is refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from undrift.errors import RunDirError
from undrift.rundir.damage import damaged
from undrift.untrusted import NotJson, parse_json


def text_of(path: Path) -> str:
    """Read a text file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        RunDirError: If it cannot be read, or is no regular file.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"no text in UTF-8 (byte {error.start})") from error


def check_regular(path: Path) -> None:
    """Refuse what is no file with a beginning and an end: folders, pipes, devices.

    Args:
        path: What is to be read.

    Raises:
        RunDirError: If it is missing, or is no regular file.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RunDirError(f"cannot read {path}: {said}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise damaged(path, f"it is {kind} and no file")


def parsed(path: Path, text: str, line: int = 1) -> Any:
    """Parse JSON.

    Args:
        path: Where it comes from, for the message.
        text: The JSON.
        line: The number of its first line.

    Returns:
        Its value.

    Raises:
        RunDirError: If it is no JSON, holds a key twice, half a character, a number that is none
            or has hundreds of digits, or is nested too deep.
    """
    try:
        return parse_json(text, unique=True)
    except NotJson as error:
        where = "" if error.line is None else f"line {line + error.line - 1}: "
        raise damaged(path, f"{where}{error.reason}") from error


def short(value: Any) -> str:
    """Show the beginning of a value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
