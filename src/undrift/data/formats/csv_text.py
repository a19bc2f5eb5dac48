"""CSV and TSV with a header: each line below it a row, an empty cell nothing at all.

The delimiter is what the header has most of: comma, semicolon (as Excel writes it in half of
Europe) or tab; or what a first line `sep=;` says, which is Excel's as well. Every value is a text,
as the file has it; only a list of texts, written as JSON, is one under `answers` and `images`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from undrift.data.formats.encodings import utf8
from undrift.data.formats.wording import brief
from undrift.errors import DataError
from undrift.untrusted import MAX_LINE, NotJson, Refused, not_utf8, parse_json

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
KEYS = frozenset(
    "id question_id image images system history conversations messages text question query "
    "instruction input prompt problem answer answers answer_bbox response output completion "
    "solution".split()
)
"""What rows are read by; people write these with a capital letter, too."""

_LISTS = ("answers", "images")
_SAID = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|[\r\n]|\Z)")
_QUOTES = (
    'a cell that begins with " ends with the next one; where the mark belongs to the text, put '
    "the cell into quotation marks and double those inside"
)


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a table.

    Args:
        path: A file ending in .csv or .tsv, UTF-8 or UTF-16.

    Yields:
        The number of each row below the header, from 1, and the row, or a `Refused`.

    Raises:
        DataError: If it cannot be read, has no header, or a column twice; or if a quotation mark
            may have joined rows.
    """
    csv.field_size_limit(MAX_LINE)
    number = 0
    with utf8(path) as file:
        lines = _Lines(path, file)
        first, delimiter = _first(lines, DELIMITERS[path.suffix.lower()])
        table = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        header = _header(path, table)
        while True:
            lines.row.clear()
            try:
                cells = next(table, None)
            except csv.Error as error:
                number += 1
                if len(lines.row) > 1:
                    raise _damaged(path, lines, str(error)) from error
                yield number, Refused(f"line {lines.number}: {error}; {_QUOTES}")
                continue
            if cells is None:
                return
            if not cells:
                continue
            number += 1
            rows_alone = all(line.count("\t") == len(header) - 1 for line in lines.row)
            if delimiter == "\t" and len(lines.row) > 1 and rows_alone:
                raise _damaged(path, lines, "a quotation mark joins lines that look like rows")
            if len(cells) != len(header):
                said = f"it has {len(cells)} cells, and the header has {len(header)}"
                yield number, Refused(f"{said}; quote texts that hold the delimiter")
                continue
            pairs = zip(header, cells, strict=True)
            yield number, {key: _value(key, cell) for key, cell in pairs if cell.strip()}


class _Lines:
    """The lines of a file, their count, and those of the row that is being read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.number, self.row = path, 0, list[str]()
        self._lines = self._each(file)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.row.append(line)
        return line

    def _each(self, file: BinaryIO) -> Iterator[str]:
        old = False  # lines end in \r alone, as on a Macintosh of old
        while line := file.readline(MAX_LINE + 1):
            self.number += 1
            where = f"cannot read {self.path}"
            if len(line) > MAX_LINE:
                raise DataError(f"{where}: line {self.number} has more than {MAX_LINE:,} bytes")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}, line {self.number}: {not_utf8(error)}") from error
            old = old or (self.number == 1 and "\r" in text.removesuffix("\n").removesuffix("\r"))
            if not old:
                yield text
                continue
            self.number -= 1
            for found in _LINE.finditer(text):
                if found.group():
                    self.number += 1
                    yield found.group()


def _first(lines: _Lines, delimiters: str) -> tuple[str, str]:
    """Return the first line that says anything, and the delimiter."""
    said = ""
    for line in lines:
        if not said and (found := _SAID.fullmatch(line)):
            said = found[1]
        elif line.strip(f'{delimiters}{said}" \t\r\n'):
            return line, said or max(delimiters, key=line.count)
    return "", said or delimiters[0]


def _header(path: Path, table: Iterator[list[str]]) -> list[str]:
    """Read the names of the columns, without spaces around them; known ones in small letters."""
    try:
        header = [name.strip() for name in next(table, [])]
    except csv.Error as error:
        raise DataError(f"the header of {path} is damaged: {error}; {_QUOTES}") from error
    if not any(header):
        raise DataError(f"{path} is empty; expected a header and rows")
    small = [name.lower() for name in header]
    header = [
        low if low in KEYS and low not in header else name
        for name, low in zip(header, small, strict=True)
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


def _damaged(path: Path, lines: _Lines, said: str) -> DataError:
    start = lines.number - len(lines.row) + 1
    return DataError(f"{path} is damaged at line {start} to {lines.number}: {said}; {_QUOTES}")
