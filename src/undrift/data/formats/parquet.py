"""Parquet, a few rows at a time; what `datasets` wrote beside the columns is heeded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from undrift.data.formats.tables import features_of, table_rows
from undrift.errors import DataError, missing_extra
from undrift.untrusted import open_regular, why

AT_ONCE = 256  # rows of a table that are in memory, for they may hold pictures


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a parquet file.

    Args:
        path: The file.

    Yields:
        The number of each row, from 1, and the row, or a `Refused`.

    Raises:
        MissingExtra: If pyarrow is not installed.
        DataError: If it cannot be read.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", f"reading {path}") from error
    try:
        with open_regular(path) as opened, parquet.ParquetFile(opened) as file:
            features = features_of(file.schema_arrow.metadata)
            yield from table_rows(file.iter_batches(batch_size=AT_ONCE), features)
    except (OSError, ArrowException) as error:
        said = why(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {said}") from error
