"""All that a report says about runs, in the order in which it is read: words, tables, figures.

`tell` gathers it once; the page is written from it, and so are the figures' files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undrift.errors import ConfigError
from undrift.report import plates, record
from undrift.report.causes import RunLoss, explain_all, verdict
from undrift.report.comparison import DIFFERENCES, TIME, sections
from undrift.report.drift import Card, cards
from undrift.report.markup import Section
from undrift.report.noise import Group, grouped, mean_run
from undrift.report.plates import Plate
from undrift.report.results import NAMES, Results, labels
from undrift.report.tables import protocol
from undrift.scoring import FORMULAS

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
    f"More than {plates.FEW} methods are compared: figures of single runs (causes task by task, "
    "use of the experts, who taught whom) are in reports about fewer."
)


@dataclass(frozen=True)
class Explained:
    """Which drift explains a run's loss.

    Args:
        loss: What is known of it.
        plates: Its figure, if the parts are known.
        run: The name of the run whose answers are an example, the first of several seeds.
    """

    loss: RunLoss
    plates: Sequence[Plate]
    run: str


@dataclass(frozen=True)
class Story:
    """A report.

    Args:
        runs: The runs, as they were given.
        title: Which they are.
        verdict: What came of it, in a sentence.
        conditions: Under which conditions, in a line.
        record: What was run, as far as it is the same for all runs.
        differs: In what the runs differ, a column a group.
        recorded: All that was recorded of them.
        maps: A heat map for each group.
        curves: Scores over the sequence, if any run has learned in turn.
        tables: The compact table first, then all others.
        cards: Router, expert and format drift.
        shares: What each drift has taken, over the runs.
        losses: The same, run by run and task by task.
        taught: Figures of who taught whom.
        left_out: A word where figures of single runs are left out, else empty.
        transfers: Tables of forward transfer, and of how often an input's task was found.
        cost_plates: Figures of the costs.
        costs: Tables of the costs.
        definitions: Formulas by what they define.
    """

    runs: Sequence[Results]
    title: str
    verdict: str
    conditions: str
    record: Mapping[str, str]
    differs: Section
    recorded: Section
    maps: Sequence[Plate]
    curves: Sequence[Plate]
    tables: Sequence[Section]
    cards: Sequence[Card]
    shares: Sequence[Plate]
    losses: Sequence[Explained]
    taught: Sequence[Plate]
    left_out: str
    transfers: Sequence[Section]
    cost_plates: Sequence[Plate]
    costs: Sequence[Section]
    definitions: Mapping[str, str]

    @property
    def plates(self) -> list[Plate]:
        """All figures, in the order of the page."""
        return [
            *self.maps,
            *self.curves,
            *(plate for card in self.cards for plate in (*card.plates, *card.more)),
            *self.shares,
            *(plate for explained in self.losses for plate in explained.plates),
            *self.taught,
            *self.cost_plates,
        ]

    def write_figures(self, folder: Path) -> int:
        """Write every figure as SVG and PDF in the size of a paper's column.

        Args:
            folder: Where to; made if it is not there.

        Returns:
            How many figures.
        """
        from undrift.report.figures import export

        for plate in self.plates:
            export(plate.figure, folder, plate.stem)
        return len(self.plates)


def tell(runs: Sequence[Results]) -> Story:
    """Gather all that there is to say about runs.

    Args:
        runs: Runs of one benchmark. Those that differ in their seed only are averaged.

    Returns:
        The report.

    Raises:
        ConfigError: If there are no runs, or they have nothing to do with each other.
    """
    check_related(runs)
    groups = grouped(runs)
    means = {group.label: mean_run(group) for group in groups}
    losses = explain_all(runs)
    single = len(groups) <= plates.FEW
    return Story(
        runs=runs,
        title=f"{_listed(list(means))} on {runs[0].protocol['benchmark']}",
        verdict=verdict(losses),
        conditions=protocol(runs),
        record=record.shared(groups),
        differs=record.differing(groups),
        recorded=record.everything(groups),
        maps=plates.maps(means),
        curves=plates.curves(means),
        tables=[found for found in sections(runs) if found.title not in (DIFFERENCES, TIME)],
        cards=cards(groups, single=single),
        shares=plates.shares(losses),
        losses=_explained(losses, groups, runs, single),
        taught=plates.effects(means) if single else [],
        left_out="" if single else LEFT_OUT,
        transfers=[*record.forward(means), *record.identified(means)],
        cost_plates=plates.costs({g.label: record.budget(g.runs[0]) for g in groups}),
        costs=record.costs(groups),
        definitions={
            **{NAMES[metric]: FORMULAS[metric] for metric in FORMULAS if metric in NAMES},
            **DRIFTS_MEASURED,
        },
    )


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


def _explained(
    losses: Sequence[RunLoss], groups: Sequence[Group], runs: Sequence[Results], single: bool
) -> list[Explained]:
    """Set each loss beside its figure and the answers that it is made of."""
    names = {run.folder: name for run, name in zip(runs, labels(runs), strict=True)}
    return [
        Explained(
            loss,
            plates.task_shares(loss, place) if single else [],
            names[group.runs[0].folder],
        )
        for place, (loss, group) in enumerate(zip(losses, groups, strict=True), 1)
        if loss.tasks
    ]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
