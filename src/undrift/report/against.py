"""Published tables with the runs' own rows under them, and what the two are known to differ in."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from undrift.report.articles import SECOND_HAND, UNVERIFIED, PrintedRow, PrintedTable, Published
from undrift.report.markup import Section
from undrift.report.noise import Group
from undrift.report.protocol import NOT_RECORDED
from undrift.report.results import NAMES
from undrift.report.tables import number, scores_of, spread, zero_shot
from undrift.scoring import FORMULAS

WARNING = (
    "NOT directly comparable. What the published rows and these runs are known to differ in is "
    "listed below; what is not known may differ too."
)
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


def published_sections(groups: Sequence[Group], articles: Published) -> list[Section]:
    """Set the runs' rows under published ones, tasks matched by name.

    Args:
        groups: The runs; those of other benchmarks are left out, and it is said so.
        articles: The published tables.

    Returns:
        A section a table. The last rows are the runs': zero-shot, then each group at the end.
    """
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
        lead = [WARNING, *_sides(groups, table), *left_out]
        title = f"Published: {table.title}"
        found.append(Section(title, header, rows, _remarks(table), lead))
    if articles.notes:
        found.append(Section(f"Published about {articles.benchmark}", notes=articles.notes))
    return found


def average_name(name: str) -> str:
    """Return what an article calls an average, such as "BWT"."""
    return NAMES[name].split(" (")[0] if name in NAMES else name.upper()


def _printed(row: PrintedRow, table: PrintedTable) -> list[str]:
    averages = [
        f"{value:.2f}" if name == "last" else f"{average_name(name)} {value:.2f}"
        for name, value in row.printed.items()
    ]
    values = [_exact(row.values[task]) for task in table.tasks]
    return [f"{row.method}{row.marks}", *values, "; ".join(averages), _exact(row.mean), row.source]


def _untouched(groups: Sequence[Group], tasks: Sequence[str]) -> list[list[str]]:
    """The runs' zero-shot rows: one, unless they have begun from different weights."""
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
        averages += [f"{average_name(name)} {value}"] if value else []
    return [group.label, *cells, "", "; ".join(averages), "these runs"]


def _sides(groups: Sequence[Group], table: PrintedTable) -> list[str]:
    """Say what each side's protocol is, a line for each thing known of the published one."""
    lines = []
    for key, said in table.protocol.items():
        ours: dict[str, list[str]] = {}
        for group in groups:
            ours.setdefault(_recorded(group, key), []).append(group.label)
        every = [
            value if len(ours) == 1 else f"{', '.join(labels)}: {value}"
            for value, labels in ours.items()
        ]
        lines.append(f"{key}: published: {said} | these runs: {'; '.join(every) or 'none'}")
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
