"""Runs compared: gathered by seed, margins against the noise of the seeds, and all tables.

The interval is Student's: mean ± t(n-1) s / sqrt(n), 95 % over n seeds, which supposes nothing but
seeds drawn independently and values that are roughly normal. The bootstrap of a study's table is
not used for a verdict: it cannot reach beyond the smallest and the largest value, and of three
normal values its 95 % interval holds the true mean 77 times in a hundred (Student's 95 times).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from undrift.errors import ConfigError
from undrift.report.paired import RULE as PAIRED_RULE
from undrift.report.paired import Answers, answers_of, difference
from undrift.report.results import (
    GENERAL,
    GENERAL_LOST,
    NAMES,
    NOT_RECORDED,
    PROTOCOL,
    RATE,
    RULES,
    SEED,
    Results,
    Row,
    differences,
    known_mean,
    labels,
    untrained,
    words,
)
from undrift.scoring import FORMULAS, stage_averages
from undrift.scoring.matrix import of_all
from undrift.scoring.over_time import TIME_FORMULAS, seen_average

# Student's t, 97.5 %, for 1, 2, 3 ... degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
RULE = (
    "± is half the 95 % interval over n seeds: t(n-1) s / sqrt(n), Student's t. A margin is below "
    "the noise if its interval holds 0. Where two methods share two seeds or more, s is that of "
    "the differences seed by seed; else both sides' variances add up (Welch). What is not trained "
    "has no noise. No correction for looking at many margins; other task orders and the choice of "
    "test examples are not part of this noise."
)
ONE_SEED = "not measurable: one seed"
BELOW = "below the noise"
ABOVE = "above the noise"

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
PAIRED = "Question by question"
DIFFERENCES = "Protocol differences"
METRICS_TITLE = "All metrics"
TIME_TITLE = "A stream against time: average of the tasks seen so far, in percent"
_OVER_TIME = {
    "anytime": "mean over the points",
    "forgetting": "below each task's best point, at the end",
}
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
class Group:
    """Runs that are alike in all that was recorded but the seed; or one run.

    Args:
        label: A name for it.
        runs: Its runs, each with a seed of its own.
    """

    label: str
    runs: Sequence[Results]

    @property
    def trained(self) -> bool:
        """Whether seeds matter to it."""
        return self.runs[0].trained

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return a metric of `Results.metrics` for each seed that has it."""
        values = {run.seed: run.metrics.get(metric) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Margin:
    """How much one side is above the other.

    Args:
        mean: The mean difference.
        noise: Half its 95 % interval; None where there is one seed only.
        seeds: Over how many seeds; of two unpaired sides, the smaller number.
        paired: Whether differences were taken seed by seed.
    """

    mean: float
    noise: float | None
    seeds: int
    paired: bool

    @property
    def verdict(self) -> str:
        """ONE_SEED, BELOW or ABOVE."""
        if self.noise is None:
            return ONE_SEED
        return BELOW if abs(self.mean) <= self.noise else ABOVE


def check_related(runs: Sequence[Results]) -> None:
    """Refuse runs that have nothing to do with each other.

    Args:
        runs: The runs.

    Raises:
        ConfigError: If there are none, if they are of several benchmarks, or share no task.
    """
    if not runs:
        raise ConfigError("no run to report on; give the folder of at least one finished run")
    folders = [run.folder.resolve() for run in runs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice:
        raise ConfigError(f"{twice} is given more than once; give each run once")
    first, *others = runs
    for run in others:
        ours, theirs = first.protocol["benchmark"], run.protocol["benchmark"]
        if ours != theirs:
            raise ConfigError(
                f"{first.folder} is a run on {ours}, {run.folder} one on {theirs}; a report is "
                "about one benchmark: write one for each"
            )
        if not set(first.tasks) & set(run.tasks):
            raise ConfigError(
                f"{first.folder} ({', '.join(first.tasks)}) and {run.folder} "
                f"({', '.join(run.tasks)}) share no task; write a report for each"
            )


def grouped(runs: Sequence[Results]) -> list[Group]:
    """Gather runs that differ in their seed only, in the order of their first runs.

    Two runs of one seed are no group: they are a repetition, and stay beside each other.
    """
    alike: dict[tuple[object, ...], list[tuple[str, Results]]] = {}
    for label, run in zip(labels(runs), runs, strict=True):
        shared = tuple(sorted((k, v) for k, v in run.facts.items() if k != SEED))
        alike.setdefault((run.method, tuple(run.tasks), shared), []).append((label, run))
    found = []
    for key, members in alike.items():
        own = [run for _, run in members]
        if len({run.seed for run in own}) < len(own) or len(own) == 1:
            found += [Group(label, [run]) for label, run in members]
        else:
            others = [each[0][1] for k, each in alike.items() if k[0] == key[0] and k != key]
            apart = f", {_apart(own[0], others)}" if others else ""
            found.append(Group(f"{own[0].method} ({len(own)} seeds{apart})", own))
    return found


def _apart(first: Results, others: Sequence[Results]) -> str:
    """Name a group among others of its method: by the one setting that differs, or by a folder."""
    apart = differences([{**run.facts, SEED: ""} for run in (first, *others)])
    if len(apart) > 1 or not apart:
        return f"{first.folder.name} ..."
    ((key, (value, *_)),) = apart.items()
    return f"{key.rpartition('.')[2].replace('_', ' ')} {value}"


def mean_run(group: Group) -> Results:
    """Return a group's first run, with the mean of each cell that all of its runs have measured."""
    matrices = [run.matrix for run in group.runs]
    matrix = [_mean_row(rows) for rows in zip(*matrices, strict=True)]
    zero_shot = _mean_row([run.zero_shot for run in group.runs])
    return replace(group.runs[0], matrix=matrix, zero_shot=zero_shot)


def half_width(values: Sequence[float]) -> float | None:
    """Compute half the 95 % interval of a mean, t(n-1) s / sqrt(n); None for fewer than two."""
    if len(values) < 2:
        return None
    return student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def margin(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Margin:
    """Say how much `ours` is above `theirs`, a metric by seed, by RULE."""
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) > 1:
        each = [ours[seed] - theirs[seed] for seed in shared]
        return Margin(fmean(each), half_width(each), len(each), paired=True)
    sides = [list(ours.values()), list(theirs.values())]
    mean, seeds = fmean(sides[0]) - fmean(sides[1]), min(map(len, sides))
    if seeds < 2:
        return Margin(mean, None, seeds, paired=False)
    return Margin(mean, _welch(sides), seeds, paired=False)


def pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Return every two groups whose tasks are the same ones, the later one first."""
    two = combinations(groups, 2)
    return [(b, a) for a, b in two if set(a.runs[0].tasks) == set(b.runs[0].tasks)]


def between(ours: Group, theirs: Group, metric: str) -> Margin | None:
    """Compare two groups in one metric, by RULE; None if one of them has not got the metric."""
    a, b = ours.by_seed(metric), theirs.by_seed(metric)
    if not a or not b:
        return None
    if not ours.trained:  # it would be the same under every seed
        a = dict.fromkeys(b, fmean(a.values()))
    elif not theirs.trained:
        b = dict.fromkeys(a, fmean(b.values()))
    return margin(a, b)


def _mean_row(rows: Sequence[Row]) -> Row:
    return [of_all(cell) for cell in zip(*rows, strict=True)]


def _welch(sides: Sequence[Sequence[float]]) -> float:
    """Half the 95 % interval of a difference of two means: Welch, freedom rounded down."""
    shares = [variance(values) / len(values) for values in sides]
    if not sum(shares):
        return 0.0
    spread = sum(s**2 / (len(v) - 1) for s, v in zip(shares, sides, strict=True))
    return student(int(sum(shares) ** 2 / spread)) * math.sqrt(sum(shares))


def student(freedom: int) -> float:
    """Student's t, 97.5 %; beyond 30 degrees of freedom that of 30, which is a little too wide."""
    return _T[min(max(freedom, 1), len(_T)) - 1]


# ------------------------------------------------------------ tables


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
    return Section(title, header, kept, notes) if kept else Section(title)


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
        time_section(groups),
        _rules(groups),
        _learning(groups),
        margin_section(groups, METRICS),
        paired_section(groups),
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
    rows += [[text, "", *_by_metric(groups, metric)] for metric, text in METRICS.items()]
    if any(general := _by_metric(groups, GENERAL)):
        rows.append([GENERAL_LOST, "", *general])
    case_only = [known_mean(run.case_only for run in group.runs) for group in groups]
    rows.append(["errors of letter case only", "", *(number(value, " %") for value in case_only)])
    for key, text in SIZES.items():
        sizes = [known_mean(run.cost.get(key) for run in group.runs) for group in groups]
        cells = ["" if size is None else short_number(size) for size in sizes]
        rows += [[text, "", *cells]] if any(cells) else []
    budgets = [", ".join(dict.fromkeys(run.budget for run in group.runs)) for group in groups]
    if any(budget != "none" for budget in budgets):
        rows.append(["budget matched", "", *budgets])
    header = ["task", "zero-shot", *(group.label for group in groups)]
    title = "accuracy in percent: just learned → at the end"
    return Section(title, header, rows, [protocol(runs)])


def time_section(groups: Sequence[Group]) -> Section:
    """Say how a stream's tasks went against time: a row a point, and the metrics.

    Args:
        groups: The runs; those that were told of boundaries have empty cells.

    Returns:
        It; without rows where there is no stream.
    """
    found = [
        [stream for run in group.runs if (stream := run.files.stream) is not None]
        for group in groups
    ]
    steps = sorted({p["step"] for own in found for each in own for p in each["points"]})
    averages = [[_averages(each) for each in own] for own in found]
    rows = [
        [f"step {step}", *(number(known_mean(a.get(step) for a in own)) for own in averages)]
        for step in steps
    ]
    for metric, text in _OVER_TIME.items():
        values = (known_mean(each["metrics"][metric] for each in own) for own in found)
        rows.append([text, *map(number, values)])
    notes = [f"{text}: {TIME_FORMULAS[metric]}" for metric, text in _OVER_TIME.items()]
    return by_group(TIME_TITLE, groups, rows, notes) if steps else Section(TIME_TITLE)


def _averages(stream: Mapping[str, Any]) -> dict[int, float | None]:
    points = stream["points"]
    averages = seen_average([each["scores"] for each in points])
    return {each["step"]: average for each, average in zip(points, averages, strict=True)}


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
    return Section("Margins between methods, and the noise of the seeds", header, rows, notes)


def paired_section(groups: Sequence[Group]) -> Section:
    """Compare runs of one seed and order question by question, by `paired.RULE`.

    Args:
        groups: The runs.

    Returns:
        A row for every two methods, seed and order; none where no two runs share these.
    """
    answers: dict[Path, Answers] = {}

    def of(run: Results) -> Answers:
        if run.folder not in answers:
            answers[run.folder] = answers_of(run)
        return answers[run.folder]

    rows = []
    for ours, theirs in pairs(groups):
        for one, other in _alike(ours, theirs):
            found = difference([(of(one), of(other))])
            if found is not None:
                below = found.noise is None or abs(found.mean) <= found.noise
                noise = "" if found.noise is None else f" ± {number(found.noise)}"
                seed = str((one if ours.trained else other).seed)
                rows.append(
                    [f"{ours.label} − {theirs.label}", words(one.protocol["order"]), seed,
                     f"{found.mean:+z.1f}{noise}", number(found.detectable),
                     f"{found.questions:,} over {found.pictures:,}", BELOW if below else ABOVE]
                )  # fmt: skip
    header = ["between", "order", "seed", "at the end", "could have shown",
              "questions over pictures", "verdict"]  # fmt: skip
    return Section(PAIRED, header if rows else (), rows, [PAIRED_RULE] if rows else ())


def _alike(ours: Group, theirs: Group) -> list[tuple[Results, Results]]:
    """Return the runs of two groups that share order and seed; an untrained one has any seed."""
    return [
        (one, other)
        for one in ours.runs
        for other in theirs.runs
        if one.protocol["order"] == other.protocol["order"]
        and (one.seed == other.seed or not (ours.trained and theirs.trained))
    ]


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
    if not rows and len(groups) > 1:
        return Section(DIFFERENCES, notes=["none in what was recorded"])
    return by_group(DIFFERENCES, groups, rows)


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


def _at(run: Results, task: str, row: Row) -> float | None:
    return row[run.tasks.index(task)] if task in run.tasks else None


def _by_metric(groups: Sequence[Group], metric: str) -> list[str]:
    return [spread(group.by_seed(metric).values()) for group in groups]


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
    names = {**NAMES, GENERAL: GENERAL_LOST}
    rows = [[text, *_by_metric(groups, name)] for name, text in names.items()]
    kept = {rule: [_end(group, rule) for group in groups] for rule in RULES}
    kept = {rule: cells for rule, cells in kept.items() if any(cells)}
    rows += [[rule_name(rule), *cells] for rule, cells in kept.items()]
    notes = [
        _SYMBOLS,
        *(f"{NAMES[name]} = {formula}" for name, formula in FORMULAS.items()),
        *(f"{rule_name(rule)}: mean over tasks at the end, {RULES[rule]}" for rule in kept),
    ]
    return by_group(METRICS_TITLE, groups, rows, notes, first=["metric"])


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


def rule_name(rule: str) -> str:
    """Name the mean of one of RULES."""
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
