"""All that a page shows about runs, in the order in which it is read: words, tables, figures.

`page_content` gathers it once; the page is written from it, and so are the figures' files. Router
and expert drift are read from what `undrift diagnose` has written, format drift from the
predictions themselves. What is not there says why, or how to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undrift.report import figures
from undrift.report.comparison import (
    DIFFERENCES,
    METRICS_TITLE,
    TIME,
    Group,
    Section,
    by_group,
    check_related,
    difference_section,
    grouped,
    mean_run,
    number,
    protocol,
    rule_name,
    sections,
    spread,
)
from undrift.report.drawing import CaptionedFigure, Figures, export
from undrift.report.figures import Cells
from undrift.report.forgetting import FormCell, RunLoss, explain_all, form_cells, verdict
from undrift.report.results import (
    GENERAL,
    NAMES,
    NOT_RECORDED,
    RATE,
    RULES,
    SEED,
    Results,
    Row,
    known_mean,
    labels,
)
from undrift.report.training import cost_figures, cost_tables, losses_while_learning
from undrift.report.verdict import chain_table, chain_verdict, ends
from undrift.scoring import FORMULAS

FEW = 6
"""More methods than these are compared without figures of single runs, but for the matrices."""

DRIFTS_MEASURED = {
    "overlap": "100 sum_n min(p_n, q_n), p and q the experts' mean shares in a task's test inputs "
    "when it had just been learned and now; mean over linears",
    "Jensen-Shannon, total variation": "between a token's route then and now, in bits and as "
    "1/2 sum_n |p_n - q_n|; mean over tokens and linears",
    "moved": "tr(dW C dW^T) / tr(W C W^T): dW is an expert's change since the task was learned, C "
    "the second moment of the task's inputs; 1: a change as large as what was there, 4: twice that",
    "router, expert, form": "strict score lost = lenient score lost + form; the lenient loss is "
    "split over router and experts by putting one of them back at a time, the mean of both orders",
}
LEFT_OUT = (
    f"More than {FEW} methods are compared: figures of single runs (causes task by task, "
    "use of the experts, who taught whom) are in reports about fewer."
)
ROUTER = (
    "Later tasks send an earlier task's inputs to other experts. 100 % overlap: the experts share "
    "the work as they did when the task had just been learned."
)
EXPERT = (
    "Later tasks overwrite what the experts had learned, even where the inputs still reach the "
    "same ones. No router, however good, brings that back."
)
BASE = (
    "What the model could do before it learned the first task: questions that no task asks. A "
    "history begins with the first task, so it holds none of this (--remember lets it begin with "
    "the base); nearlora leaves to the base what looks like no task."
)
FORMAT = (
    "The answer is still known, but it is said in the form of another task: another letter case, "
    "a word where a letter was asked for, words too many."
)


@dataclass(frozen=True)
class DriftCard:
    """One kind of drift.

    Args:
        title: Its name.
        meaning: What it is, for a reader who never heard of it.
        figures: None where nothing was measured.
        more: Figures that not every reader needs.
        tables: The numbers behind them.
        notes: Why a run has no part in it.
    """

    title: str
    meaning: str
    figures: Figures = ()
    more: Figures = ()
    tables: Sequence[Section] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ExplainedLoss:
    """Which drift explains a run's loss.

    Args:
        loss: What is known of it.
        figures: Its figure, if the parts are known and any of them is not zero.
        run: The name of the run whose answers are an example, the first of several seeds.
    """

    loss: RunLoss
    figures: Figures
    run: str


@dataclass(frozen=True)
class PageContent:
    """What a page shows.

    Args:
        runs: The runs.
        title: Of the page.
        verdict: Who ends where, what was forgotten, and why.
        conditions: Under which conditions the numbers were measured.
        notes: What is missing, or was measured otherwise than it should be.
        chains: Before and after, a table for each chain of adapters.
        record: What was run, as far as it is the same for all runs.
        differs: What the runs differ in.
        recorded: All that was recorded of them.
        matrices: A heat map for each method.
        curves: The score of each task over the sequence, or over the steps of a stream.
        trainings: The loss while each task was learned.
        tables: The compact table, then all others.
        cards: Router, expert and format drift, and general ability where it was measured.
        shares: What each drift has taken, over the runs.
        losses: The same, run by run and task by task.
        taught: Figures of who taught whom.
        left_out: A word where figures of single runs are left out, else empty.
        transfers: Tables of forward transfer, and of how often an input's task was found.
        cost_figures: Figures of the costs.
        costs: Tables of the costs.
        definitions: Formulas by what they define.
    """

    runs: Sequence[Results]
    title: str
    verdict: str
    conditions: str
    notes: Sequence[str]
    chains: Sequence[Section]
    record: Mapping[str, str]
    differs: Section
    recorded: Section
    matrices: Figures
    curves: Figures
    trainings: Figures
    tables: Sequence[Section]
    cards: Sequence[DriftCard]
    shares: Figures
    losses: Sequence[ExplainedLoss]
    taught: Figures
    left_out: str
    transfers: Sequence[Section]
    cost_figures: Figures
    costs: Sequence[Section]
    definitions: Mapping[str, str]

    @property
    def figures(self) -> list[CaptionedFigure]:
        """All figures, in the order of the page."""
        return [
            *self.matrices,
            *self.curves,
            *(figure for card in self.cards for figure in (*card.figures, *card.more)),
            *self.shares,
            *(figure for explained in self.losses for figure in explained.figures),
            *self.taught,
            *self.drawn_training,
        ]

    @property
    def beside(self) -> Figures:
        """What stands beside the table of results: the curves, and the matrix if there is one."""
        return [*(self.matrices if len(self.matrices) == 1 else ()), *self.curves]

    @property
    def drawn_training(self) -> Figures:
        """The figures of how training went, and of what it cost."""
        return [*self.trainings, *self.cost_figures]

    def write_figures(self, folder: Path) -> int:
        """Write every figure as SVG and PDF in the size of a paper's column; return how many."""
        for each in self.figures:
            export(each.figure, folder, each.stem)
        return len(self.figures)


