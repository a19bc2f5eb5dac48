"""The three drifts side by side: for each a card with figures, what they mean, and the numbers.

Router and expert drift are read from what `undrift diagnose` has written, format drift from the
predictions themselves. What is not there says why, or how to get it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from undrift.report.forms import FormCell, form_cells
from undrift.report.markup import Section
from undrift.report.noise import Group
from undrift.report.plates import Plate, learned_in_turn
from undrift.report.tables import number
from undrift.rundir import read_record
from undrift.rundir.records import PARTS

Cells = Sequence[Mapping[str, Any]]

ROUTER = (
    "Later tasks send an earlier task's inputs to other experts. 100 % overlap: the experts share "
    "the work as they did when the task had just been learned."
)
EXPERT = (
    "Later tasks overwrite what the experts had learned, even where the inputs still reach the "
    "same ones. No router, however good, brings that back."
)
FORMAT = (
    "The answer is still known, but it is said in the form of another task: another letter case, "
    "a word where a letter was asked for, words too many."
)
ROUTES = {
    "overlap with the task's own routes, %": "overlap",
    "tokens whose first expert is the same, %": "top1",
    "Jensen-Shannon divergence, bits": "js",
    "total variation": "tv",
    "entropy of the routes, % of log N": "entropy",
    "share of the busiest expert, times N": "balance",
}
MOVED = {"moved, squared, relative to what they answered": "moved"}
_PERCENT = ("overlap", "top1", "entropy")
_END = "In numbers: at the end, mean over the tasks learned before"


@dataclass(frozen=True)
class Card:
    """One kind of drift.

    Args:
        title: Its name.
        meaning: What it is, for a reader who never heard of it.
        plates: Figures; none where nothing was measured.
        more: Figures that not every reader needs.
        tables: The numbers behind them.
        notes: Why a run has no part in it.
    """

    title: str
    meaning: str
    plates: Sequence[Plate] = ()
    more: Sequence[Plate] = ()
    tables: Sequence[Section] = ()
    notes: Sequence[str] = field(default_factory=tuple[str, ...])


def cards(groups: Sequence[Group], *, single: bool = True) -> list[Card]:
    """Set router, expert and format drift beside each other.

    Args:
        groups: The runs. Of several seeds the first that was diagnosed is shown.
        single: Draw what is about one run alone as well.

    Returns:
        Three cards, or none where no run has learned one task after another.
    """
    drifting = [group for group in groups if learned_in_turn(group.runs[0])]
    if not drifting:
        return []
    return [_router(drifting, single), _expert(drifting), _format(drifting)]


def diagnosis(group: Group, part: str) -> dict[str, Any]:
    """Read one part of what `undrift diagnose` has found.

    Args:
        group: The runs.
        part: "routes", "experts", "causes" or "reroute".

    Returns:
        The file of the first run that has any cells; else one without cells whose `why` says why.
    """
    run = group.runs[0]
    command = f"undrift diagnose {run.folder}{' --reroute TASK' if part == 'reroute' else ''}"
    found = {"cells": [], "why": f"not diagnosed yet: `{command}` does it"}
    for run in group.runs:
        file = run.folder / "diagnose" / f"{part}.json"
        if file.is_file() and not found["cells"]:
            found = read_record(file, PARTS[part])
    return found


def _parts(groups: Sequence[Group], part: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Gather what is known by group, and why nothing is known of the others."""
    found = {group.label: diagnosis(group, part) for group in groups}
    there = {label: whole for label, whole in found.items() if whole["cells"]}
    return there, [f"{k}: {whole['why']}" for k, whole in found.items() if k not in there]


def _cells(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Cells]:
    return {label: whole["cells"] for label, whole in parts.items()}


def _router(groups: Sequence[Group], single: bool) -> Card:
    from undrift.report import figures

    there, notes = _parts(groups, "routes")
    if not there:
        return Card("Router drift", ROUTER, notes=notes)
    plates = [
        Plate(
            "router-drift",
            "Where the inputs go",
            "Overlap of each task's routes with those it had when just learned, after every later "
            "task.",
            figures.route_drift("router drift", _cells(there)),
        )
    ]
    used = [
        Plate(
            f"expert-use-{place}",
            f"{label}: which experts work",
            "Share of each expert in the work on each task at the end, in the first, a middle and "
            "the last of the linears.",
            figures.use(f"{label}: use of the experts", whole),
        )
        for place, (label, whole) in enumerate(there.items(), 1)
        if single
    ]
    tables = [_means(_END, _cells(there), ROUTES)]
    return Card("Router drift", ROUTER, plates, used, tables, notes)


