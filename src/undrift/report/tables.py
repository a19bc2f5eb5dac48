"""Tables of a comparison as text, section by section, and how a number stands in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from undrift.report.comparison import RULE, Group, Margin, between, grouped, half_width, pairs
from undrift.report.results import (
    NAMES,
    NOT_RECORDED,
    PROTOCOL,
    RATE,
    RULES,
    SEED,
    Results,
    Row,
    differences,
    untrained,
    words,
)
from undrift.scoring import FORMULAS, stage_averages

METRICS = {
    "last": "average at the end",
    "mft": "average when just learned",
    "bwt": "backward transfer",
    "forgetting": "forgetting",
}
SIZES = {
    "stored": "parameters stored",
    "active": "parameters active",
    "state_bytes": "bytes of state",
}
BUDGET = "budget matched"
CASE_ONLY = "errors of letter case only"
TITLE = "accuracy in percent: just learned → at the end"
MARGINS = "Margins between methods, and the noise of the seeds"
DIFFERENCES = "Protocol differences"
TIME = "Learning: time and memory"
_SYMBOLS = (
    "A[t][i]: score on task i after training task t, strict rule, in percent; A[0][i]: the "
    "untouched model; T tasks. Empty: a cell that the metric needs was not measured."
)
_LEARNING = (
    ("tokens a second", "tokens_per_second", 1),
    ("CPU milliseconds a step", "step_cpu_ms", 1),
    ("peak memory, MiB", "peak_bytes", 2**20),
)
_MACHINE = (
    "Comparable on one machine only. Tokens of prompts and answers, without padding; memory: on a "
    "GPU what tensors took, else the process's largest resident set while it learned a task."
)


@dataclass(frozen=True)
class Section:
    """A part of a comparison, as text.

    Args:
        title: What it shows.
        header: Names of the columns; none where there is no table.
        rows: The cells.
        notes: What a reader must know, a paragraph each; below the table.
        lead: What a reader must know first; above the table.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    lead: Sequence[str] = ()


def by_group(
    title: str,
    groups: Sequence[Group],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    first: Sequence[str] = ("",),
) -> Section:
    """Make a section with a column a group behind the first columns; rows without cells go."""
    kept = [row for row in rows if any(row[len(first) :])]
    header = [*first, *(group.label for group in groups)]
    return Section(title, header, kept, notes if kept else [])


# ------------------------------------------------------------ a number in a table


def number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """Write a number with commas and one decimal, or as many as are asked for; nothing for None."""
    return "" if value is None else f"{value:z,.{digits}f}{unit}"


def short_number(value: float) -> str:
    """Write a number with three digits: 159908000 as "160 M", 2500 as "2.5 k", 412 as "412"."""
    for sign, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:.3g} {sign}"
    return f"{value:.3g}"


def spread(values: Iterable[float]) -> str:
    """Write the mean of values; of several, with half the 95 % interval."""
    known = list(values)
    if not known:
        return ""
    width = half_width(known)
    return number(fmean(known)) + ("" if width is None else f" ± {number(width)}")


# ------------------------------------------------------------ all tables of a comparison


def sections(runs: Sequence[Results]) -> list[Section]:
    """Say everything that there is to say about runs beside each other.

    Args:
        runs: The runs.

    Returns:
        The compact table first; then metrics, stages, rules, time and memory, margins, and
        differences in the protocol. What does not apply is left out.
    """
    groups = grouped(runs)
    found = [
        overview(runs),
        _metrics(groups),
        _stages(groups),
        _rules(groups),
        _learning(groups),
        margin_section(groups, METRICS),
        difference_section(groups, everything=True),
    ]
    return [section for section in found if section.rows or section.notes]