def page_content(runs: Sequence[Results]) -> PageContent:
    """Gather all that there is to say about runs.

    Args:
        runs: Runs of one benchmark. Those that differ in their seed only are averaged.

    Returns:
        What a page shows.

    Raises:
        ConfigError: If there are no runs, or they have nothing to do with each other.
    """
    check_related(runs)
    groups = grouped(runs)
    means = {group.label: mean_run(group) for group in groups}
    losses = explain_all(runs)
    single = len(groups) <= FEW
    names = list(means)
    chains = [run for run in runs if run.is_chain]
    first = chain_verdict(runs[0]) if len(runs) == len(chains) == 1 else _first_words(groups)
    return PageContent(
        runs=runs,
        title=_title(names, runs),
        verdict=f"{first} {verdict(losses)}".strip(),
        conditions=_conditions(runs),
        notes=[note for run in runs for note in run.files.notes],
        chains=[replace(chain_table(run), title=_table_title(run, runs)) for run in chains],
        record=shared_facts(groups),
        differs=differing_facts(groups),
        recorded=all_facts(groups),
        matrices=_matrices(means),
        curves=[*_curves(means), *_streams(groups)],
        trainings=losses_while_learning(groups) if single else [],
        tables=_tables(runs),
        cards=drift_cards(groups, single=single),
        shares=_shares(losses),
        losses=_explained(losses, groups, runs, single),
        taught=_effects(means) if single else [],
        left_out="" if single else LEFT_OUT,
        transfers=[*forward_transfer(means), *_identified(means)],
        cost_figures=cost_figures(groups),
        costs=cost_tables(groups),
        definitions={
            **{NAMES[metric]: FORMULAS[metric] for metric in FORMULAS if metric in NAMES},
            **{
                rule_name(rule): f"mean over tasks at the end, {RULES[rule]}"
                for rule in _kept(runs)
            },
            **DRIFTS_MEASURED,
        },
    )


def _kept(runs: Sequence[Results]) -> list[str]:
    return [rule for rule in RULES if any(run.end(rule)[1] for run in runs)]


