"""Rows of parquet files and of datasets that `datasets` has saved, some hundred at a time.

A number of a class becomes the class's name. A number of 32 or 16 bits becomes the shortest decimal
that these bits tell from others, as whoever wrote it has seen it: 0.1, not 0.10000000149011612.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from undrift.data.json_and_csv import Rows, read_json
from undrift.errors import DataError, brief, missing_extra
from undrift.untrusted import (
    NotJson,
    Refused,
    is_regular,
    open_regular,
    parse_json,
    strange_kind,
    why,
)

Columns = Mapping[str, Any]
"""What `datasets` says about columns, as JSON: {"label": {"names": [...], "_type": ...}, ...}."""

_AT_ONCE = 256  # rows of a table that are in memory, for they may hold pictures
_OF_A_DATASET = ("dataset_info.json", "state.json")
_SHORT = {"float": np.float32, "halffloat": np.float16}


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
            if narrow and not isinstance(row, Refused):
                row |= {key: _shortest(row[key], kind) for key, kind in narrow.items()}
            yield number, _with_names(row, classes) if classes else row


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


def _with_names(row: Any, columns: Columns) -> Any:
    if isinstance(row, Refused):
        return row
    try:
        return {key: _named(value, columns.get(key)) for key, value in row.items()}
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
