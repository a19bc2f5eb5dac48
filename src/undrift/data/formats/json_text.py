"""JSON: an array of rows, a row a line, or rows one after another, whatever the file's suffix.

Commas between rows need no brackets around them.

A file of lines is read line by line, however large it is, and a damaged line spoils no other. The
others are read as a whole. An object that has a key twice makes a bad row: which of the values was
meant cannot be known.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from json import JSONDecoder
from pathlib import Path
from typing import Any, BinaryIO

from undrift.data.formats.encodings import utf8
from undrift.errors import DataError
from undrift.untrusted import (
    MAX_BYTES,
    MAX_LINE,
    NotJson,
    Refused,
    json_elements,
    json_lines,
    not_utf8,
    parse_json,
    read_text,
    why,
)

_MORE = "Extra data"  # what Python says of a line that goes on behind its value
_OBJECT, _COMMA = re.compile(r"\s*(?=\{)"), re.compile(r"\s*,")


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
                        more = "; a row a line, and nothing behind it" * (row.reason == _MORE)
                        row = Refused(f"no JSON at {where}: {row.reason}{more}")
                    yield number, row
                return
            text = _whole(path, file)
            if _lacks_brackets(text):
                text = f"[{text.rstrip().removesuffix(',')}]"
            yield from enumerate(json_elements(text, unique=True), 1)
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
    """Tell whether of the first two lines one is an object, and none several; rewind the file."""
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
    texts = [line.decode(errors="replace") for line in lines]
    return max(map(_objects, texts)) == 1 and not _lacks_brackets(texts[0])


def _lacks_brackets(text: str) -> bool:
    """Tell whether a comma is behind the first object, as in an array."""
    if not (start := _OBJECT.match(text)):
        return False
    try:
        _, end = JSONDecoder().raw_decode(text, start.end())
    except (ValueError, RecursionError):
        return False
    return _COMMA.match(text, end) is not None


def _objects(line: str) -> int:
    """Count the objects of a line; 0 if it is damaged, or begins with something else."""
    if not line.lstrip().startswith("{"):
        return 0
    try:
        return len(list(json_elements(line)))
    except NotJson:
        return 0


def _damaged(path: Path, error: NotJson) -> DataError:
    if error.line is None:
        return DataError(f"cannot read {path}: {error.reason}")
    return DataError(
        f"{path} is damaged at line {error.line}, column {error.column}: {error.reason}; "
        "download it again (a cut-off download looks like this)"
    )