def _first_words(groups: Sequence[Group]) -> str:
    told = [chain_verdict(group.runs[0]) for group in groups if group.runs[0].is_chain]
    return " ".join([ends(groups), *told]).strip()


def _title(names: Sequence[str], runs: Sequence[Results]) -> str:
    """Name what the page is about."""
    which = _listed(names)
    first = runs[0]
    if not first.is_chain:
        return f"{which} on {first.protocol['benchmark']}"
    earlier = f", learned after {_listed(first.tasks[:-1])}" if first.tasks[1:] else ""
    return f"{which}: {first.tasks[-1]}{earlier}" if len(names) == 1 else which


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _table_title(run: Results, runs: Sequence[Results]) -> str:
    title = chain_table(run).title
    return title if len(runs) == 1 else f"{run.folder.name}: {title}"


def _conditions(runs: Sequence[Results]) -> str:
    if len(runs) > 1 or not runs[0].is_chain:
        return protocol(runs)
    run = runs[0]
    stages = [name for name in run.files.stage_names[1:] if not name.startswith("before ")]
    told = [" → ".join(stages), run.method, f"backbone {run.protocol['backbone']}"]
    return " · ".join([*told, f"seed {run.seed}"])


def _tables(runs: Sequence[Results]) -> list[Section]:
    """List all tables of numbers, the compact one first; formulas stand under Definitions, once."""
    found = [each for each in sections(runs) if each.title not in (DIFFERENCES, TIME)]
    compact, *rest = [replace(found[0], notes=()), *found[1:]]
    return [compact, *(replace(s, notes=()) if s.title == METRICS_TITLE else s for s in rest)]


# ------------------------------------------------------------ what was run

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
    "undrift": "versions.undrift",
    "commit": "commit",
    "torch": "versions.torch",
    "device": "hardware.device",
}


def shared_facts(groups: Sequence[Group]) -> dict[str, str]:
    """Say what was run, as far as it was recorded and is the same for all runs."""
    found = _recorded(groups)
    return {text: values[0] for text, values in found.items() if len(set(values)) == 1}


def differing_facts(groups: Sequence[Group]) -> Section:
    """List what runs differ in, the learning rate and the seeds included; a row a fact."""
    rows = [[text, *values] for text, values in _recorded(groups).items() if len(set(values)) > 1]
    named = _RECORD.values()
    rows += [[*row] for row in difference_section(groups).rows if row[0] not in named]
    return by_group("What the runs differ in", groups, rows)


def all_facts(groups: Sequence[Group]) -> Section:
    """List all that was recorded of how the runs were made: a row a key, a column a group."""
    keys = dict.fromkeys(k for g in groups for r in g.runs for k in (*r.facts, *r.made_with))
    rows = [[key, *(_fact(g, key) or NOT_RECORDED for g in groups)] for key in keys]
    return by_group("Everything that was recorded", groups, rows)


def _recorded(groups: Sequence[Group]) -> dict[str, list[str]]:
    found = {"tasks, in the order of learning": [", ".join(g.runs[0].tasks) for g in groups]}
    found |= {text: [_fact(group, key) for group in groups] for text, key in _RECORD.items()}
    return {text: values for text, values in found.items() if any(values)}


def _fact(group: Group, key: str) -> str:
    known = [{**run.made_with, **run.facts} for run in group.runs]
    return ", ".join(dict.fromkeys(facts[key] for facts in known if key in facts))


# ------------------------------------------------------------ accuracy, who taught whom


_FRAMED = "A row: after learning so many tasks, 0 before any of them. Framed: just learned."


def _matrices(runs: Mapping[str, Results]) -> Figures:
    return [
        CaptionedFigure(
            f"accuracy-{place}",
            label,
            _FRAMED if run.may_drift else "",
            figures.heat_map(f"accuracy of {label}", run.tasks, run.matrix, run.zero_shot),
        )
        for place, (label, run) in enumerate(runs.items(), 1)
    ]


