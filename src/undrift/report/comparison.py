"""Everything a comparison says, section by section: tables of text with notes, for any format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from undrift.report.against import published_sections
from undrift.report.articles import Published
from undrift.report.markup import Section
from undrift.report.noise import RULE, Group, Margin, between, grouped, pairs
from undrift.report.protocol import NOT_RECORDED, RATE, SEED, differences, untrained
from undrift.report.results import NAMES, RULES, Results
from undrift.report.tables import METRICS, TITLE, grid, protocol, scores_of, spread
from undrift.scoring import FORMULAS, stage_averages

MARGINS = "Margins between methods, and the noise of the seeds"
DIFFERENCES = "Protocol differences"
TIME = "Learning: time and memory"
_SYMBOLS = (
    "A[t][i]: score on task i after training task t, strict rule, in percent; A[0][i]: the "
    "untouched model; T tasks. Empty: a cell that the metric needs was not measured."
)
LEARNING = (
    ("tokens a second", "tokens_per_second", 1),
    ("CPU milliseconds a step", "step_cpu_ms", 1),
    ("peak memory, MiB", "peak_bytes", 2**20),
)
_MACHINE = (
    "Comparable on one machine only. Tokens of prompts and answers, without padding; memory: on a "
    "GPU what tensors took, else the process's largest resident set while it learned a task."
)
_EXPECTED = (SEED, RATE)


def sections(runs: Sequence[Results], articles: Published | None = None) -> list[Section]:
    """Say everything that there is to say about runs beside each other.

    Args:
        runs: The runs.
        articles: Published rows to set beside them.

    Returns:
        The compact table first; then metrics, stages, rules, margins, differences in the protocol,
        and published tables. What does not apply is left out.
    """
    cells, groups = grid(runs), grouped(runs)
    whole = [*cells.tasks, *cells.totals]
    found = [
        Section(TITLE, cells.header, whole, [protocol(runs)]),
        _metrics(groups),
        _stages(groups),
        _rules(groups),
        _learning(groups),
        margin_section(groups, METRICS),
        difference_section(groups, everything=True),
        *(published_sections(groups, articles) if articles else ()),
    ]
    return [section for section in found if section.rows or section.notes]


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
    rows = [
        [found.key, *found.values] for found in differences([_facts(g, everything) for g in groups])
    ]
    if not everything:
        rows = [r for r in rows if r[0] not in _EXPECTED and NOT_RECORDED not in r[1:]]
    header = ["", *(group.label for group in groups)] if rows else []
    alone = len(groups) < 2
    return Section(
        DIFFERENCES, header, rows, [] if rows or alone else ["none in what was recorded"]
    )


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
        [words, *(spread(group.by_seed(name).values()) for group in groups)]
        for name, words in NAMES.items()
    ]
    kept = {rule: [_end(group, rule) for group in groups] for rule in RULES}
    kept = {rule: cells for rule, cells in kept.items() if any(cells)}
    rows += [[_rule_name(rule), *cells] for rule, cells in kept.items()]
    notes = [
        _SYMBOLS,
        *(f"{NAMES[name]} = {formula}" for name, formula in FORMULAS.items()),
        *(f"{_rule_name(rule)}: mean over tasks at the end, {RULES[rule]}" for rule in kept),
    ]
    header = ["metric", *(group.label for group in groups)]
    return Section("All metrics", header, [row for row in rows if any(row[1:])], notes)


def _stages(groups: Sequence[Group]) -> Section:
    longest = max(len(group.runs[0].matrix) for group in groups)
    rows = []
    for t in range(longest):
        cells = []
        for group in groups:
            each = [_stage(run, t) for run in group.runs]
            cells.append(spread(value for value in each if value is not None))
        rows.append([str(t + 1), *cells])
    header = ["after task", *(group.label for group in groups)]
    notes = ["a_t = (1/t) sum_{i<=t} A[t][i]; their mean is MAA."]
    whole = [row for row in rows if any(row[1:])]
    return Section(
        "Average of the tasks seen, stage by stage", header, whole, notes if whole else []
    )


def _rules(groups: Sequence[Group]) -> Section:
    """Each task at the end by every rule that was kept."""
    names = list(dict.fromkeys(task for group in groups for task in group.runs[0].tasks))
    rows = []
    for task in names:
        for rule in ("last", *RULES):
            cells = [spread(scores_of(group, task, rule)) for group in groups]
            if any(cells):
                rows.append([task, "strict" if rule == "last" else rule, *cells])
    if all(row[1] == "strict" for row in rows):
        return Section("")  # nothing but what the first table says
    return Section("At the end, by rule", ["task", "rule", *(g.label for g in groups)], rows)


def _learning(groups: Sequence[Group]) -> Section:
    """Say how fast tasks were learned, and in how much memory."""
    rows = []
    for words, key, unit in LEARNING:
        found = [[run.cost.get(key) for run in group.runs] for group in groups]
        cells = [spread(size / unit for size in sizes if size is not None) for sizes in found]
        rows.append([words, *cells])
    rows = [row for row in rows if any(row[1:])]
    header = ["cost", *(group.label for group in groups)]
    return Section(TIME, header, rows, [_MACHINE] if rows else [])


def _rule_name(rule: str) -> str:
    return "MIF" if rule == "mif" else f"{rule} at the end"


def _end(group: Group, rule: str) -> str:
    found = [run.end(rule) for run in group.runs]
    text = spread(value for value, _ in found if value is not None)
    counts, tasks = {count for _, count in found}, len(group.runs[0].tasks)
    if not text or counts == {tasks}:
        return text
    return f"{text} ({min(counts)} of {tasks} tasks)"


def _stage(run: Results, t: int) -> float | None:
    measured = t < len(run.matrix) == len(run.tasks)
    return stage_averages(run.matrix)[t] if measured else None


def _margin(found: Margin) -> list[str]:
    noise = "" if found.noise is None else f" ± {found.noise:.1f}"
    seeds = f"{found.seeds}{' shared' if found.paired else ''}"
    return [f"{found.mean:+z.1f}{noise}", seeds, found.verdict]
