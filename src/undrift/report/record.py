"""Facts and tables of a report: what was run, what it cost, whether tasks were told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from undrift.report.comparison import difference_section
from undrift.report.markup import Section
from undrift.report.noise import Group
from undrift.report.protocol import NOT_RECORDED, RATE, SEED
from undrift.report.results import Results, Row
from undrift.report.tables import number, thousands
from undrift.report.transfer import transfer
from undrift.rundir import RunDir, read_record
from undrift.rundir.records import Manifest

_RECORD = {
    "benchmark": "benchmark",
    "version of the data": "data.version",
    "order": "order",
    "seeds": SEED,
    "profile": "profile",
    "backbone": "backbone",
    "learning rate": RATE,
    "global batch": "training.global_batch",
    "epochs": "training.epochs",
    "decoding": "decoding",
}
_SIZES = {
    "trainable": "parameters trained",
    "active": "parameters active",
    "stored": "parameters stored",
}
_MADE = {
    "undrift": "versions.undrift",
    "commit": "commit",
    "torch": "versions.torch",
    "device": "hardware.device",
}


def shared(groups: Sequence[Group]) -> dict[str, str]:
    """Say what was run, as far as it was recorded and is the same for all runs.

    Args:
        groups: The runs.

    Returns:
        Values by what they are.
    """
    found = _recorded(groups)
    return {words: values[0] for words, values in found.items() if len(set(values)) == 1}


def differing(groups: Sequence[Group]) -> Section:
    """List what runs differ in, the learning rate and the seeds included.

    Args:
        groups: The runs.

    Returns:
        A row for each fact; none where they are alike.
    """
    found = _recorded(groups)
    rows = [[words, *values] for words, values in found.items() if len(set(values)) > 1]
    told = {*_RECORD.values(), *_MADE.values()}
    rows += [[*row] for row in difference_section(groups).rows if row[0] not in told]
    return Section("What the runs differ in", ["", *(group.label for group in groups)], rows)


def everything(groups: Sequence[Group]) -> Section:
    """List all that was recorded of how the runs were made.

    Args:
        groups: The runs.

    Returns:
        A row a key, a column a group.
    """
    keys = dict.fromkeys(k for g in groups for r in g.runs for k in (*r.facts, *r.made_with))
    rows = [
        [key, *(_values(g, key) or _made(g, key) or NOT_RECORDED for g in groups)] for key in keys
    ]
    return Section("Everything that was recorded", ["", *(g.label for g in groups)], rows)


def budget(run: Results) -> Sequence[Mapping[str, Any]]:
    """Read what a run's manifest says of the cost of each task."""
    return read_record(RunDir(run.folder).manifest_file, Manifest).get("budget", ())


def costs(groups: Sequence[Group]) -> list[Section]:
    """Sum up what the runs have cost.

    Args:
        groups: The runs; a mean over seeds.

    Returns:
        One table, or none if nothing was recorded.
    """
    known = [group for group in groups if any(budget(run) for run in group.runs)]
    if not known:
        return []
    sums = {group.label: [_sum(run) for run in group.runs] for group in known}
    rows = []
    for key, words, unit, digits in (
        ("seconds", "training, seconds", 1, 1),
        ("tokens_per_second", "tokens a second", 1, 0),
        ("peak_bytes", "peak memory, MiB", 2**20, 0),
        ("state_bytes", "state kept between tasks, kB", 1000, 0),
        ("resting", "experts at rest, mean over linears and tasks", 1, 1),
    ):
        cells = [_average([each.get(key) for each in sums[g.label]], unit, digits) for g in known]
        rows.append([words, *cells])
    for key, words in _SIZES.items():
        known_sizes = [
            [n for each in sums[g.label] if (n := each.get(key)) is not None] for g in known
        ]
        rows.append([words, *(thousands(fmean(n)) if n else "" for n in known_sizes)])
    kept = [row for row in rows if any(row[1:])]
    return [Section("Cost of a run", ["", *(group.label for group in known)], kept)]


def identified(runs: Mapping[str, Results]) -> list[Section]:
    """Say how often the methods that look for the task of an input have found it.

    Args:
        runs: By label.

    Returns:
        One table of the last stage, or none if no method looks for tasks.
    """
    title = "Inputs whose task the method has found by itself, at the end, in percent"
    found = {label: transfer(run).identified for label, run in runs.items()}
    return _by_task(title, runs, {label: rows[-1] for label, rows in found.items() if rows})


def forward(runs: Mapping[str, Results]) -> list[Section]:
    """Say what a task could draw from those before it.

    Args:
        runs: By label.

    Returns:
        One table, or none where tasks were not asked before they were learned.
    """
    title = "Forward: a task's score just before it was learned, above the untouched model, points"
    return _by_task(title, runs, {label: transfer(run).forward for label, run in runs.items()})


def _by_task(title: str, runs: Mapping[str, Results], found: Mapping[str, Row]) -> list[Section]:
    """Set what is known of each task side by side, a column a run that knows anything."""
    known = {k: row for k, row in found.items() if any(value is not None for value in row)}
    names = list(dict.fromkeys(name for label in known for name in runs[label].tasks))
    columns = {k: dict(zip(runs[k].tasks, row, strict=True)) for k, row in known.items()}
    rows = [[name, *(number(column.get(name)) for column in columns.values())] for name in names]
    rows = [row for row in rows if any(row[1:])]
    return [Section(title, ["task", *known], rows)] if rows else []


def _sum(run: Results) -> dict[str, float | None]:
    """Add to what a method costs the time of all tasks, and how many experts rested."""
    tasks = budget(run)
    seconds = [task["seconds"] for task in tasks if task.get("seconds") is not None]
    resting = [fmean(task["resting"].values()) for task in tasks if task.get("resting")]
    return {
        **run.cost,
        "seconds": sum(seconds) if seconds and len(seconds) == len(tasks) else None,
        "resting": fmean(resting) if resting else None,
    }


def _average(values: Sequence[float | None], unit: float, digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known) / unit:,.{digits}f}" if known else ""


def _values(group: Group, key: str) -> str:
    found = [run.facts[key] for run in group.runs if key in run.facts]
    return ", ".join(dict.fromkeys(found))


def _made(group: Group, key: str) -> str:
    found = [run.made_with[key] for run in group.runs if key in run.made_with]
    return ", ".join(dict.fromkeys(found))


def _recorded(groups: Sequence[Group]) -> dict[str, list[str]]:
    found = {"tasks, in the order of learning": [", ".join(g.runs[0].tasks) for g in groups]}
    found |= {words: [_values(group, key) for group in groups] for words, key in _RECORD.items()}
    found |= {words: [_made(group, key) for group in groups] for words, key in _MADE.items()}
    return {words: values for words, values in found.items() if any(values)}