def _expert(groups: Sequence[Group]) -> Card:
    from undrift.report import figures

    (moved, notes), (again, missing) = _parts(groups, "experts"), _parts(groups, "reroute")
    plates, tables = [], []
    if moved:
        plates.append(
            Plate(
                "expert-drift",
                "How far the experts have moved",
                "Change of what they answer to a task's inputs since it was learned, relative to "
                "what they answered then, both squared: at 1 it is as large.",
                figures.experts("expert drift", _cells(moved)),
            )
        )
        tables.append(_means(_END, _cells(moved), MOVED))
    if again:
        plates.append(
            Plate(
                "reroute",
                "What a new router brings back",
                "The experts stay, the router alone learns the old task again: what it cannot "
                "recover, the experts have lost.",
                figures.reroute("accuracy that a new router recovers", again),
            )
        )
    if again:  # re-routing is asked for; who has not asked misses nothing
        notes += [note for note in missing if note not in notes]
    return Card("Expert drift", EXPERT, plates, tables=tables, notes=notes)


def _format(groups: Sequence[Group]) -> Card:
    found = {group.label: form_cells(group.runs[0].folder) for group in groups}
    known = {label: cells for label, cells in found.items() if cells}
    notes = [
        f"{label}: its manifest does not name the tasks' kinds of answers."
        for label in found
        if label not in known
    ]
    worst = {label: _most_lost_by_form(cells) for label, cells in known.items()}
    lost = [label for label in known if worst[label][1]]
    plates: list[Plate] = []
    if lost:
        most = max(lost, key=lambda label: worst[label][1])
        plates = _form_plates(most, known[most], worst[most][0])
    elif not notes:
        notes.append("Every answer keeps the form of its task: nothing is lost by form alone.")
    tables = [_form_table(label, cells) for label, cells in known.items()]
    return Card("Format drift", FORMAT, plates, tables=tables, notes=notes)


def _form_plates(label: str, cells: Sequence[FormCell], task: int) -> list[Plate]:
    """Draw one task of a run; all others are in the tables."""
    from undrift.report import figures

    name = next(cell.name for cell in cells if cell.task == task)
    return [
        Plate(
            "form",
            f"{label}, {name}",
            "The task that lost most by form. Where strict falls and lenient does not, the form "
            "alone is lost.",
            figures.forms(f"{label}: form of the answers to {name}", cells, task),
        ),
        Plate(
            "form-errors",
            f"{label}, {name}",
            "What is wrong with the wrong answers.",
            figures.errors(f"{label}: errors of form in {name}", cells, task),
        ),
    ]


def _most_lost_by_form(cells: Sequence[FormCell]) -> tuple[int, int]:
    """Find the task with the most answers at the end that only their form makes wrong."""
    end = max(cell.after for cell in cells)
    alone = {c.task: sum(c.alone.values()) for c in cells if c.after == end and c.task < end}
    most = max(alone, key=alone.__getitem__)
    return most, alone[most]


def _form_table(label: str, cells: Sequence[FormCell]) -> Section:
    """List scores, errors of form and whose form it is, task by task at the end."""
    end = max(cell.after for cell in cells)
    rows = [
        [
            cell.name,
            *map(number, (cell.strict, cell.lenient, cell.form)),
            _counted(cell.errors),
            _counted(cell.worn),
        ]
        for cell in cells
        if cell.after == end
    ]
    header = ["task", "strict", "lenient", "form", "errors of form", "looks like an answer to"]
    return Section(f"{label}: form at the end, task by task", header, rows)


def _counted(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in most_first)


def _means(title: str, runs: Mapping[str, Cells], keys: Mapping[str, str]) -> Section:
    """Average numbers at the end over all tasks but the last one."""
    rows = [[words, *(_mean(cells, key) for cells in runs.values())] for words, key in keys.items()]
    return Section(title, ["", *runs], rows)


def _mean(cells: Cells, key: str) -> str:
    end = max(cell["after"] for cell in cells)
    known = [cell[key] for cell in cells if cell["after"] == end and cell["task"] < end]
    known = [value for value in known if value is not None]
    if not known:
        return ""
    mean = fmean(known)
    return number(mean) if key in _PERCENT else f"{mean:.2f}"
