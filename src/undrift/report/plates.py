"""The figures of a report, each with the words that it needs, but for those of the three drifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undrift.report.causes import RunLoss
from undrift.report.results import Results
from undrift.report.transfer import transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 6
"""More methods than these are compared without figures of single runs, but for the matrices."""


@dataclass(frozen=True)
class Plate:
    """A figure with its words.

    Args:
        stem: The name of its files, without an ending.
        title: What it shows.
        caption: How to read it.
        figure: The drawing.
    """

    stem: str
    title: str
    caption: str
    figure: Figure


def learned_in_turn(run: Results) -> bool:
    """Tell whether a run has learned one task after another, so that something could drift."""
    return run.trained and len(run.tasks) > 1 and len(run.matrix) == len(run.tasks)


def maps(runs: Mapping[str, Results]) -> list[Plate]:
    """Draw the accuracy matrices.

    Args:
        runs: By label.

    Returns:
        A heat map for each.
    """
    from undrift.report import figures

    return [
        Plate(
            f"accuracy-{place}",
            label,
            "Framed: just learned." if learned_in_turn(run) else "",
            figures.heat_map(f"accuracy of {label}", run.tasks, run.matrix, run.zero_shot),
        )
        for place, (label, run) in enumerate(runs.items(), 1)
    ]


def curves(runs: Mapping[str, Results]) -> list[Plate]:
    """Draw how the score of each task went over the sequence.

    Args:
        runs: By label; those that have learned the tasks in another order than the first that has
            learned in turn, or other tasks, have no place in this figure.

    Returns:
        One figure, or none if no run has learned in turn.
    """
    from undrift.report import figures

    first = next((run for run in runs.values() if learned_in_turn(run)), None)
    if first is None:
        return []
    shown = {label: run.matrix for label, run in runs.items() if run.tasks == first.tasks}
    caption = (
        "Its accuracy from when it was learned to the end. Level lines: trained once or never."
    )
    if len(shown) < len(runs):
        left = ", ".join(label for label in runs if label not in shown)
        caption += f" Not drawn, because of other tasks or another order: {left}."
    figure = figures.curves("accuracy over the sequence", shown, first.tasks)
    return [Plate("curves", "Each task", caption, figure)]


def shares(losses: Sequence[RunLoss]) -> list[Plate]:
    """Draw what each drift has taken, over the runs.

    Args:
        losses: Of all runs.

    Returns:
        One figure, or none if there is nothing to set side by side.
    """
    from undrift.report import figures

    known = [loss for loss in losses if loss.lost is not None]
    if len(known) < 2:
        return []
    figure = figures.shares("points lost, by cause", known)
    caption = "Points of the strict score, mean over all tasks but the last one."
    return [Plate("causes", "What was lost, and to what", caption, figure)]


def task_shares(loss: RunLoss, place: int) -> list[Plate]:
    """Draw what each drift has taken from each task of a run.

    Args:
        loss: The run's.
        place: Its place among the runs, from 1.

    Returns:
        One figure, or none if the parts are not known.
    """
    from undrift.report import figures

    if not loss.tasks or loss.form is None:
        return []
    figure = figures.task_shares(f"{loss.label}: points lost, by task and cause", loss)
    caption = "Points lost since it was learned; to the left of zero: gained."
    return [Plate(f"causes-{place}", "Task by task", caption, figure)]


def effects(runs: Mapping[str, Results]) -> list[Plate]:
    """Draw who taught whom.

    Args:
        runs: By label.

    Returns:
        A figure for each run that has learned in turn.
    """
    from undrift.report import figures

    found = []
    for place, (label, run) in enumerate(runs.items(), 1):
        if not learned_in_turn(run):
            continue
        backward = transfer(run).backward
        rows = [[row[t] for row in backward] for t in range(len(run.tasks))]
        figure = figures.effects(f"{label}: effect of each task on the others", run.tasks, rows)
        caption = "A row: by learning this task. A column: the score of an earlier one, in points."
        found.append(Plate(f"transfer-{place}", label, caption, figure))
    return found


def costs(budgets: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Plate]:
    """Draw what training each task has cost.

    Args:
        budgets: By label, what the manifests say of each task.

    Returns:
        One figure, or none if nothing was recorded.
    """
    from undrift.report import figures

    known = {label: budget for label, budget in budgets.items() if budget}
    if not known:
        return []
    caption = "One line a run; of several seeds the first."
    return [Plate("cost", "Task by task", caption, figures.costs("cost of training", known))]