def overview(runs: Sequence[Results]) -> Section:
    """Lay the runs out side by side in one compact table; those of several seeds share a column.

    Args:
        runs: The runs.

    Returns:
        A row a task: its score zero-shot, when just learned and at the end. A row a metric, the
        share of errors of letter case only, and what the methods cost after the last task; a mean
        over seeds has half its 95 % interval behind it. Below it: the protocol.
    """
    groups = grouped(runs)
    names = list(dict.fromkeys(task for run in runs for task in run.tasks))
    rows = [
        [name, number(zero_shot(runs, name)), *(_learned_and_last(g, name) for g in groups)]
        for name in names
    ]
    rows += [
        [text, "", *(spread(group.by_seed(metric).values()) for group in groups)]
        for metric, text in METRICS.items()
    ]
    case_only = [known_mean(run.case_only for run in group.runs) for group in groups]
    rows.append([CASE_ONLY, "", *(number(value, " %") for value in case_only)])
    for key, text in SIZES.items():
        sizes = [known_mean(run.cost.get(key) for run in group.runs) for group in groups]
        cells = ["" if size is None else short_number(size) for size in sizes]
        rows += [[text, "", *cells]] if any(cells) else []
    budgets = [", ".join(dict.fromkeys(run.budget for run in group.runs)) for group in groups]
    if any(budget != "none" for budget in budgets):
        rows.append([BUDGET, "", *budgets])
    header = ["task", "zero-shot", *(group.label for group in groups)]
    return Section(TITLE, header, rows, [protocol(runs)])


def protocol(runs: Sequence[Results]) -> str:
    """Say under which conditions the numbers were measured, and where the runs differ in them.

    Args:
        runs: The runs that are compared.

    Returns:
        Such as "pocket · order default · seed 0 and 1 (differs!) · ...".
    """
    parts = []
    for key in PROTOCOL:
        values = list(dict.fromkeys(words(run.protocol[key]) for run in runs))
        name = "" if key == "benchmark" else f"{key} "
        trained = [group for group in grouped(runs) if group.trained]
        sides = [{words(run.protocol[key]) for run in group.runs} for group in trained]
        differs = any(side != sides[0] for side in sides) if key == SEED else len(values) > 1
        parts.append(f"{name}{' and '.join(values)}{' (differs!)' if differs else ''}")
    bad = list(dict.fromkeys(run.facts.get("skipped", "0") for run in runs))
    if bad != ["0"]:
        parts.append(f"without {' and '.join(bad)} bad examples")
    return " · ".join(parts)


def margin_section(groups: Sequence[Group], metrics: Iterable[str]) -> Section:
    """Say how far methods are apart, and which of these margins the noise of the seeds hides.

    Args:
        groups: The runs.
        metrics: Which metrics.

    Returns:
        A row for every two methods and metric; no rows where there is only one.
    """
    methods = [group.runs[0].method for group in groups]
    short = {
        group.label: method if methods.count(method) == 1 else group.label
        for group, method in zip(groups, methods, strict=True)
    }
    rows = [
        [NAMES[name], f"{short[ours.label]} − {short[theirs.label]}", *_margin(found)]
        for name in metrics
        for ours, theirs in pairs(groups)
        if (found := between(ours, theirs, name)) is not None
    ]
    header = ["metric", "between", "margin", "seeds", "verdict"] if rows else []
    notes = [RULE] if rows or any(len(group.runs) > 1 for group in groups) else []
    return Section(MARGINS, header, rows, notes)


def difference_section(groups: Sequence[Group], *, everything: bool = False) -> Section:
    """List what runs differ in, but for the method itself.

    Args:
        groups: The runs.
        everything: Also the seeds, the learning rate (each method has its own), what one side has
            not recorded, code, versions and machine.

    Returns:
        A row a key: its value in each group.
    """
    found = differences([_facts(group, everything) for group in groups])
    rows = [[key, *values] for key, values in found.items()]
    if not everything:
        rows = [r for r in rows if r[0] not in (SEED, RATE) and NOT_RECORDED not in r[1:]]
    header = ["", *(group.label for group in groups)] if rows else []
    notes = [] if rows or len(groups) < 2 else ["none in what was recorded"]
    return Section(DIFFERENCES, header, rows, notes)


def scores_of(group: Group, task: str, row: str) -> list[float]:
    """Return a task's scores, one for each run of a group that has it.

    Args:
        group: The runs.
        task: The task.
        row: "last", "learned" or "zero_shot", or one of `results.RULES`.

    Returns:
        In percent.
    """
    found = [
        _at(run, task, run.ends[row] if row in run.ends else getattr(run, row))
        for run in group.runs
    ]
    return [score for score in found if score is not None]