def _curves(runs: Mapping[str, Results]) -> Figures:
    """Draw how the score of each task went over the sequence, if a run has learned in turn.

    Runs that have learned the tasks in another order than the first such run, or other tasks, have
    no place in this figure.
    """
    first = next((run for run in runs.values() if run.may_drift), None)
    if first is None:
        return []
    shown = {label: run.matrix for label, run in runs.items() if run.tasks == first.tasks}
    caption = "Its accuracy from when it was learned to the end."
    if not all(run.in_turn for run in runs.values()):
        caption += " Level lines: trained once or never."
    if len(shown) < len(runs):
        left = ", ".join(label for label in runs if label not in shown)
        caption += f" Not drawn, because of other tasks or another order: {left}."
    figure = figures.curves("accuracy over the sequence", shown, first.tasks)
    return [CaptionedFigure("curves", "Each task", caption, figure)]


def _streams(groups: Sequence[Group]) -> Figures:
    """Draw the tasks of a stream without boundaries against time, of several seeds the first."""
    found = [(group.label, group.runs[0].files.stream) for group in groups]
    return [
        CaptionedFigure(
            f"stream-{place}",
            f"{label}: a stream without boundaries",
            "The accuracy of each task from when it was first seen, and its share of what was "
            "being learned.",
            figures.against_time(f"{label}: tasks against time", stream),
        )
        for place, (label, stream) in enumerate(found, 1)
        if stream is not None
    ]


def _effects(runs: Mapping[str, Results]) -> Figures:
    """Draw who taught whom, for each run that has learned in turn."""
    found = []
    for place, (label, run) in enumerate(runs.items(), 1):
        if run.may_drift:
            title = f"{label}: effect of each task on the others"
            figure = figures.effects(title, run.tasks, run.effects)
            found.append(CaptionedFigure(f"transfer-{place}", label, "", figure))
    return found


def forward_transfer(runs: Mapping[str, Results]) -> list[Section]:
    """Say what a task could draw from those before it, where it was asked before it was learned."""
    title = "Forward: a task's score just before it was learned, above the untouched model, points"
    return _task_table(title, runs, {"": lambda run: run.forward})


def _identified(runs: Mapping[str, Results]) -> list[Section]:
    """Say how often the methods that look for the task of an input have found it, at the end."""
    title = (
        "Inputs whose task the method has found by itself, at the end, in percent; base: those "
        "near no task, which it has left to the base"
    )
    reads: dict[str, Callable[[Results], Row]] = {
        "": lambda run: run.identified,
        ", base": lambda run: run.left_to_the_base,
    }
    return _task_table(title, runs, reads)


def _task_table(
    title: str, runs: Mapping[str, Results], reads: Mapping[str, Callable[[Results], Row]]
) -> list[Section]:
    """Set what is known of each task side by side, a column a run and reading that knows any."""
    found = {
        label + words: dict(zip(run.tasks, read(run), strict=False))
        for label, run in runs.items()
        for words, read in reads.items()
    }
    known = {k: row for k, row in found.items() if any(v is not None for v in row.values())}
    names = list(dict.fromkeys(name for row in known.values() for name in row))
    rows = [[name, *(number(row.get(name)) for row in known.values())] for name in names]
    rows = [row for row in rows if any(row[1:])]
    return [Section(title, ["task", *known], rows)] if rows else []


# ------------------------------------------------------------ what drifted, and what it took

_ROUTES = {
    "overlap with the task's own routes, %": ("overlap", 1),
    "tokens whose first expert is the same, %": ("top1", 1),
    "Jensen-Shannon divergence, bits": ("js", 2),
    "total variation": ("tv", 2),
    "entropy of the routes, % of log N": ("entropy", 1),
    "share of the busiest expert, times N": ("balance", 2),
}
_MOVED = {"moved, squared, relative to what they answered": ("moved", 2)}


def drift_cards(groups: Sequence[Group], *, single: bool = True) -> list[DriftCard]:
    """Set router, expert and format drift beside each other.

    Args:
        groups: The runs. Of several seeds the first that was diagnosed is shown.
        single: Draw what is about one run alone as well.

    Returns:
        Three cards, four where general ability was measured, or none where no run has learned one
        task after another.
    """
    drifting = [group for group in groups if group.runs[0].may_drift]
    if not drifting:
        return []
    cards = [_router(drifting, single), _expert(drifting), _format(drifting)]
    return [*cards, *_general(drifting)]


