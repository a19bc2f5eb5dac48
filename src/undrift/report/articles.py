"""Rows printed in articles, read from the package's `published/` folder, means recomputed.

A file there is one benchmark: tables with their source, the tasks that its columns are for, what
is known of the protocol, and rows of values in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean
from typing import Any

import yaml

from undrift.errors import unknown

_FOLDER = files("undrift.report") / "published"
SECOND_HAND, UNVERIFIED = "†", "?"


@dataclass(frozen=True)
class PrintedRow:
    """A method's row.

    Args:
        method: As it is called there.
        values: The scores at the end by task, in percent; None where none is known.
        printed: Averages as printed, by the names of `results.NAMES` and `mif`.
        mean: The mean of all values, recomputed; None where a value is missing.
        source: Which article.
        second_hand: Whether it was transcribed from something else than that article.
        unverified: Whether the numbers could not be checked against anything.
        note: What a reader must know.
    """

    method: str
    values: Mapping[str, float | None]
    printed: Mapping[str, float]
    mean: float | None
    source: str
    second_hand: bool
    unverified: bool
    note: str

    @property
    def marks(self) -> str:
        """The signs behind its name: second-hand, unverified."""
        return SECOND_HAND * self.second_hand + UNVERIFIED * self.unverified


@dataclass(frozen=True)
class PrintedTable:
    """A table of an article, or rows of several that have the same columns.

    Args:
        title: What it says, and of which model.
        tasks: Its columns; none where only averages are known.
        protocol: What is known to differ from article to article.
        rows: Its rows.
    """

    title: str
    tasks: Sequence[str]
    protocol: Mapping[str, str]
    rows: Sequence[PrintedRow]


@dataclass(frozen=True)
class Published:
    """All that is published about one benchmark, as far as it may be quoted.

    Args:
        benchmark: Its name.
        tables: The tables.
        notes: What a reader must know.
    """

    benchmark: str
    tables: Sequence[PrintedTable]
    notes: Sequence[str]


def published_benchmarks() -> list[str]:
    """Name the benchmarks that there are published rows of."""
    names = [entry.name for entry in _FOLDER.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def published(benchmark: str) -> Published:
    """Read the published rows of a benchmark.

    Args:
        benchmark: One of `published_benchmarks`.

    Returns:
        Its tables.

    Raises:
        UnknownName: If there are none.
    """
    known = published_benchmarks()
    if benchmark not in known:
        raise unknown("published benchmark", benchmark, known)
    content = yaml.safe_load((_FOLDER / f"{benchmark}.yaml").read_text(encoding="utf-8"))
    tables = [
        PrintedTable(
            title=table["title"],
            tasks=table.get("tasks", ()),
            protocol=table["protocol"],
            rows=[_row(row, table) for row in table["rows"]],
        )
        for table in content["tables"]
    ]
    return Published(content["benchmark"], tables, content.get("notes", ()))


def _row(row: Mapping[str, Any], table: Mapping[str, Any]) -> PrintedRow:
    tasks = table.get("tasks", ())
    values = dict(zip(tasks, row.get("values", [None] * len(tasks)), strict=True))
    known = [value for value in values.values() if value is not None]
    whole = known and len(known) == len(tasks) and not table.get("part", False)
    return PrintedRow(
        method=row["method"],
        values=values,
        printed=row.get("printed", {}),
        mean=fmean(known) if whole else None,
        source=row.get("source", table.get("source", "")),
        second_hand=row.get("second_hand", table.get("second_hand", False)),
        unverified=row.get("unverified", False),
        note=row.get("note", ""),
    )