def zero_shot(runs: Sequence[Results], task: str) -> float | None:
    """Return the untouched model's score on a task, from the first run that has measured it."""
    known = (_at(run, task, run.zero_shot) for run in runs)
    return next((score for score in known if score is not None), None)


def known_mean(values: Iterable[float | None]) -> float | None:
    """Average what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _at(run: Results, task: str, row: Row) -> float | None:
    return row[run.tasks.index(task)] if task in run.tasks else None


def _learned_and_last(group: Group, task: str) -> str:
    learned, last = (scores_of(group, task, row) for row in ("learned", "last"))
    if not last:
        return ""
    return f"{number(fmean(learned))} → {number(fmean(last))}" if learned else number(fmean(last))


def _facts(group: Group, everything: bool) -> dict[str, str]:
    """What a group was made under; where its runs differ, all values."""
    sides = [
        {
            **(run.facts if run.trained else untrained(run.facts)),
            **(run.made_with if everything else {}),
        }
        for run in group.runs
    ]
    keys = dict.fromkeys(key for side in sides for key in side)
    return {
        key: ", ".join(dict.fromkeys(side.get(key, NOT_RECORDED) for side in sides)) for key in keys
    }


def _metrics(groups: Sequence[Group]) -> Section:
    rows = [
        [text, *(spread(group.by_seed(name).values()) for group in groups)]
        for name, text in NAMES.items()
    ]
    kept = {rule: [_end(group, rule) for group in groups] for rule in RULES}
    kept = {rule: cells for rule, cells in kept.items() if any(cells)}
    rows += [[_rule_name(rule), *cells] for rule, cells in kept.items()]
    notes = [
        _SYMBOLS,
        *(f"{NAMES[name]} = {formula}" for name, formula in FORMULAS.items()),
        *(f"{_rule_name(rule)}: mean over tasks at the end, {RULES[rule]}" for rule in kept),
    ]
    return by_group("All metrics", groups, rows, notes, first=["metric"])


def _stages(groups: Sequence[Group]) -> Section:
    rows = []
    for t in range(max(len(group.runs[0].matrix) for group in groups)):
        means = [
            [stage_averages(r.matrix)[t] for r in group.runs if r.in_turn and t < len(r.matrix)]
            for group in groups
        ]
        rows.append([str(t + 1), *(spread(v for v in each if v is not None) for each in means)])
    title = "Average of the tasks seen, stage by stage"
    notes = ["a_t = (1/t) sum_{i<=t} A[t][i]; their mean is MAA."]
    return by_group(title, groups, rows, notes, first=["after task"])


def _rules(groups: Sequence[Group]) -> Section:
    """Each task at the end by every rule that was kept."""
    named = {"strict": "last"} | {rule: rule for rule in RULES}
    rows = [
        [task, name, *(spread(scores_of(group, task, rule)) for group in groups)]
        for task in dict.fromkeys(task for group in groups for task in group.runs[0].tasks)
        for name, rule in named.items()
    ]
    found = by_group("At the end, by rule", groups, rows, first=["task", "rule"])
    alone = all(row[1] == "strict" for row in found.rows)
    return Section("") if alone else found  # nothing but what the first table says


def _learning(groups: Sequence[Group]) -> Section:
    """Say how fast tasks were learned, and in how much memory."""
    rows = []
    for text, key, unit in _LEARNING:
        found = [[run.cost.get(key) for run in group.runs] for group in groups]
        cells = [spread(size / unit for size in sizes if size is not None) for sizes in found]
        rows.append([text, *cells])
    return by_group(TIME, groups, rows, [_MACHINE], first=["cost"])


def _rule_name(rule: str) -> str:
    return "MIF" if rule == "mif" else f"{rule} at the end"


def _end(group: Group, rule: str) -> str:
    found = [run.end(rule) for run in group.runs]
    text = spread(value for value, _ in found if value is not None)
    counts, tasks = {count for _, count in found}, len(group.runs[0].tasks)
    if not text or counts == {tasks}:
        return text
    return f"{text} ({min(counts)} of {tasks} tasks)"


def _margin(found: Margin) -> list[str]:
    noise = "" if found.noise is None else f" ± {number(found.noise)}"
    seeds = f"{found.seeds}{' shared' if found.paired else ''}"
    return [f"{found.mean:+z.1f}{noise}", seeds, found.verdict]
