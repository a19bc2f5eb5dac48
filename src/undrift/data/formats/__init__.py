"""Files of rows, a format a file behind one front: what a file IS decides, never its suffix alone.

Every reader gives the number of each row, from 1, and its value, or `Refused` where there is one
that cannot be used: no other row suffers from it. What spoils a whole file is a `DataError`. A new
format is one more file here and one more line in `rows_in`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from undrift.data.formats import csv_text, json_text, parquet, saved
from undrift.data.formats.wording import Rows, brief
from undrift.errors import DataError
from undrift.untrusted import is_folder, is_regular, open_regular, why

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
    if (part := _PART.fullmatch(path.name)) and is_regular(path):
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
    return _file_rows(path)


def _one_after_another(parts: list[Path]) -> Iterator[tuple[int, Any]]:
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
    if head.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        return parquet.rows(path)
    for start, what in _NOT_READ.items():
        if head.startswith(start):
            raise DataError(f"cannot read {path}: it is {what}")
    json_like = head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] in (b"[", b"{")
    if path.suffix.lower() in csv_text.DELIMITERS and not json_like:
        return csv_text.rows(path)
    if json_like or path.suffix.lower() in SUFFIXES or not head.strip():
        return json_text.rows(path)
    raise DataError(
        f"cannot read {path}: it is no JSON; expected JSON, a table ending in .csv or .tsv, "
        "parquet, or a folder of Dataset.save_to_disk"
    )


def _folder_rows(path: Path) -> Rows:
    if saved.is_dataset(path):
        return saved.rows(path)
    if saved.is_dataset_dict(path):
        raise DataError(f"{path} holds several splits; name one of the folders in it")
    raise DataError(
        f"cannot read {path}: expected a file of rows or a folder of Dataset.save_to_disk, and it "
        "is another folder"
    )
