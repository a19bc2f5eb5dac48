"""CSV and TSV with a header: each line below it a row, an empty cell nothing at all.

The delimiter is what the header has most of: comma, semicolon (as Excel writes it in half of
Europe) or tab. Every value is a text, as the file has it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from undrift.data.formats.encodings import utf8
from undrift.data.formats.wording import brief
from undrift.errors import DataError
from undrift.untrusted import Refused, not_utf8
from undrift.untrusted.bounded_json import MAX_LINE

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a table.

    Args:
        path: A file ending in .csv or .tsv, UTF-8 or UTF-16.

    Yields:
        The number of each row below the header, from 1, and the row, or a `Refused`.

    Raises:
        DataError: If it cannot be read, has no header, or a column twice.
    """
    csv.field_size_limit(MAX_LINE)
    number = 0
    with utf8(path) as file:
        lines = _lines(path, file)
        first = next(lines, "")
        delimiter = max(DELIMITERS[path.suffix.lower()], key=first.count)
        table = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        try:
            header = next(table, [])
            if not any(map(str.strip, header)):
                raise DataError(f"{path} is empty; expected a header and rows")
            if twice := [name for name in header if header.count(name) > 1]:
                raise DataError(f"{path} has two columns called {brief(twice[0])}; rename one")
            for cells in table:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(header):
                    said = f"it has {len(cells)} cells, and the header has {len(header)}"
                    yield number, Refused(f"{said}; quote texts that hold the delimiter")
                    continue
                pairs = zip(header, cells, strict=True)
                yield number, {key: value for key, value in pairs if value}
        except csv.Error as error:
            raise DataError(f"{path} is damaged behind row {number}: {error}") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"cannot read {path}: line {number} has more than {MAX_LINE:,} bytes")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"cannot read {path}, line {number}: {not_utf8(error)}") from error
