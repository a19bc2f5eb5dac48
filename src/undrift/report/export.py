"""Comparisons written out: for a terminal, as Markdown, LaTeX, CSV, and one value for JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from undrift.report.comparison import (
    METRICS,
    Group,
    Section,
    between,
    difference_section,
    grouped,
    overview,
    pairs,
)
from undrift.report.published_numbers import Published
from undrift.report.results import GENERAL, RULES, Results, labels
from undrift.report.terminal_tables import drawn, pieces
from undrift.scoring import FORMULAS

_ANY_WIDTH = 10_000
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "[": "{[}",  # behind the end of a row, a bare one would be read as a length
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\to$",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$^\dagger$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "\n": " ",
}


def table(runs: Sequence[Results]) -> Table:
    """Make the compact table of runs, however wide it gets; `print_table` heeds the terminal."""
    return _compact(runs, _ANY_WIDTH)[0]


def print_table(console: Console, runs: Sequence[Results]) -> None:
    """Print the compact table of runs; one that is too wide for the terminal in several parts."""
    for part in _compact(runs, console.width):
        console.print(part)


def _compact(runs: Sequence[Results], width: int) -> list[Table]:
    section = overview(runs)
    header = [name.replace(" (", "\n(") for name in section.header]
    parts = pieces(header, section.rows, width, turned=False)
    made = [drawn(part, bold=[METRICS["last"]]) for part in parts]
    made[0].title, made[-1].caption = section.title, section.notes[0]
    return made


def as_markdown(sections: Sequence[Section]) -> str:
    """Write sections as Markdown; the first has no heading, and can stand under one's own."""
    parts = []
    for place, section in enumerate(sections):
        if place:
            parts.append(f"### {section.title}")
        parts.append(_listed(section.lead))
        if section.header:
            parts.append(markdown_table(section.header, section.rows))
        parts.append(_listed(section.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown, numbers at the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_piped, line))} |" for line in lines)


