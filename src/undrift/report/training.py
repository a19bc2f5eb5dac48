"""How training went: the loss of every task, and what it took in time, memory and parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from undrift.report import figures
from undrift.report.comparison import Group, Section, by_group, number, short_number
from undrift.report.drawing import CaptionedFigure, Figures
from undrift.report.results import Results, known_mean
from undrift.rundir.files import read_lines


def losses_while_learning(groups: Sequence[Group]) -> Figures:
    """Draw the loss of every training that has left a log; of several seeds the first."""
    logs: dict[str, dict[str, dict[int, float | None]]] = {}
    for group in groups:
        run = group.runs[0]
        for task, file in run.files.logs.items():
            rows = [row for row in read_lines(file) if isinstance(row.get("loss"), float)]
            if rows:
                heading = f"{task} {run.tasks[task - 1]}"
                values = {row["step"]: row["loss"] for row in rows}
                logs.setdefault(heading, {})[group.label] = values
    if not logs:
        return []
    named = [group.label for group in groups]
    caption = "Mean of the steps since the last point; one axis for all, so that tasks compare."
    figure = figures.training_loss("training loss", logs, named)
    return [CaptionedFigure("loss", "Loss while learning", caption, figure)]


def cost_figures(groups: Sequence[Group]) -> Figures:
    """Draw what each task has cost, where that was recorded."""
    costs = {group.label: group.runs[0].files.task_costs for group in groups}
    known = {label: tasks for label, tasks in costs.items() if tasks}
    if not known:
        return []
    figure = figures.costs("cost of training", known)
    caption = "One line a run; of several seeds the first."
    return [CaptionedFigure("cost", "Task by task", caption, figure)]


_COSTS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("seconds", "training, seconds", number),
    ("tokens_per_second", "tokens a second", lambda rate: number(rate, digits=0)),
    ("peak_bytes", "peak memory, MiB", lambda size: number(size / 2**20, digits=0)),
    ("state_bytes", "state kept between tasks, kB", lambda size: number(size / 1000, digits=0)),
    ("resting", "experts at rest, mean over linears and tasks", number),
    ("trainable", "parameters trained", short_number),
    ("active", "parameters active", short_number),
    ("stored", "parameters stored", short_number),
)


def cost_tables(groups: Sequence[Group]) -> list[Section]:
    """Sum up what the runs have cost, means over seeds, as far as it was recorded."""
    known = [group for group in groups if any(run.files.task_costs for run in group.runs)]
    sums = [[_sum(run) for run in group.runs] for group in known]
    rows = []
    for key, text, written in _COSTS:
        means = [known_mean(run.get(key) for run in runs) for runs in sums]
        rows.append([text, *("" if mean is None else written(mean) for mean in means)])
    return [by_group("Cost of a run", known, rows)] if known else []


def _sum(run: Results) -> dict[str, float | None]:
    """Add to what a method costs the time of all tasks, and how many experts rested."""
    tasks = run.files.task_costs
    seconds = [task["seconds"] for task in tasks if task.get("seconds") is not None]
    resting = [fmean(task["resting"].values()) for task in tasks if task.get("resting")]
    return {
        **run.cost,
        "seconds": sum(seconds) if seconds and len(seconds) == len(tasks) else None,
        "resting": fmean(resting) if resting else None,
    }
