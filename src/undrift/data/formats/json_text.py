"""JSON: an array of rows, a row a line, or rows one after another, whatever the file's suffix.

A file of lines is read line by line, however large it is, and a damaged line spoils no other. The
others are read as a whole. An object that has a key twice makes a bad row: which of the values was
meant cannot be known.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from undrift.data.formats.encodings import utf8
from undrift.errors import DataError
from undrift.untrusted import (
    NotJson,
    Refused,
    json_elements,
    json_lines,
    not_utf8,
    parse_json,
    read_text,
    why,
)
from undrift.untrusted.bounded_json import MAX_LINE
from undrift.untrusted.regular import MAX_BYTES


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
        return parse_json(read_text(path), unique=True)
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error
    except NotJson as error:
        raise _damaged(path, error) from error


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a JSON file.

    Args:
        path: The file: UTF-8 or UTF-16.

    Yields:
        The number of each row (of the line, in a file of lines) and its value, or a `Refused`.

    Raises:
        DataError: If it cannot be read, is empty, or is damaged other than in a line.
    """
    with utf8(path) as file:
        try:
            if _has_a_row_a_line(path, file):
                for number, row in json_lines(file, unique=True):
                    if isinstance(row, Refused) and row.column is not None:
                        where = f"line {number}, column {row.column}"
                        row = Refused(f"no JSON at {where}: {row.reason}")
                    yield number, row
                return
            yield from enumerate(json_elements(_whole(path, file), unique=True), 1)
        except UnicodeDecodeError as error:
            raise DataError(f"cannot read {path}: {not_utf8(error)}") from error
        except NotJson as error:
            raise _damaged(path, error) from error


def _whole(path: Path, file: BinaryIO) -> str:
    """Read what is left of a file that has no row a line."""
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    if size > MAX_BYTES:
        raise DataError(f"cannot read {path}: it has more than {MAX_BYTES:,} bytes, and no lines")
    return file.read(size).decode()


def _has_a_row_a_line(path: Path, file: BinaryIO) -> bool:
    """Tell whether one of the first two lines is an object by itself; leave the file as it was."""
    start, lines = file.tell(), list[bytes]()
    while len(lines) < 2 and (line := file.readline(MAX_LINE + 1)):
        if line.strip():
            lines.append(line)
    file.seek(start)
    if not lines:
        raise DataError(f"{path} is empty; expected rows")
    if lines[0].lstrip().startswith(b"["):
        return False
    if lines[0].startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    return any(map(_is_an_object, lines))


def _is_an_object(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        found = list(json_elements(line.decode(errors="replace")))
    except NotJson:
        return False
    return len(found) == 1


def _damaged(path: Path, error: NotJson) -> DataError:
    if error.line is None:
        return DataError(f"cannot read {path}: {error.reason}")
    return DataError(
        f"{path} is damaged at line {error.line}, column {error.column}: {error.reason}; "
        "download it again (a cut-off download looks like this)"
    )
