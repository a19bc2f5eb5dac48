"""A comparison for programs: one value for JSON, and CSV with one row per run, task and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from undrift.report.articles import Published
from undrift.report.comparison import difference_section
from undrift.report.noise import Group, between, grouped, pairs
from undrift.report.results import RULES, Results, labels
from undrift.scoring import FORMULAS


class Line(NamedTuple):
    """A number.

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
        "budget", "ends", "zero_shot", "matrix", "protocol"}}, "margins": [{"method", "against",
        "last": {"mean", "noise", "seeds", "paired", "verdict"}, ...}], "differences": {"seed":
        [...], ...}}`, and `"published"` if there is any; numbers in percent, differences in the
        order of the columns.
    """
    groups = grouped(runs)
    listed = difference_section(groups, everything=True)
    found: dict[str, Any] = {
        "methods": {
            label: {
                "tasks": list(run.tasks),
                "seed": run.seed,
                **{name: run.metrics[name] for name in FORMULAS},
                "case_only": run.case_only,
                "cost": dict(run.cost),
                "budget": run.budget,
                "ends": {rule: list(row) for rule, row in run.ends.items()},
                "zero_shot": list(run.zero_shot),
                "matrix": [list(row) for row in run.matrix],
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
    """Write all numbers of runs, and published ones, in one table.

    Args:
        runs: The runs.
        articles: Published rows.

    Returns:
        CSV with a header; what was not measured has no line.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Line._fields)
    for label, run in zip(labels(runs), runs, strict=True):
        writer.writerows(_run(run, label))
    if articles:
        writer.writerows(_articles(articles))
    return text.getvalue()


def _margins(groups: Sequence[Group]) -> list[dict[str, Any]]:
    found = []
    for ours, theirs in pairs(groups):
        line: dict[str, Any] = {"method": ours.label, "against": theirs.label}
        for name in FORMULAS:
            margin = between(ours, theirs, name)
            line[name] = margin and {**asdict(margin), "verdict": margin.verdict}
        found.append(line)
    return found


def _run(run: Results, label: str) -> Iterator[Line]:
    rows = {"zero_shot": run.zero_shot, "learned": run.learned, "last": run.last, **run.ends}
    for metric, row in rows.items():
        for task, value in zip(run.tasks, row, strict=True):
            if value is not None:
                yield Line("run", run.method, label, run.seed, task, metric, value)
    averages = {name: run.metrics[name] for name in FORMULAS}
    averages |= {rule: run.end(rule)[0] for rule in RULES}
    for metric, value in averages.items():
        if value is not None:
            yield Line("run", run.method, label, run.seed, "", metric, value)


def _articles(articles: Published) -> Iterator[Line]:
    for table in articles.tables:
        for row in table.rows:
            said = [row.note, *["second-hand"] * row.second_hand, *["unverified"] * row.unverified]
            note = "; ".join(part for part in said if part)
            values = [(task, "last", value) for task, value in row.values.items()]
            values += [("", name, value) for name, value in row.printed.items()]
            values.append(("", "last_recomputed", row.mean))
            for task, metric, value in values:
                if value is not None:
                    yield Line(row.source, row.method, table.title, None, task, metric, value, note)
