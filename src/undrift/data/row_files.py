"""Files of rows: which format a file is, its readers, parts of one table, and which rows are bad.

What a file IS decides, never its suffix alone. A new format is one more reader and one more line in
`_file_rows`. A row that cannot be used is a `BadRow`, and no other row suffers from it: readers
raise at the first one, or put all of them into a list that they are given, so that a run may skip
them and a doctor may count them. What spoils a whole file is a `DataError`.

JSON is an array of rows, a row a line, or rows one after another, whatever the file's suffix, in
UTF-8 or UTF-16; commas between rows need no brackets around them. A file of lines is read line by
line, however large it is, and a damaged line spoils no other; the rest is read as a whole. An
object that has a key twice makes a bad row: which of the values was meant cannot be known.

CSV and TSV have a header, and an empty cell is nothing at all. The delimiter is what the header has
most of: comma, semicolon (as Excel writes it in half of Europe) or tab; or what a first line
`sep=;` says, which is Excel's as well. Every value is a text, as the file has it; only a list, as
JSON writes it, is one under `answers`, `image` and `images`. One under another key of an answer
makes a bad row, since it may be a text as well (but for a box), and so do lists as Python, Spark or
numpy write them where a list may stand.

Parquet files and datasets that `datasets` has saved are read some hundred rows at a time. A number
of a class becomes the class's name. A number of 32 or 16 bits becomes the shortest decimal that
these bits tell from others, as whoever wrote it has seen it: 0.1, not 0.10000000149011612.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from json import JSONDecoder, detect_encoding
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from undrift.data.row_layouts import ANSWERS, are_numbers
from undrift.errors import DataError, brief, missing_extra
from undrift.untrusted import (
    MAX_BYTES,
    MAX_LINE,
    NotJson,
    Refused,
    is_folder,
    is_regular,
    json_elements,
    json_lines,
    not_utf8,
    open_regular,
    parse_json,
    read_regular,
    read_text,
    strange_kind,
    why,
)

Rows = Iterator[tuple[int, Any]]
"""The number of each row, from 1 (of the line, in a file of JSON lines), and its value; a `Refused`
where there is one that cannot be used."""

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

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
KEYS = frozenset(
    "id question_id image images system history conversations messages text question query "
    "instruction input prompt problem answer answers answer_bbox response output completion "
    "solution".split()
)
"""What rows are read by; in a header, people write these with a capital letter, too."""

_MORE = "Extra data"  # what Python says of a line that goes on behind its value
_OBJECT, _COMMA = re.compile(r"\s*(?=\{)"), re.compile(r"\s*,")
_LISTS = ("answers", "image", "images")
_QUOTED = re.compile(r"[\[({]\s*[\"']")  # how lists begin, of Python too, whatever their end
_DELIMITER = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|[\r\n]|\Z)")
_QUOTES = (
    'a cell that begins with " ends with the next one; where the mark belongs to the text, put '
    "the cell into quotation marks and double those inside"
)

Columns = Mapping[str, Any]
"""What `datasets` says about columns, as JSON: {"label": {"names": [...], "_type": ...}, ...}."""

_AT_ONCE = 256  # rows of a table that are in memory, for they may hold pictures
_OF_A_DATASET = ("dataset_info.json", "state.json")
_SHORT = {"float": np.float32, "halffloat": np.float16}


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


# ------------------------------------------------------------ text


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
            yield number, _table_row(header, cells)


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


def _table_row(header: list[str], cells: list[str]) -> Any:
    pairs = zip(header, cells, strict=True)
    try:
        return {key: _value(key, cell) for key, cell in pairs if cell.strip()}
    except DataError as error:
        return Refused(str(error))


def _value(key: str, cell: str) -> Any:
    """Read a cell; a DataError says that it is a list that nobody can be sure of."""
    text, several = cell.strip(), key in _LISTS
    bracketed = text.startswith("[") and text.endswith("]")
    if not (bracketed and key in ANSWERS) and not (several and (bracketed or _QUOTED.match(text))):
        return cell
    try:
        found = parse_json(text, unique=True)
    except NotJson:
        found = None
    if several and isinstance(found, list):
        return found
    if several:
        raise DataError(
            f'{key} is {brief(text)}, and no list of JSON; write it as ["a", "b"], and a text that '
            "only looks like a list as the one text of such a list"
        )
    box = are_numbers(found) and len(found) == 4
    if box or (found is None and not _QUOTED.match(text)):
        return cell
    raise DataError(
        f"{key} is the list {brief(text)}, and in a table that may be a text; several accepted "
        "answers stand under answers, and JSON lines tell a text from a list"
    )


def _damaged_csv(path: Path, start: int, end: int, what: str) -> DataError:
    return DataError(f"{path} is damaged at line {start} to {end}: {what}; {_QUOTES}")


# ------------------------------------------------------------ parquet and saved datasets


def is_dataset(path: Path) -> bool:
    """Tell whether a folder was written by `datasets.Dataset.save_to_disk`."""
    return all(is_regular(path / name) for name in _OF_A_DATASET)


def is_dataset_dict(path: Path) -> bool:
    """Tell whether a folder was written by `datasets.DatasetDict.save_to_disk`."""
    return is_regular(path / "dataset_dict.json")


def parquet_rows(path: Path) -> Rows:
    """Read the rows of a parquet file; a MissingExtra says if pyarrow is not installed."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", f"reading {path}") from error
    try:
        with open_regular(path) as opened, parquet.ParquetFile(opened) as file:
            columns = _columns(file.schema_arrow.metadata)
            yield from table_rows(file.iter_batches(batch_size=_AT_ONCE), columns)
    except (OSError, ArrowException) as error:
        reason = why(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {reason}") from error


def dataset_rows(path: Path) -> Rows:
    """Read the rows of a folder that `datasets` has saved, pictures as they are stored."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "trl", f"reading {path}") from error
    for file in sorted(path.iterdir()):
        if kind := strange_kind(file):
            raise DataError(f"cannot read the dataset {path}: {file.name} is {kind}")
    _check_state(path)
    try:
        stored: Any = datasets.load_from_disk(str(path))
        tables = stored.with_format("arrow").iter(batch_size=_AT_ONCE)  # nothing is decoded
        yield from table_rows(tables, stored.features.to_dict())
    except Exception as error:  # the library raises whatever damaged files lead it to
        raise DataError(f"cannot read the dataset {path}: {error}") from error


def _check_state(path: Path) -> None:
    """Refuse a dataset that sends its reader to files elsewhere."""
    state = read_json(path / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    for file in listed if isinstance(listed, list) else []:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or name != PurePosixPath(name).name:
            raise DataError(
                f"the dataset {path} names a file {brief(name)} that is none of its own; save it "
                "again with Dataset.save_to_disk"
            )


def table_rows(tables: Iterable[Any], columns: Columns) -> Rows:
    """Take the rows out of tables or record batches of pyarrow; see `Columns`."""
    classes = {key: column for key, column in columns.items() if _has_classes(column)}
    number = 0
    for table in tables:
        try:
            rows = table.to_pylist()
        except Exception:  # one cell is enough: text that is no UTF-8, a date beyond Python's
            rows = [_row(table.slice(at, 1)) for at in range(table.num_rows)]
        narrow = {field.name: field.type for field in table.schema if _narrow(field.type)}
        for row in rows:
            number += 1
            yield number, row if isinstance(row, Refused) else _readable(row, narrow, classes)


def _columns(metadata: Mapping[bytes, bytes] | None) -> Columns:
    """Read what `datasets` has noted in the schema of a file; nothing where it has not."""
    try:
        noted = parse_json((metadata or {}).get(b"huggingface", b"").decode())
        columns = noted["info"]["features"]
    except (NotJson, UnicodeDecodeError, LookupError, TypeError):
        return {}
    return columns if isinstance(columns, dict) else {}


def _row(table: Any) -> Any:
    try:
        return table.to_pylist()[0]
    except Exception as error:
        return Refused(f"it holds a value that cannot be read ({type(error).__name__}: {error})")


def _narrow(kind: Any) -> bool:
    """Tell whether a type of pyarrow is of short floats, or holds such a one."""
    return str(kind) in _SHORT or any(map(_narrow, _inner(kind).values()))


def _inner(kind: Any) -> dict[str, Any]:
    """The types inside a type, by the names of the fields of a struct."""
    if hasattr(kind, "storage_type"):
        return {"": kind.storage_type}
    if hasattr(kind, "key_type"):
        return {"key": kind.key_type, "value": kind.item_type}
    if hasattr(kind, "value_type"):
        return {"": kind.value_type}
    return {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}


def _shortest(value: Any, kind: Any) -> Any:
    """Write short floats anew, wherever in a value of a type they are."""
    if str(kind) in _SHORT:
        return value if value is None else float(str(_SHORT[str(kind)](value)))
    inner = _inner(kind)
    if isinstance(value, dict):
        return {key: _shortest(one, inner[key]) for key, one in value.items()}
    if isinstance(value, tuple):  # of a map
        return tuple(_shortest(one, of) for one, of in zip(value, inner.values(), strict=True))
    if isinstance(value, list):
        within = kind if hasattr(kind, "key_type") else inner[""]
        return [_shortest(one, within) for one in value]
    return _shortest(value, inner[""]) if "" in inner and value is not None else value


def _has_classes(column: Any) -> bool:
    """Tell whether a column is of classes, or holds such a one."""
    if isinstance(column, list):
        return any(map(_has_classes, column))
    if not isinstance(column, dict):
        return False
    return column.get("_type") == "ClassLabel" or any(map(_has_classes, column.values()))


def _readable(row: dict[str, Any], narrow: dict[str, Any], classes: Columns) -> Any:
    """Write short floats and numbers of classes as people do."""
    row |= {key: _shortest(row[key], kind) for key, kind in narrow.items()}
    try:
        return row | {key: _named(row[key], classes[key]) for key in classes.keys() & row.keys()}
    except (LookupError, TypeError, AttributeError):
        return Refused("it holds a number of a class that has no name")


def _named(value: Any, column: Any) -> Any:
    """Put names in the place of numbers; -1 is how `datasets` writes that there is no class."""
    if value is None or not _has_classes(column):
        return value
    if isinstance(column, list):
        return [_named(one, column[0]) for one in value]
    if column.get("_type") == "ClassLabel":
        return None if value == -1 else column["names"][range(len(column["names"]))[value]]
    if "feature" in column and isinstance(value, list):
        return [_named(one, column["feature"]) for one in value]
    inner = column.get("feature", column)
    return {key: _named(one, inner.get(key)) for key, one in value.items()}
