"""Files that are seen whole or not at all, and the JSON in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from undrift.errors import RunDirError

TEMPORARY = ".writing"


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is seen whole or not at all, replacing an older one.

    Args:
        path: The file; missing parent folders are made.
        content: Text (written as UTF-8) or bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Fill a folder that appears at `path` only if the block ends without an error.

    Args:
        path: The folder; one that is there already is replaced at the end.

    Yields:
        An empty folder beside it, to be filled.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        path: The file.
        value: Anything JSON can hold; not-a-number and infinity are refused.

    Raises:
        RunDirError: If JSON cannot hold the value.
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunDirError(f"cannot write {path} as JSON: {error}") from error
    atomic_write(path, _encoded(text + "\n"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its value.

    Raises:
        RunDirError: If the file is missing or is not JSON.
    """
    return _parsed(path, text_of(path), 1)


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as JSON lines, atomically.

    Args:
        path: The file.
        rows: One mapping a line.
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    atomic_write(path, _encoded("".join(lines)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines.

    Args:
        path: The file.

    Returns:
        One dictionary a line.

    Raises:
        RunDirError: If the file is missing or a line of it is not JSON.
    """
    lines = text_of(path).split("\n")
    return [_parsed(path, line, number) for number, line in enumerate(lines, 1) if line]


def text_of(path: Path) -> str:
    """Read a text file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        RunDirError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirError(f"cannot read {path}: {error}") from error


def _encoded(text: str) -> bytes:
    """Encode JSON; half a character, of a path that is not UTF-8, becomes an escape of JSON's."""
    return text.encode(errors="backslashreplace")


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunDirError(
            f"{path} is damaged, line {line + error.lineno - 1}: {error.msg}; "
            "delete the file and run the same command again"
        ) from error
