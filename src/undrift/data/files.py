"""Files of rows, files of pictures: what they hold, and what is there where one is missing.

A row that cannot be used is a `BadRow`. Readers raise at the first one, or put all of them into a
list that they are given, so that a run may skip them and a doctor may count them.
"""

from __future__ import annotations

import difflib
import json
import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from undrift.errors import DataError, missing_extra

_FILE, _LINK, _FOLDER = range(3)


def cache_folder() -> Path:
    """Where drawn pictures, kept pictures and features go: $UNDRIFT_CACHE or ~/.cache/undrift."""
    return Path(os.environ.get("UNDRIFT_CACHE") or Path.home() / ".cache" / "undrift")


class BadRow(NamedTuple):
    """A row that cannot be used.

    Args:
        file: The file it stands in.
        row: Its number, from 1; in a file of JSON lines the number of the line.
        reason: What is wrong, what was expected.
    """

    file: Path
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


def refuse(row: BadRow, bad: list[BadRow] | None) -> None:
    """Raise for a bad row, or put it into a list.

    Args:
        row: The row.
        bad: The list, or None to raise.

    Raises:
        DataError: If there is no list.
    """
    if bad is None:
        raise DataError(str(row))
    bad.append(row)


def read_rows(path: Path, bad: list[BadRow] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a JSON array, of JSON lines or of a parquet file, by the file's suffix.

    Args:
        path: A file that ends in .json, .jsonl or .parquet.
        bad: Receives the rows that are no objects, and the lines that are no JSON. What spoils a
            whole file (a broken array) is raised all the same.

    Yields:
        The number of the row, from 1, and the row; keys whose value is null are left out.

    Raises:
        DataError: If the file cannot be read, is damaged, or holds something else.
        MissingExtra: If it is parquet and pyarrow is not installed.
    """
    readers = {".json": _json_rows, ".jsonl": _line_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise DataError(f"cannot read {path}: expected a file ending in {', '.join(readers)}")
    for number, row in readers[path.suffix](path, bad):
        if isinstance(row, dict):
            yield number, {key: value for key, value in row.items() if value is not None}
        else:
            refuse(BadRow(path, number, f"expected an object, found {_short(row)}"), bad)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its value.

    Raises:
        DataError: If it cannot be read; damaged JSON is named with line and column.
    """
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is damaged at line {error.lineno}, column {error.colno}: {error.msg}; "
            "download it again (a cut-off download looks like this)"
        ) from error


def existing(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of several files or folders that is there.

    Args:
        folder: Where it should be.
        names: What it may be called, the most wanted first.

    Returns:
        Its path.

    Raises:
        DataError: If there is none; the message offers the nearest name.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
    raise DataError(f"{folder / names[0]} does not exist{others}{_instead(folder / names[0])}")


class Pictures:
    """The picture files below one folder, found by the names that rows give them.

    A name is a path relative to the folder, and is taken as it stands: a picture is never looked
    for elsewhere, since two data sets may both hold a `000001.jpg`. No picture is opened; each
    folder is listed once, which costs far less than asking for every file.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()
        self._listed: dict[Path, dict[str, int]] = {}
        self._sorted: dict[Path, list[str]] = {}

    def find(self, name: str) -> Path:
        """Return the file of a picture.

        Args:
            name: A relative path, with slashes; it may begin with `./`.

        Returns:
            The path below `root`.

        Raises:
            DataError: If it leads out of `root` (by `..`, as an absolute path, or through a link)
                or if there is no such file; the message names the nearest one.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        if absolute or not parts or ".." in parts or "\0" in name:
            raise DataError(
                f"the picture's name {name!r} is not a path inside {self.root}; expected one that "
                "is relative to that folder, without '..'"
            )
        path = self.root.joinpath(*parts)
        kind = self._entries(path.parent).get(parts[-1])
        if kind == _LINK:
            self._inside(path)
            kind = _FILE if path.is_file() else None
        if kind != _FILE:
            raise DataError(f"there is no picture {path}{_instead(path, self._names)}")
        return path

    def _entries(self, folder: Path) -> dict[str, int]:
        """Names in a folder, each with its kind; nothing where there is no folder."""
        if folder not in self._listed:
            self._inside(folder)
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name: _kind(entry) for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                self._listed[folder] = {}
            except OSError as error:
                raise DataError(f"cannot list {folder}: {error}") from error
        return self._listed[folder]

    def _names(self, folder: Path) -> list[str]:
        if folder not in self._sorted:
            self._sorted[folder] = _sorted_names(folder)
        return self._sorted[folder]

    def _inside(self, path: Path) -> None:
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links, a name too long
            raise DataError(f"cannot follow {path}: {error}") from error
        if not real.is_relative_to(self._real):
            raise DataError(
                f"{path} is a link that leads out of {self.root}, to {real}; copy or mount what "
                "it points to inside that folder"
            )


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return _LINK
    return _FOLDER if entry.is_dir() else _FILE


def _sorted_names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 (names are wanted, not paths)


def _instead(path: Path, names: Any = _sorted_names) -> str:
    """Say what there is in place of a path that does not exist."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    there = names(path.parent)
    at = bisect(there, path.name)
    near = there[max(0, at - 50) : at + 50]  # a folder may hold a hundred thousand pictures
    missing = f"; {path.name!r} is missing in {path.parent},"
    if not near:
        return f"{missing} which is empty"
    folded = {name.casefold(): name for name in near}
    (best,) = difflib.get_close_matches(path.name.casefold(), folded, n=1, cutoff=0.0)
    return f"{missing} where the nearest name is {folded[best]!r}"


def _json_rows(path: Path, bad: list[BadRow] | None) -> Iterator[tuple[int, Any]]:
    value = read_json(path)
    if not isinstance(value, list):
        raise DataError(f"{path} should hold one array of rows, but it holds {_short(value)}")
    yield from enumerate(value, 1)


def _line_rows(path: Path, bad: list[BadRow] | None) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                where = f"line {number}, column {error.colno}"
                refuse(BadRow(path, number, f"no JSON at {where}: {error.msg}"), bad)


def _parquet_rows(path: Path, bad: list[BadRow] | None) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", f"reading {path}") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(repr, list(value)[:5])) or '(none)'}"
    return f"{type(value).__name__} {str(value)[:40]!r}"