def as_latex(sections: Sequence[Section]) -> str:
    """Write sections as LaTeX: a `table` each, with the rules of booktabs and notes below it."""
    parts = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(section.title)}}}"]
        lines += map(_small, section.lead)
        if section.header:
            columns = "l" + "r" * (len(section.header) - 1)
            lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
            lines += [_row(section.header), r"\midrule"]
            lines += [*map(_row, section.rows), r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join([*lines, *map(_small, section.notes), r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def print_sections(console: Console, sections: Sequence[Section]) -> None:
    """Print sections on a terminal."""
    for section in sections:
        console.print(section.title, style="bold", markup=False, highlight=False)
        for note in section.lead:
            console.print(note, markup=False, highlight=False)
        if section.header:
            for piece in pieces(section.header, section.rows, console.width):
                console.print(drawn(piece))
        for note in section.notes:
            console.print(note, style="dim", markup=False, highlight=False)
        console.print()


def latex(text: str) -> str:
    """Escape a text, so that LaTeX shows it as it is."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _small(note: str) -> str:
    return rf"{{\footnotesize {latex(note)}\par}}"


def _listed(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex, cells)) + r" \\"


def _piped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


class CsvLine(NamedTuple):
    """A number in the CSV.

    Args:
        source: "run", or the article.
        method: Its name.
        label: Tells runs of one method apart; of an article its table.
        seed: The run's seed.
        task: The task, nothing for an average over tasks.
        metric: `zero_shot`, `learned` (just learned), `last` (at the end) or a rule at the end
            (`official`, `lenient`, `form`, `mif`) of a task; the averages have the same names
            and those of `undrift.scoring.FORMULAS`. `last_recomputed` is the mean of an article's
            values.
        value: In percent, unrounded.
        note: What a reader must know.
    """

    source: str
    method: str
    label: str
    seed: int | None
    task: str
    metric: str
    value: float
    note: str = ""


def summary(runs: Sequence[Results], articles: Published | None = None) -> dict[str, Any]:
    """Gather all numbers in one value for JSON.

    Args:
        runs: The runs to gather.
        articles: Published rows.

    Returns:
        `{"methods": {"same": {"tasks", "seed", "last", "mft", "bwt", ..., "case_only", "cost",
        "budget", "ends", "zero_shot", "matrix", "stream", "protocol"}}, "margins": [{"method",
        "against", "last": {"mean", "noise", "seeds", "paired", "verdict"}, ...}], "differences":
        {"seed": [...], ...}}`, "stream" in runs without boundaries only, and `"published"` if
        there is any; numbers in percent, differences in the order of the columns.
    """
    groups = grouped(runs)
    listed = difference_section(groups, everything=True)
    found: dict[str, Any] = {
        "methods": {
            label: {
                "tasks": list(run.tasks),
                "seed": run.seed,
                **{name: run.metrics[name] for name in FORMULAS},
                **({GENERAL: run.metrics[GENERAL]} if GENERAL in run.metrics else {}),
                "case_only": run.case_only,
                "cost": dict(run.cost),
                "budget": run.budget,
                "ends": {rule: list(row) for rule, row in run.ends.items()},
                "zero_shot": list(run.zero_shot),
                "matrix": [list(row) for row in run.matrix],
                **_over_time(run),
                "protocol": dict(run.facts),
            }
            for label, run in zip(labels(runs), runs, strict=True)
        },
        "margins": _margins(groups),
        "differences": {key: values for key, *values in listed.rows},
    }
    if articles:
        found["published"] = asdict(articles)
    return found


def as_csv(runs: Sequence[Results], articles: Published | None = None) -> str:
    """Write all numbers of runs, and published ones, as CSV; what was not measured has no line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CsvLine._fields)
    for label, run in zip(labels(runs), runs, strict=True):
        writer.writerows(_run_lines(run, label))
    if articles:
        writer.writerows(_published_lines(articles))
    return text.getvalue()


def _over_time(run: Results) -> dict[str, Any]:
    """A stream's tasks, metrics and points; nothing of a run that was told of boundaries."""
    if (stream := run.files.stream) is None:
        return {}
    return {"stream": {key: stream[key] for key in ("tasks", "steps", "metrics", "points")}}


def _margins(groups: Sequence[Group]) -> list[dict[str, Any]]:
    found = []
    for ours, theirs in pairs(groups):
        line: dict[str, Any] = {"method": ours.label, "against": theirs.label}
        for name in FORMULAS:
            margin = between(ours, theirs, name)
            line[name] = margin and {**asdict(margin), "verdict": margin.verdict}
        found.append(line)
    return found


def _run_lines(run: Results, label: str) -> Iterator[CsvLine]:
    rows = {"zero_shot": run.zero_shot, "learned": run.learned, "last": run.last, **run.ends}
    values = [
        (task, metric, value)
        for metric, row in rows.items()
        for task, value in zip(run.tasks, row, strict=True)
    ]
    values += [("", name, run.metrics.get(name)) for name in (*FORMULAS, GENERAL)]
    values += [("", rule, run.end(rule)[0]) for rule in RULES]
    for task, metric, value in values:
        if value is not None:
            yield CsvLine("run", run.method, label, run.seed, task, metric, value)


def _published_lines(articles: Published) -> Iterator[CsvLine]:
    for table in articles.tables:
        for row in table.rows:
            notes = [row.note, *["second-hand"] * row.second_hand, *["unverified"] * row.unverified]
            note = "; ".join(part for part in notes if part)
            values = [(task, "last", value) for task, value in row.values.items()]
            values += [("", name, value) for name, value in row.printed.items()]
            values.append(("", "last_recomputed", row.mean))
            for task, metric, value in values:
                if value is not None:
                    yield CsvLine(
                        row.source, row.method, table.title, None, task, metric, value, note
                    )
