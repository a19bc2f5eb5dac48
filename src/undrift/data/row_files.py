"""How the rows of a file are got at: a JSON array, JSON lines, parquet, a dataset's tables.

Every reader gives the number of each row, from 1, and its value, or `Refused` where there is one
that cannot be used: no other row suffers from it. What spoils a whole file is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from undrift.errors import DataError, missing_extra
from undrift.untrusted import (
    NotJson,
    Refused,
    json_elements,
    json_lines,
    open_regular,
    parse_json,
    read_text,
    why,
)

Rows = Iterator[tuple[int, Any]]
_AT_ONCE = 256  # rows of a table that are in memory, for they may hold pictures


def json_of(path: Path) -> Any:
    """Read a JSON file as a whole.

    Args:
        path: The file.

    Returns:
        Its value.

    Raises:
        DataError: If it cannot be read; damaged JSON is named with line and column.
    """
    try:
        return parse_json(text_of(path))
    except NotJson as error:
        raise _damaged(path, error) from error


def text_of(path: Path) -> str:
    """Read a text file.

    Args:
        path: The file, UTF-8.

    Returns:
        Its text.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return read_text(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error


def short(value: Any) -> str:
    """Say what a value is, in a few words."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(brief, list(value)[:5])) or '(none)'}"
    return f"{type(value).__name__} {brief(str(value))}"


def brief(value: Any) -> str:
    """Write a value as Python does, its first 60 characters."""
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def _json_rows(path: Path) -> Rows:
    text = text_of(path)
    try:
        if not text.lstrip().startswith("["):
            held = short(parse_json(text))
            raise DataError(f"{path} should hold one array of rows, but it holds {held}")
        yield from enumerate(json_elements(text), 1)
    except NotJson as error:
        raise _damaged(path, error) from error


def _line_rows(path: Path) -> Rows:
    try:
        with open_regular(path) as file:
            for number, row in json_lines(file):
                if isinstance(row, Refused) and row.column is not None:
                    where = f"line {number}, column {row.column}"
                    row = Refused(f"no JSON at {where}: {row.reason}")
                yield number, row
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error
    except NotJson as error:
        raise _damaged(path, error) from error


def _parquet_rows(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", f"reading {path}") from error
    try:
        with open_regular(path) as opened, parquet.ParquetFile(opened) as file:
            yield from table_rows(file.iter_batches(batch_size=_AT_ONCE))
    except (OSError, ArrowException) as error:
        said = why(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {said}") from error


def table_rows(tables: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """Take the rows out of tables of pyarrow.

    Args:
        tables: Tables or record batches, one after another.

    Yields:
        The number of each row, from 1, and the row, or a `Refused`.
    """
    number = 0
    for table in tables:
        try:
            rows = table.to_pylist()
        except Exception:  # one cell is enough: text that is no UTF-8, a date beyond Python's
            rows = [_row(table.slice(at, 1)) for at in range(table.num_rows)]
        for row in rows:
            number += 1
            yield number, row


def _row(table: Any) -> Any:
    try:
        return table.to_pylist()[0]
    except Exception as error:
        return Refused(f"it holds a value that cannot be read ({type(error).__name__}: {error})")


def _damaged(path: Path, error: NotJson) -> DataError:
    if error.line is None:
        return DataError(f"cannot read {path}: {error.reason}")
    return DataError(
        f"{path} is damaged at line {error.line}, column {error.column}: {error.reason}; "
        "download it again (a cut-off download looks like this)"
    )


READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": _json_rows,
    ".jsonl": _line_rows,
    ".parquet": _parquet_rows,
}
