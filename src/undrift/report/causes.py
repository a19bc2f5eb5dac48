"""What each run has forgotten and why, in points: the router, the experts, or the form alone.

The parts come from `diagnose/causes.json` where `undrift diagnose` has written it: points of strict
score that add up to the loss. Without it only form and content can be told apart, from the kept
predictions: what strict lost and lenient did not is form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from undrift.errors import RunDirError
from undrift.report import sentences
from undrift.report.forms import Answers, FormCell, Slip
from undrift.report.noise import grouped
from undrift.report.results import Results
from undrift.rundir import read_record
from undrift.rundir.records import Causes
from undrift.scoring import form_share

PARTS = ("router", "expert", "form", "content")


@dataclass(frozen=True)
class TaskLoss:
    """What one task has lost between just learned and the end, in points of strict score.

    Where it was diagnosed on a probe set, all numbers are those of the probe.

    Args:
        task: Its number in the order of learning, from 1.
        name: Its name.
        learned: The score when it had just been learned, in percent.
        end: The score at the end.
        lost: learned - end; negative if it gained.
        router: How much of that the change of the router has cost; None where not diagnosed.
        expert: The same of the experts.
        form: How much was form alone; None where the run does not name its tasks' scorers.
        content: The rest: what the lenient score lost. Of captions, which have none, all.
        sentence: All this in words.
    """

    task: int
    name: str
    learned: float
    end: float
    lost: float
    router: float | None
    expert: float | None
    form: float | None
    content: float | None
    sentence: str

    @property
    def form_share(self) -> float | None:
        """The percentage of the loss that is form alone; None if unknown or nothing was lost."""
        return None if self.content is None else form_share(self.lost, self.content)


@dataclass(frozen=True)
class RunLoss:
    """What a run has lost of each task but the last, or the mean over runs of several seeds.

    Args:
        label: The run's name in tables.
        tasks: Each task's loss; none where no task has a score of when it had just been learned.
        lost: The mean over the tasks, in points; None where there are none. Without a probe set it
            is minus the backward transfer.
        router: The mean over the tasks; None where a task lacks it.
        expert: The same.
        form: The same.
        why: Why router and experts are not told apart, a clause without capital and full stop;
            empty where they are.
        sentence: All this in words.
    """

    label: str
    tasks: Sequence[TaskLoss]
    lost: float | None
    router: float | None
    expert: float | None
    form: float | None
    why: str
    sentence: str


def explain(run: Results) -> RunLoss:
    """Say what a run has forgotten and why.

    Args:
        run: The run.

    Returns:
        Its losses, with the causes as far as they are known.

    Raises:
        RunDirError: If `diagnose/causes.json` is damaged or is of another run.
    """
    return _explained(run.method, [run])


def explain_all(runs: Sequence[Results]) -> list[RunLoss]:
    """Say what runs have forgotten and why; runs that differ in their seed only share a mean.

    Args:
        runs: Any runs.

    Returns:
        One loss for each group of `noise.grouped`, labelled as it is.

    Raises:
        RunDirError: If a `diagnose/causes.json` is damaged or is of another run.
    """
    return [_explained(group.label, group.runs) for group in grouped(runs)]


def verdict(losses: Sequence[RunLoss]) -> str:
    """Compare runs in a sentence or two, for the top of a page.

    Args:
        losses: What the runs have lost.

    Returns:
        The most forgetful run's sentence, then what the others have lost.
    """
    known = [(loss.lost, loss) for loss in losses if loss.lost is not None]
    if not known:
        return " ".join(loss.sentence for loss in losses)
    (lost, first), *rest = sorted(known, key=lambda pair: -pair[0])
    hint = f" ({first.why}.)" if first.why and lost >= sentences.CLEAR else ""
    others = [(loss.label, _learned(loss.tasks), lost) for lost, loss in rest]
    return sentences.verdict(first.sentence + hint, others)


@dataclass(frozen=True)
class _Measured:
    """One task of one run: scores, parts of the loss, and the answers at the end."""

    task: int
    name: str
    learned: float
    end: float
    parts: Mapping[str, float | None]
    changed: str = ""
    cell: FormCell | None = None


def _explained(label: str, runs: Sequence[Results]) -> RunLoss:
    measured = [_measured(run) for run in runs]
    tasks = [_mean_task(seeds) for seeds in zip(*(found for found, _ in measured), strict=True)]
    why = next((why for _, why in measured if why), "")
    lost = _mean([task.lost for task in tasks])
    parts = {part: _mean([getattr(task, part) for task in tasks]) for part in PARTS}
    if lost is None:
        sentence = sentences.nothing_to_explain(label, trained=runs[0].trained)
    else:
        changed = {seed.changed for found, _ in measured for seed in found}
        sentence = sentences.of_run(label, _learned(tasks), lost, parts, changed)
        bwt = _mean([run.metrics["bwt"] for run in runs])
        if bwt is not None and abs(lost + bwt) >= sentences.SMALL:
            sentence += sentences.of_all_examples(-bwt)
    router, expert, form = parts["router"], parts["expert"], parts["form"]
    return RunLoss(label, tasks, lost, router, expert, form, why, sentence)


def _mean_task(seeds: Sequence[_Measured]) -> TaskLoss:
    """Average one task over runs that differ in their seed only."""
    first = seeds[0]
    learned, end = fmean(s.learned for s in seeds), fmean(s.end for s in seeds)
    parts = {part: _mean([s.parts[part] for s in seeds]) for part in first.parts}
    cells = [s.cell for s in seeds if s.cell is not None]
    lost = learned - end
    sentence = sentences.of_task(
        first.name,
        learned,
        lost,
        parts,
        first.changed,
        judged=all(cell.lenient is not None for cell in cells),
        alone=sum((Counter(cell.alone) for cell in cells), Counter[Slip]()),
        worn=sum((Counter(cell.worn) for cell in cells), Counter[str]()),
        wrong=sum(cell.wrong for cell in cells),
    )
    return TaskLoss(first.task, first.name, learned, end, lost, **parts, sentence=sentence)


def _learned(tasks: Sequence[TaskLoss]) -> float:
    return fmean(task.learned for task in tasks)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _measured(run: Results) -> tuple[list[_Measured], str]:
    """Measure every task but the last; also say why router and experts are not told apart."""
    last = len(run.tasks)
    if len(run.matrix) < last:
        return [], ""
    answers = Answers(run.folder)
    diagnosed, why = _diagnosed(run)
    found = []
    for task in range(1, last):
        learned, end = run.learned[task - 1], run.last[task - 1]
        if learned is None or end is None:
            continue
        cells = [
            answers.cell(task, stage) if answers.has(task, stage) else None
            for stage in (task, last)
        ]
        measured = diagnosed.get(task) or _Measured(
            task, run.tasks[task - 1], learned, end, _form_and_content(learned - end, *cells)
        )
        found.append(replace(measured, cell=cells[1]))
    return found, why


def _form_and_content(
    lost: float, learned: FormCell | None, end: FormCell | None
) -> dict[str, float | None]:
    """Split a loss without a diagnosis: what content lost, and the rest, which is form."""
    parts: dict[str, float | None] = dict.fromkeys(PARTS)
    if learned and end:
        content = lost
        if learned.lenient is not None and end.lenient is not None:
            content = learned.lenient - end.lenient
        parts |= {"content": content, "form": lost - content}
    return parts


def _diagnosed(run: Results) -> tuple[dict[int, _Measured], str]:
    """Read causes.json: the tasks whose loss until the end it explains, and why if it does not."""
    file = run.folder / "diagnose" / "causes.json"
    command = f"`undrift diagnose {run.folder}`"
    if not file.is_file():
        return {}, f"{command} tells the router's part from the experts'"
    mend = f"delete it and run {command} again"
    saved = read_record(file, Causes)
    if not saved["applies"]:
        return {}, saved["why"]
    cells = saved["cells"]
    ends = [cell for cell in cells if cell.get("before", cell["task"]) == cell["task"]]
    found = {cell["task"]: _from_cell(cell) for cell in ends if cell["after"] == len(run.tasks)}
    fits = all(
        1 <= cell["task"] < cell["after"] <= len(run.tasks)
        and cell["name"] == run.tasks[cell["task"] - 1]
        for cell in cells
    )
    if not fits:
        raise RunDirError(
            f"{file} is of another run: its tasks and stages are not those of the matrix "
            f"({', '.join(run.tasks)}); {mend}"
        )
    missing = [name for i, name in enumerate(run.tasks[:-1], 1) if i not in found]
    if missing:
        tasks = ", ".join(missing) if found else "any task"
        return found, f"the loss of {tasks} until the end is not diagnosed; run {command}"
    return found, ""


def _from_cell(cell: Mapping[str, Any]) -> _Measured:
    corners, lost = cell["corners"], cell["lost"]
    parts = {
        "router": cell["router"],
        "expert": cell["expert"],
        "form": cell["form"],
        "content": lost["lenient"],
    }
    learned, end = corners["old_old"]["strict"], corners["new_new"]["strict"]
    return _Measured(cell["task"], cell["name"], learned, end, parts, cell["parts"])