def _diagnosed(groups: Sequence[Group], part: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read one part of the diagnosis by group, and why nothing is known of the others."""
    there: dict[str, dict[str, Any]] = {}
    notes = []
    for group in groups:
        found = [run.files.diagnosis(part) for run in group.runs]
        known = [each for each in found if each is not None]
        if measured := next((each for each in known if each["cells"]), None):
            there[group.label] = measured
        elif known:
            notes.append(f"{group.label}: {known[-1]['why']}")
        else:
            option = " --reroute TASK" if part == "reroute" else ""
            command = f"undrift diagnose {group.runs[0].folder}{option}"
            notes.append(f"{group.label}: not diagnosed yet: `{command}` does it")
    return there, notes


def _router(groups: Sequence[Group], single: bool) -> DriftCard:
    there, notes = _diagnosed(groups, "routes")
    if not there:
        return DriftCard("Router drift", ROUTER, notes=notes)
    cells = {label: whole["cells"] for label, whole in there.items()}
    overlap = CaptionedFigure(
        "router-drift",
        "Where the inputs go",
        "Overlap of each task's routes with those it had when just learned, after every later "
        "task.",
        figures.route_drift("router drift", cells),
    )
    use = [
        CaptionedFigure(
            f"expert-use-{place}",
            f"{label}: which experts work",
            "Share of each expert in the work on each task at the end, in the first, a middle and "
            "the last of the linears.",
            figures.expert_use(f"{label}: use of the experts", whole),
        )
        for place, (label, whole) in enumerate(there.items(), 1)
        if single
    ]
    return DriftCard("Router drift", ROUTER, [overlap], use, [_means(cells, _ROUTES)], notes)


def _expert(groups: Sequence[Group]) -> DriftCard:
    (moved, notes), (again, missing) = _diagnosed(groups, "experts"), _diagnosed(groups, "reroute")
    drawn, tables = [], []
    if moved:
        cells = {label: whole["cells"] for label, whole in moved.items()}
        drawn.append(
            CaptionedFigure(
                "expert-drift",
                "How far the experts have moved",
                "Change of what they answer to a task's inputs since it was learned, relative to "
                "what they answered then, both squared: at 1 it is as large.",
                figures.expert_movement("expert drift", cells),
            )
        )
        tables.append(_means(cells, _MOVED))
    if again:  # re-routing is asked for; who has not asked misses nothing
        drawn.append(
            CaptionedFigure(
                "reroute",
                "What a new router brings back",
                "The experts stay, the router alone learns the old task again: what it cannot "
                "recover, the experts have lost.",
                figures.reroute("accuracy that a new router recovers", again),
            )
        )
        notes += [note for note in missing if note not in notes]
    return DriftCard("Expert drift", EXPERT, drawn, tables=tables, notes=notes)


def _format(groups: Sequence[Group]) -> DriftCard:
    found = {group.label: form_cells(group.runs[0]) for group in groups}
    known = {label: cells for label, cells in found.items() if cells}
    unnamed = "its manifest does not name the tasks' kinds of answers."
    notes = [f"{label}: {unnamed}" for label in found if label not in known]
    alone = {
        (label, cell.task): sum(cell.alone.values())
        for label, cells in known.items()
        for cell in _at_end(cells)
        if cell.task < cell.after
    }
    label, task = max(alone, key=alone.__getitem__, default=("", 0))
    drawn: Figures = []
    if alone.get((label, task)):
        drawn = _form_figures(label, known[label], task)
    elif not notes:
        notes.append("Every answer keeps the form of its task: nothing is lost by form alone.")
    tables = [_form_table(label, cells) for label, cells in known.items()]
    return DriftCard("Format drift", FORMAT, drawn[:1], drawn[1:], tables, notes)


def _general(groups: Sequence[Group]) -> list[DriftCard]:
    """Show what became of what the base could do before, where it was measured."""
    rows = [
        [f"{group.label}, seed {run.seed}", part, number(was), number(kept["after"][part])]
        for group in groups
        for run in group.runs
        if (kept := run.files.general) is not None
        for part, was in kept["before"].items()
    ]
    header = ["run", "part", "of the base", "after the last task"]
    losses = [f"{group.label}: {lost} % lost" for group in groups if (lost := _lost(group))]
    table = Section("General ability: accuracy in percent, or loss a token", header, rows)
    return [DriftCard("Base drift", BASE, tables=[table], notes=losses)] if rows else []


def _lost(group: Group) -> str:
    return spread(group.by_seed(GENERAL).values())


def _form_figures(label: str, cells: Sequence[FormCell], task: int) -> Figures:
    """Draw one task of a run; all others are in the tables."""
    name = next(cell.name for cell in cells if cell.task == task)
    return [
        CaptionedFigure(
            "form",
            f"{label}, {name}",
            "The task that lost most by form. Where strict falls and lenient does not, the form "
            "alone is lost.",
            figures.form_scores(f"{label}: form of the answers to {name}", cells, task),
        ),
        CaptionedFigure(
            "form-errors",
            f"{label}, {name}",
            "What is wrong with the wrong answers.",
            figures.form_errors(f"{label}: errors of form in {name}", cells, task),
        ),
    ]


def _at_end(cells: Sequence[FormCell]) -> list[FormCell]:
    end = max(cell.after for cell in cells)
    return [cell for cell in cells if cell.after == end]


def _form_table(label: str, cells: Sequence[FormCell]) -> Section:
    """List scores, errors of form and whose form it is, task by task at the end."""
    rows = []
    for cell in _at_end(cells):
        shares = map(number, (cell.strict, cell.lenient, cell.form))
        rows.append([cell.name, *shares, *map(_counted, (cell.errors, cell.borrowed))])
    header = ["task", "strict", "lenient", "form", "errors of form", "looks like an answer to"]
    return Section(f"{label}: form at the end, task by task", header, rows)


def _counted(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in most_first)


def _means(runs: Mapping[str, Cells], keys: Mapping[str, tuple[str, int]]) -> Section:
    """Average numbers at the end over all tasks but the last one."""
    title = "In numbers: at the end, mean over the tasks learned before"
    rows = [
        [text, *(number(_mean(cells, key), digits=digits) for cells in runs.values())]
        for text, (key, digits) in keys.items()
    ]
    return Section(title, ["", *runs], rows)


def _mean(cells: Cells, key: str) -> float | None:
    end = max(cell["after"] for cell in cells)
    return known_mean(c[key] for c in cells if c["after"] == end and c["task"] < end)


def _shares(losses: Sequence[RunLoss]) -> Figures:
    """Draw what each drift has taken, over the runs, if there are two to set side by side."""
    known = [loss for loss in losses if loss.lost is not None]
    if len(known) < 2:
        return []
    figure = figures.shares("points lost, by cause", known)
    caption = "Points of the strict score, mean over all tasks but the last one."
    return [CaptionedFigure("causes", "What was lost, and to what", caption, figure)]


def _explained(
    losses: Sequence[RunLoss], groups: Sequence[Group], runs: Sequence[Results], single: bool
) -> list[ExplainedLoss]:
    """Set each loss beside its figure and the answers that it is made of."""
    names = {run.folder: name for run, name in zip(runs, labels(runs), strict=True)}
    found = []
    for place, (loss, group) in enumerate(zip(losses, groups, strict=True), 1):
        if not loss.tasks:
            continue
        drawn = []
        moved = any(task.lost or task.router or task.expert or task.form for task in loss.tasks)
        if single and moved and loss.form is not None:
            title = f"{loss.label}: points lost, by task and cause"
            caption = "Points lost since it was learned; to the left of zero: gained."
            figure = figures.task_shares(title, loss)
            drawn.append(CaptionedFigure(f"causes-{place}", "Task by task", caption, figure))
        found.append(ExplainedLoss(loss, drawn, names[group.runs[0].folder]))
    return found
