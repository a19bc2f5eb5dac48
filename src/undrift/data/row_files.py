"""Files of rows: of which format a file is, which are parts of one table, which rows are bad.

What a file IS decides, never its suffix alone. A new format is one more reader and one more line in
`rows_in`. A row that cannot be used is a `BadRow`, and no other row suffers from it: readers raise
at the first one, or put all of them into a list that they are given, so that a run may skip them
and a doctor may count them. What spoils a whole file is a `DataError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from undrift.data.json_and_csv import DELIMITERS, Rows, csv_rows, json_rows
from undrift.data.parquet import dataset_rows, is_dataset, is_dataset_dict, parquet_rows
from undrift.errors import DataError, brief
from undrift.untrusted import Refused, is_folder, is_regular, open_regular, why

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""How files of rows are called where one has to be found by its name."""

_NOT_READ = {
    b"PK\x03\x04": "a zip archive, as Excel's files are; save it as CSV (UTF-8), or unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel file; save it as CSV (UTF-8)",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"ARROW1": "an Arrow file; write it with Dataset.save_to_disk or to_parquet",
    b"SQLite": "a database; export its table as CSV",
    b"\x80\x04": "a pickle, which is a program and never read; write JSON lines or parquet",
    b"\x80\x05": "a pickle, which is a program and never read; write JSON lines or parquet",
}

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?(\.\w+)")
"""How parts of one table are called on the Hub: train-00000-of-00002.parquet."""


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
    """Put a bad row into a list; without one, raise a DataError."""
    if bad is None:
        raise DataError(str(row))
    bad.append(row)


def read_rows(path: Path, bad: list[BadRow] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a file, or of a dataset that `datasets` has saved.

    Args:
        path: See `rows_in`.
        bad: Receives the rows that are no objects, or hold what is refused (see
            `undrift.untrusted`), and the lines that are no JSON. What spoils a whole file (a
            broken array) is raised all the same.

    Yields:
        The number of the row, from 1, and the row; keys whose value is null are left out.

    Raises:
        DataError: If the file cannot be read, is damaged, or holds something else.
        MissingExtra: If what reads it is not installed.
    """
    for number, row in rows_in(path):
        if isinstance(row, dict):
            yield number, {key: value for key, value in row.items() if value is not None}
        elif isinstance(row, Refused):
            refuse(BadRow(path, number, row.reason), bad)
        else:
            found = f"expected an object, found {type(row).__name__} {brief(str(row))}"
            refuse(BadRow(path, number, found), bad)


def rows_in(path: Path) -> Rows:
    """Read the rows of a file, or of a dataset that `datasets` has saved.

    The first part of a table in several (train-00000-of-00002.parquet) stands for all of them,
    whose rows are counted on.

    Args:
        path: JSON (an array, an object a line, objects one after another), CSV or TSV with a
            header, parquet; or a folder of `Dataset.save_to_disk`.

    Returns:
        The number of each row and its value, or a `Refused`.

    Raises:
        DataError: If it cannot be read, is empty, or is none of these; or if it is a part of a
            table and not the first, or another part is missing.
    """
    if is_folder(path):
        return _folder_rows(path)
    if not (part := _PART.fullmatch(path.name)) or not is_regular(path):
        return _file_rows(path)
    parts = parts_of(path)
    numbers = [match[2] for one in parts if (match := _PART.fullmatch(one.name))]
    if numbers != [f"{number:05}" for number in range(int(part[3]))]:
        raise DataError(
            f"{path} is one of {int(part[3])} parts of a table, and its folder has those of "
            f"the numbers {brief(', '.join(numbers))}; put all of them there, each once, or "
            "rename the file to read it alone"
        )
    if path != parts[0]:
        raise DataError(
            f"{path} is a part of a table; name the first, {parts[0].name}, to read all of "
            "it, or rename the file to read it alone"
        )
    return _one_after_another(parts)


def stem(path: Path) -> str:
    """Return what a file or folder is called, without suffixes and the number of a part."""
    part = _PART.fullmatch(path.name)
    return (part[1] if part else path.name).partition(".")[0].lower()


def parts_of(path: Path) -> list[Path]:
    """Return the files that are read with one, in order: those of its table where it is a part."""
    if not (part := _PART.fullmatch(path.name)) or not is_folder(path.parent):
        return [path]
    found = ((_PART.fullmatch(other.name), other) for other in sorted(path.parent.iterdir()))
    return [other for its, other in found if its and its.group(1, 3, 4) == part.group(1, 3, 4)]


def first_parts(paths: Iterable[Path]) -> list[Path]:
    """Leave the first part of each table, and what is no part, by name."""
    first: dict[Any, Path] = {}
    for path in sorted(paths):
        part = _PART.fullmatch(path.name)
        first.setdefault((path.parent, part.group(1, 3, 4)) if part else path, path)
    return list(first.values())


def _one_after_another(parts: list[Path]) -> Rows:
    last = 0
    for part in parts:
        before = last
        for number, row in _file_rows(part):
            last = before + number
            yield last, row


def _file_rows(path: Path) -> Rows:
    try:
        with open_regular(path) as file:
            head = file.read(1024)
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error
    if not head:
        raise DataError(f"{path} is empty; expected rows")
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return parquet_rows(path)
    for start, what in _NOT_READ.items():
        if head.startswith(start):
            raise DataError(f"cannot read {path}: it is {what}")
    json_like = head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] in (b"[", b"{")
    if suffix in DELIMITERS and not json_like:
        return csv_rows(path)
    if json_like or suffix in SUFFIXES or not head.strip():
        return json_rows(path)
    raise DataError(
        f"cannot read {path}: it is no JSON; expected JSON, a table ending in .csv or .tsv, "
        "parquet, or a folder of Dataset.save_to_disk"
    )


def _folder_rows(path: Path) -> Rows:
    if is_dataset(path):
        return dataset_rows(path)
    if is_dataset_dict(path):
        raise DataError(f"{path} holds several splits; name one of the folders in it")
    raise DataError(
        f"cannot read {path}: expected a file of rows or a folder of Dataset.save_to_disk, and it "
        "is another folder"
    )
