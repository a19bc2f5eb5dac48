"""Folders that `datasets` has saved: one dataset, or a dict of them, a folder a split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from undrift.data.formats.json_text import json_of
from undrift.data.formats.tables import table_rows
from undrift.data.formats.wording import brief
from undrift.errors import DataError, missing_extra
from undrift.untrusted import is_regular, strange_kind

_OF_A_DATASET = ("dataset_info.json", "state.json")
_AT_ONCE = 256


def is_dataset(path: Path) -> bool:
    """Tell whether a folder was written by `datasets.Dataset.save_to_disk`."""
    return all(is_regular(path / name) for name in _OF_A_DATASET)


def is_dataset_dict(path: Path) -> bool:
    """Tell whether a folder was written by `datasets.DatasetDict.save_to_disk`."""
    return is_regular(path / "dataset_dict.json")


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a saved dataset, pictures as they are stored.

    Args:
        path: A folder, see `is_dataset`.

    Yields:
        The number of each row, from 1, and the row, or a `Refused`.

    Raises:
        MissingExtra: If the library is not installed.
        DataError: If the folder cannot be read.
    """
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
    state = json_of(path / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    files = listed if isinstance(listed, list) else []
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    for name in names:
        if not isinstance(name, str) or name != PurePosixPath(name).name:
            raise DataError(
                f"the dataset {path} names a file {brief(name)} that is none of its own; save it "
                "again with Dataset.save_to_disk"
            )
