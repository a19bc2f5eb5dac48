"""Rows of text files, JSON, CSV and TSV, in UTF-8 or UTF-16.

JSON is an array of rows, a row a line, or rows one after another, whatever the file's suffix;
commas between rows need no brackets around them. A file of lines is read line by line, however
large it is, and a damaged line spoils no other; the rest is read as a whole. An object that has a
key twice makes a bad row: which of the values was meant cannot be known.

CSV and TSV have a header, and an empty cell is nothing at all. The delimiter is what the header has
most of: comma, semicolon (as Excel writes it in half of Europe) or tab; or what a first line
`sep=;` says, which is Excel's as well. Every value is a text, as the file has it; only a list of
texts, written as JSON, is one under `answers` and `images`.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from json import JSONDecoder, detect_encoding
from pathlib import Path
from typing import Any, BinaryIO

from undrift.errors import DataError, brief
from undrift.untrusted import (
    MAX_BYTES,
    MAX_LINE,
    NotJson,
    Refused,
    json_elements,
    json_lines,
    not_utf8,
    open_regular,
    parse_json,
    read_regular,
    read_text,
    why,
)

Rows = Iterator[tuple[int, Any]]
"""The number of each row, from 1 (of the line, in a file of JSON lines), and its value; a `Refused`
where there is one that cannot be used."""

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
KEYS = frozenset(
    "id question_id image images system history conversations messages text question query "
    "instruction input prompt problem answer answers answer_bbox response output completion "
    "solution".split()
)
"""What rows are read by; in a header, people write these with a capital letter, too."""

_MORE = "Extra data"  # what Python says of a line that goes on behind its value
_OBJECT, _COMMA = re.compile(r"\s*(?=\{)"), re.compile(r"\s*,")
_LISTS = ("answers", "images")
_DELIMITER = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|[\r\n]|\Z)")
_QUOTES = (
    'a cell that begins with " ends with the next one; where the mark belongs to the text, put '
    "the cell into quotation marks and double those inside"
)


@contextmanager
def utf8(path: Path) -> Iterator[BinaryIO]:
    """Open a text file; one of UTF-8 is never in memory as a whole.

    Args:
        path: The file.

    Yields:
        Its text as UTF-8 without a byte order mark, not yet checked.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with open_regular(path) as file:
            encoding = detect_encoding(file.peek(4)[:4])
            if encoding.startswith("utf-8"):
                if encoding == "utf-8-sig":
                    file.read(len(codecs.BOM_UTF8))
                yield file
                return
        text = read_regular(path).decode(encoding)
        yield BytesIO(text.removeprefix("\ufeff").encode())
    except UnicodeDecodeError as error:
        found = f"it begins as {error.encoding.upper()}, and is not at byte {error.start:,}"
        raise DataError(f"cannot read {path}: {found}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error


# ------------------------------------------------------------ JSON


def read_json(path: Path) -> Any:
    """Read a JSON file as a whole; a DataError names line and column where it is damaged."""
    try:
        return parse_json(read_text(path), unique=True)
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error
    except NotJson as error:
        raise _damaged_json(path, error) from error


def json_rows(path: Path) -> Rows:
    """Read the rows of a JSON file; a DataError tells what spoils more of it than a line."""
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
            raise _damaged_json(path, error) from error


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


def _damaged_json(path: Path, error: NotJson) -> DataError:
    if error.line is None:
        return DataError(f"cannot read {path}: {error.reason}")
    return DataError(
        f"{path} is damaged at line {error.line}, column {error.column}: {error.reason}; "
        "download it again (a cut-off download looks like this)"
    )


# ------------------------------------------------------------ CSV and TSV


def csv_rows(path: Path) -> Rows:
    """Read the rows below the header of a .csv or .tsv file.

    A DataError tells of a file that has no header, or a column twice, and of a quotation mark that
    may have joined rows.
    """
    csv.field_size_limit(MAX_LINE)
    number = 0
    with utf8(path) as file:
        lines = _lines(path, file)
        before, first, delimiter = _first(lines, DELIMITERS[path.suffix.lower()])
        table = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        header = _header(path, table)
        while True:
            start = before + table.line_num + 1
            try:
                cells = next(table, None)
            except csv.Error as error:
                number, end = number + 1, before + table.line_num
                if end > start:
                    raise _damaged_csv(path, start, end, str(error)) from error
                yield number, Refused(f"line {end}: {error}; {_QUOTES}")
                continue
            if cells is None:
                return
            if not cells:
                continue
            number, end = number + 1, before + table.line_num
            joined = re.split(r"\r\n|[\r\n]", "\t".join(cells))
            rows_alone = all(line.count("\t") == len(header) - 1 for line in joined)
            if delimiter == "\t" and end > start and rows_alone:
                what = "a quotation mark joins lines that look like rows"
                raise _damaged_csv(path, start, end, what)
            if len(cells) != len(header):
                found = f"it has {len(cells)} cells, and the header has {len(header)}"
                yield number, Refused(f"{found}; quote texts that hold the delimiter")
                continue
            pairs = zip(header, cells, strict=True)
            yield number, {key: _value(key, cell) for key, cell in pairs if cell.strip()}


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file, whatever they end in."""
    number = 0
    old = False  # lines end in \r alone, as on a Macintosh of old
    while line := file.readline(MAX_LINE + 1):
        where = f"cannot read {path}"
        if len(line) > MAX_LINE:
            raise DataError(f"{where}: line {number + 1} has more than {MAX_LINE:,} bytes")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}, line {number + 1}: {not_utf8(error)}") from error
        old = old or (not number and "\r" in text.removesuffix("\n").removesuffix("\r"))
        for one in filter(None, _LINE.findall(text)) if old else (text,):
            number += 1
            yield one


def _first(lines: Iterator[str], delimiters: str) -> tuple[int, str, str]:
    """Return the first line that says anything, how many are before it, and the delimiter."""
    named = ""
    for before, line in enumerate(lines):
        if not named and (found := _DELIMITER.fullmatch(line)):
            named = found[1]
        elif line.strip(f'{delimiters}{named}" \t\r\n'):
            return before, line, named or max(delimiters, key=line.count)
    return 0, "", named or delimiters[0]


def _header(path: Path, table: Iterator[list[str]]) -> list[str]:
    """Read the names of the columns, without spaces around them; known ones in small letters."""
    try:
        header = [name.strip() for name in next(table, [])]
    except csv.Error as error:
        raise DataError(f"the header of {path} is damaged: {error}; {_QUOTES}") from error
    if not any(header):
        raise DataError(f"{path} is empty; expected a header and rows")
    header = [
        name.lower() if name.lower() in KEYS and name.lower() not in header else name
        for name in header
    ]
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{path} has two columns called {brief(twice[0])}; rename one")
    return header


def _value(key: str, cell: str) -> Any:
    if key not in _LISTS or not cell.lstrip().startswith("["):
        return cell
    try:
        listed = parse_json(cell)
    except NotJson:
        return cell
    texts = isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed)
    return listed if texts else cell


def _damaged_csv(path: Path, start: int, end: int, what: str) -> DataError:
    return DataError(f"{path} is damaged at line {start} to {end}: {what}; {_QUOTES}")
