"""Texts and JSON read strictly: what another reader could understand otherwise is refused."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from undrift.errors import RunDirError
from undrift.rundir.damage import damaged

_DEEPEST = 64  # levels; ours have eight at most, and Python's own stack ends at a thousand
_DIGITS = 20  # of a whole number: 64 bits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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
        RunDirError: If it is no JSON, holds a key twice, half a character, a number beyond 64
            bits or none at all, or is nested too deep.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_whole,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise damaged(path, f"line {line + error.lineno - 1}: {error.msg}") from error
    except RecursionError as error:
        raise damaged(path, "it is nested too deep") from error
    except UnicodeEncodeError as error:
        raise damaged(path, "half a character (U+D800 to U+DFFF)") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(path, value)
    return value


def short(value: Any) -> str:
    """Show the beginning of a value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {short(twice)} stands twice in one object")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {short(text)} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    return int(text)


def _check_depth(path: Path, value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise damaged(path, "it is nested too deep")
