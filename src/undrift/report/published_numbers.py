"""Numbers printed in articles, and published tables with the runs' own rows under them.

A file in the package's `published/` folder is one benchmark: tables with their source, the tasks
that its columns are for, what is known of the protocol, and rows of values in the order of the
tasks. Means are recomputed beside what is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean
from typing import Any

import yaml

from undrift.errors import unknown
from undrift.report.comparison import Group, Section, number, scores_of, spread, zero_shot
from undrift.report.results import NAMES, NOT_RECORDED
from undrift.scoring import FORMULAS

_FOLDER = files("undrift.report") / "published"
SECOND_HAND, UNVERIFIED = "†", "?"
WARNING = (
    "NOT directly comparable. What the published rows and these runs are known to differ in is "
    "listed below; what is not known may differ too."
)
ALONE = "As printed. What is known of the protocol is listed; the rows may differ in the rest."
RECORDED = {
    "start weights": ("backbone", "weights.fingerprint"),
    "prompt": ("prompt_hash",),
    "pictures": ("image_features", "pictures.do_pad", "pictures.do_center_crop"),
    "scorer": ("scoring",),
    "global batch": ("training.global_batch",),
}
"""Where a run records what published tables are known to differ in."""

_MARKS = {
    SECOND_HAND: "second-hand: transcribed from something else than the article itself.",
    UNVERIFIED: "could not be checked against anything.",
}


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
    """Read the published rows of a benchmark, one of `published_benchmarks`."""
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


def published_sections(groups: Sequence[Group], articles: Published | None) -> list[Section]:
    """Set the runs' rows under published ones, tasks matched by name.

    Args:
        groups: The runs; those of other benchmarks are left out, and it is said so.
        articles: The published tables, if any are asked for.

    Returns:
        A section a table. The last rows are the runs': zero-shot, then each group at the end.
    """
    if articles is None:
        return []
    given = bool(groups)
    strange = [g for g in groups if g.runs[0].protocol["benchmark"] != articles.benchmark]
    groups = [group for group in groups if group not in strange]
    left_out = [
        f"{group.label} is left out: it is a run of {group.runs[0].protocol['benchmark']!r}, and "
        f"these rows are about {articles.benchmark!r}."
        for group in strange
    ]
    found = []
    for table in articles.tables:
        rows = [_printed(row, table) for row in table.rows]
        rows += _untouched(groups, table.tasks)
        rows += [_own(group, table) for group in groups]
        header = ["method", *table.tasks, "average, printed", "average, recomputed", "source"]
        sides = [f"{key}: {said}" for key, said in table.protocol.items()]
        lead = [WARNING, *_sides(groups, table), *left_out] if given else [ALONE, *sides]
        title = f"Published: {table.title}"
        found.append(Section(title, header, rows, _remarks(table), lead))
    if articles.notes:
        found.append(Section(f"Published about {articles.benchmark}", notes=articles.notes))
    return found


def _average_name(name: str) -> str:
    """Return what an article calls an average, such as "BWT"."""
    return NAMES[name].split(" (")[0] if name in NAMES else name.upper()


def _printed(row: PrintedRow, table: PrintedTable) -> list[str]:
    averages = [
        f"{value:.2f}" if name == "last" else f"{_average_name(name)} {value:.2f}"
        for name, value in row.printed.items()
    ]
    values = [_exact(row.values[task]) for task in table.tasks]
    return [f"{row.method}{row.marks}", *values, "; ".join(averages), _exact(row.mean), row.source]


def _untouched(groups: Sequence[Group], tasks: Sequence[str]) -> list[list[str]]:
    """Make the runs' zero-shot rows: one, unless they have begun from different weights."""
    rows: dict[tuple[float | None, ...], list[str]] = {}
    for group in groups:
        own = group.runs[0].tasks
        scores = {task: zero_shot(group.runs, task) for task in own}
        rows.setdefault(tuple(scores.get(task) for task in (*tasks, *own)), []).append(group.label)
    made = []
    for scores, labels in rows.items():
        shown, every = scores[: len(tasks)], scores[len(tasks) :]
        known = [score for score in every if score is not None]
        name = "zero-shot" if len(rows) == 1 else f"zero-shot of {', '.join(labels)}"
        mean = number(fmean(known)) if len(known) == len(every) else "not measured on all tasks"
        made.append([name, *map(number, shown), "", mean, "these runs"])
    return made


def _own(group: Group, table: PrintedTable) -> list[str]:
    """A group's row, with the averages that the table's rows have."""
    cells = [spread(scores_of(group, task, "last")) for task in table.tasks]
    own = group.runs[0].tasks
    other = {*own} != {*table.tasks} if table.tasks else False
    averages = [spread(group.by_seed("last").values()) + (f" ({len(own)} tasks)" if other else "")]
    printed = {name for row in table.rows for name in row.printed if name != "last"}
    for name in (name for name in FORMULAS if name in printed):
        value = spread(group.by_seed(name).values())
        averages += [f"{_average_name(name)} {value}"] if value else []
    return [group.label, *cells, "", "; ".join(averages), "these runs"]


def _sides(groups: Sequence[Group], table: PrintedTable) -> list[str]:
    """Say what each side's protocol is, a line for each thing known of the published one."""
    lines = []
    for key, published in table.protocol.items():
        ours: dict[str, list[str]] = {}
        for group in groups:
            ours.setdefault(_recorded(group, key), []).append(group.label)
        every = [
            value if len(ours) == 1 else f"{', '.join(labels)}: {value}"
            for value, labels in ours.items()
        ]
        lines.append(f"{key}: published: {published} | these runs: {'; '.join(every) or 'none'}")
    return lines


def _recorded(group: Group, key: str) -> str:
    facts = group.runs[0].facts
    values = [f"{name} {facts[name]}" for name in RECORDED[key] if name in facts]
    return ", ".join(values) or NOT_RECORDED


def _remarks(table: PrintedTable) -> list[str]:
    used = "".join(row.marks for row in table.rows)
    marks = [f"{mark} {meaning}" for mark, meaning in _MARKS.items() if mark in used]
    return [*marks, *(f"{row.method}: {row.note}." for row in table.rows if row.note)]


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
