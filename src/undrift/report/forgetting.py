"""What each run has forgotten and why, in points and in words: router, experts, or form alone.

The parts come from `diagnose/causes.json` where `undrift diagnose` has written it: points of strict
score that add up to the loss. Without it only form and content can be told apart, from the kept
predictions: what strict lost and lenient did not is form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from undrift.errors import RunDirError
from undrift.report.comparison import grouped
from undrift.report.results import Results
from undrift.scoring import Rules
from undrift.scoring.matrix import of_all

PARTS = ("router", "expert", "form", "content")
Parts = Mapping[str, float | None]
"""`router`, `expert`, `form` and `content` in points, None where not known."""

OTHER_NOTATION = "other notation"
"""Right by content and wrong by the strict rule, for a reason without a name: `7` for `seven`."""

# ------------------------------------------------------------ the form of a run's answers


class Slip(NamedTuple):
    """An answer with the right content in the wrong form: its error, its text, what was wanted."""

    error: str
    answer: str
    wanted: str


@dataclass(frozen=True)
class FormCell:
    """What a stage's answers to one task are worth, and what is wrong with their form.

    Args:
        task: The task's number in the order of learning, from 1.
        name: Its name.
        after: How many tasks had been learned.
        strict: The cell of the matrix, in percent.
        lenient: Content only, in percent; None for captions.
        form: The share of answers in the right form, in percent.
        wrong: How many answers the strict rule does not call right; all of them for captions,
            which it does not judge one by one.
        errors: How many of the wrong ones have which error of form (`undrift.scoring.ERROR_KINDS`
            or OTHER_NOTATION); one that is wrong in the right form is not counted.
        borrowed: How many of the wrong ones look like the answers of which task learned since.
        alone: Those of the wrong ones whose content is right, and how often each occurs.
    """

    task: int
    name: str
    after: int
    strict: float | None
    lenient: float | None
    form: float | None
    wrong: int
    errors: Mapping[str, int]
    borrowed: Mapping[str, int]
    alone: Mapping[Slip, int] = field(default_factory=dict[Slip, int])


def form_cells(run: Results) -> list[FormCell]:
    """Judge the form of every answer to a task that had been learned.

    Args:
        run: The run.

    Returns:
        A cell for every task and every later stage at which it was asked, stage by stage. A run
        that was trained once for all tasks has cells for the last stage only; a model that was not
        trained has none. None either where the manifest, which older versions have written, does
        not name the tasks' scorers.
    """
    tasks = range(1, len(run.tasks) + 1)
    cells = (form_cell(run, task, after) for after in tasks for task in tasks[:after])
    return [cell for cell in cells if cell is not None]


def form_cell(run: Results, task: int, after: int) -> FormCell | None:
    """Judge the answers to one task at one stage; None where it was not asked, see `form_cells`."""
    stage = after if run.in_turn else 1
    if not run.files.scorers or (not run.in_turn and after < len(run.tasks)):
        return None
    if not run.files.asked(stage, task):
        return None
    judged = run.files.judged(stage, task)
    wrong = [(line, rules) for line, rules in judged if (rules.strict or 0.0) < 1.0]
    styles = run.files.styles
    later = {run.tasks[k - 1]: styles[k] for k in range(task + 1, after + 1) if k in styles}
    return FormCell(
        task=task,
        name=run.tasks[task - 1],
        after=after,
        strict=run.matrix[stage - 1 if run.in_turn else -1][task - 1],
        lenient=_percent([rules.lenient for _, rules in judged]),
        form=_percent([rules.form for _, rules in judged]),
        wrong=len(wrong),
        errors=Counter(
            rules.error or OTHER_NOTATION for _, rules in wrong if rules.error or _form_alone(rules)
        ),
        borrowed=Counter(
            other
            for line, _ in wrong
            if (other := styles[task].borrowed_from(line["prediction"], later)) is not None
        ),
        alone=Counter(
            Slip(rules.error or OTHER_NOTATION, line["prediction"], line["answers"][0])
            for line, rules in wrong
            if _form_alone(rules)
        ),
    )


def _form_alone(rules: Rules) -> bool:
    """Tell whether a prediction that strict does not call right has the right content."""
    return rules.strict is not None and rules.lenient == 1.0


def _percent(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return round(100 * sum(known) / len(known), 6) if known and len(known) == len(scores) else None


# ------------------------------------------------------------ what was lost, and to what


@dataclass(frozen=True)
class TaskLoss:
    """What one task has lost between just learned and the end, in points of strict score.

    Where it was diagnosed on a probe set, all numbers are those of the probe.

    Args:
        task: Its number in the order of learning, from 1.
        name: Its name.
        learned: The score when it had just been learned, in percent.
        end: The score at the end.
        router: How much of the loss the change of the router has cost; None where not diagnosed.
        expert: The same of the experts.
        form: How much was form alone; None where the run does not name its tasks' scorers.
        content: The rest: what the lenient score lost. Of captions, which have none, all.
        changed: What there was to change: "router and experts", "router", "experts", or "" where
            it was not diagnosed.
        cells: What its answers at the end are worth, a cell for each seed that knows.
    """

    task: int
    name: str
    learned: float
    end: float
    router: float | None = None
    expert: float | None = None
    form: float | None = None
    content: float | None = None
    changed: str = ""
    cells: Sequence[FormCell] = ()

    @property
    def lost(self) -> float:
        """Points; negative if it gained."""
        return self.learned - self.end

    @property
    def sentence(self) -> str:
        """All this in words."""
        parts = {part: getattr(self, part) for part in PARTS}
        return task_sentence(self.name, self.learned, self.lost, parts, self.changed, self.cells)


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

    @property
    def learned(self) -> float:
        """The mean score of the tasks when they had just been learned."""
        return fmean(task.learned for task in self.tasks)


def explain_all(runs: Sequence[Results]) -> list[RunLoss]:
    """Say what runs have forgotten and why; runs that differ in their seed only share a mean.

    Args:
        runs: Any runs.

    Returns:
        One loss for each group of `comparison.grouped`, labelled as it is.

    Raises:
        RunDirError: If a `diagnose/causes.json` is damaged or is of another run.
    """
    return [_explain(group.label, group.runs) for group in grouped(runs)]


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
    hint = f" ({first.why}.)" if first.why and lost >= CLEAR else ""
    others = [
        f"{loss.label} {_little(lost, f'{loss.learned:.1f}')}"
        if lost < SMALL
        else f"{loss.label} forgets {lost:.1f} of {loss.learned:.1f}"
        for lost, loss in rest
    ]
    return first.sentence + hint + (f" {'; '.join(others)}." if others else "")


def _fall(run: Results) -> float | None:
    """Read how far a stream's tasks have fallen from their best; None where there is no stream."""
    stream = run.files.stream
    return None if stream is None else stream["metrics"]["forgetting"]


def _explain(label: str, runs: Sequence[Results]) -> RunLoss:
    measured = [_measure(run) for run in runs]
    tasks = [_mean_task(seeds) for seeds in zip(*(found for found, _ in measured), strict=True)]
    why = next((why for _, why in measured if why), "")
    lost = of_all([task.lost for task in tasks])
    parts = {part: of_all([getattr(task, part) for task in tasks]) for part in PARTS}
    if lost is None and not runs[0].trained:
        sentence = f"{label} was not trained, so there is nothing that it could forget."
    elif (fall := of_all([_fall(run) for run in runs])) is not None:
        sentence = (
            f"{label} has learned a stream without boundaries; at its end each task is "
            f"{fall:.1f} points below its best point, on average."
        )
    elif lost is None:
        sentence = (
            f"{label} has no scores of tasks just learned, so there is nothing to compare the end "
            "with."
        )
    else:
        changed = {seed.changed for found, _ in measured for seed in found}
        learned = fmean(task.learned for task in tasks)
        sentence = run_sentence(label, learned, lost, parts, changed)
        bwt = of_all([run.metrics["bwt"] for run in runs])
        if bwt is not None and abs(lost + bwt) >= SMALL:
            sentence += (
                " (That is of the examples that were diagnosed; of all test examples it is "
                f"{-bwt:.1f}.)"
            )
    return RunLoss(
        label, tasks, lost, parts["router"], parts["expert"], parts["form"], why, sentence
    )


def _mean_task(seeds: Sequence[TaskLoss]) -> TaskLoss:
    """Average one task over runs that differ in their seed only."""
    parts = {part: of_all([getattr(seed, part) for seed in seeds]) for part in PARTS}
    learned, end = fmean(seed.learned for seed in seeds), fmean(seed.end for seed in seeds)
    cells = [cell for seed in seeds for cell in seed.cells]
    return replace(seeds[0], learned=learned, end=end, cells=cells, **parts)


def _measure(run: Results) -> tuple[list[TaskLoss], str]:
    """Measure every task but the last; also say why router and experts are not told apart."""
    last = len(run.tasks)
    if not run.in_turn:
        return [], ""
    diagnosed, why = _diagnosed(run)
    found = []
    for task in range(1, last):
        learned, end = run.learned[task - 1], run.last[task - 1]
        if learned is None or end is None:
            continue
        before, after = form_cell(run, task, task), form_cell(run, task, last)
        loss = diagnosed.get(task) or TaskLoss(task, run.tasks[task - 1], learned, end)
        if task not in diagnosed and before and after:  # what content lost; the rest is form
            content = loss.lost
            if before.lenient is not None and after.lenient is not None:
                content = before.lenient - after.lenient
            loss = replace(loss, content=content, form=loss.lost - content)
        found.append(replace(loss, cells=[after] if after else []))
    return found, why


def _diagnosed(run: Results) -> tuple[dict[int, TaskLoss], str]:
    """Read causes.json: the tasks whose loss until the end it explains, and why if it does not."""
    command = f"`undrift diagnose {run.folder}`"
    saved = run.files.diagnosis("causes")
    if saved is None:
        return {}, f"{command} tells the router's part from the experts'"
    if not saved["applies"]:
        return {}, saved["why"]
    cells, last = saved["cells"], len(run.tasks)
    fits = all(
        1 <= cell["task"] < cell["after"] <= last and cell["name"] == run.tasks[cell["task"] - 1]
        for cell in cells
    )
    if not fits:
        raise RunDirError(
            f"{run.folder / 'diagnose' / 'causes.json'} is of another run: its tasks and stages "
            f"are not those of the matrix ({', '.join(run.tasks)}); delete it and run {command} "
            "again"
        )
    ends = [cell for cell in cells if cell.get("before", cell["task"]) == cell["task"]]
    found = {cell["task"]: _from_diagnosis(cell) for cell in ends if cell["after"] == last}
    missing = [name for i, name in enumerate(run.tasks[:-1], 1) if i not in found]
    if missing:
        tasks = ", ".join(missing) if found else "any task"
        if run.is_chain and found:
            told = "the adapters of then are not there any more"
            return found, f"the loss of {tasks} until the end cannot be diagnosed: {told}"
        return found, f"the loss of {tasks} until the end is not diagnosed; run {command}"
    return found, ""


def _from_diagnosis(cell: Mapping[str, Any]) -> TaskLoss:
    parts = {part: cell[part] for part in ("task", "name", "router", "expert", "form")}
    learned, end = (cell["corners"][corner]["strict"] for corner in ("old_old", "new_new"))
    content, changed = cell["lost"]["lenient"], cell["parts"]
    return TaskLoss(**parts, learned=learned, end=end, content=content, changed=changed)


# ------------------------------------------------------------ in words

SMALL = 0.05
"""Points below which a number is printed as 0.0."""

CLEAR = 1.0
"""Points from which a loss is shared out in percent; a share of less is a share of noise."""

LOOK_ALIKE = 1 / 3
"""Of the wrong answers, and at least FEW, look like those of one later task: worth saying."""

FEW = 3
_EXAMPLE = 30  # characters of an answer that is shown as an example

_COST = {
    "expert": "because {its} experts changed",
    "router": "because {its} router sends {old} inputs elsewhere",
    "content": "in content",
    "form": "in form alone",
}
_WON = {
    "expert": "that the change of the experts won back",
    "router": "that the change of the router won back",
    "content": "of content that came back",
    "form": "that form alone no longer costs",
}
_ERRORS = {
    "case": "letter case",
    "not a number": "words for numbers",
    OTHER_NOTATION: "another notation",
}


def task_sentence(
    name: str, learned: float, lost: float, parts: Parts, changed: str, cells: Sequence[FormCell]
) -> str:
    """Say what a task has lost and why.

    Args:
        name: The task's name.
        learned: Its score when it had just been learned.
        lost: What it has lost since, in points.
        parts: What the loss is made of.
        changed: What there was to change: "router and experts", "router", "experts", or "" where
            it was not diagnosed.
        cells: What its answers at the end are worth, a cell for each seed that knows.

    Returns:
        A sentence without its full stop.
    """
    if abs(lost) < SMALL:
        return f"{name} kept its {learned:.1f} points"
    if lost < 0:
        return f"{name} gained {-lost:.1f} points"
    causes = _causes({changed}, its="the", old="its")
    if any(cell.lenient is None for cell in cells):
        causes["content"] = "in content or form, which are not told apart in captions"
    if alone := sum((Counter(cell.alone) for cell in cells), Counter[Slip]()):
        causes["form"] += f" ({_kinds(alone)})"
    sentence = f"{name} lost {lost:.1f} points{_because(lost, parts, causes)}"
    borrowed = sum((Counter(cell.borrowed) for cell in cells), Counter[str]())
    wrong = sum(cell.wrong for cell in cells)
    other, count = max(borrowed.items(), key=lambda item: item[1], default=("", 0))
    if count >= max(FEW, LOOK_ALIKE * wrong):
        sentence += f"; {count} of the {wrong} wrong answers look like those of {other}"
    return sentence


def run_sentence(
    label: str, learned: float, lost: float, parts: Parts, changed: Collection[str]
) -> str:
    """Say what a run has forgotten and why, means over its tasks but the last.

    Shares are in percent where the loss is clear and nothing was won back. `changed` is as for
    `task_sentence`, of all tasks.
    """
    had = f"the {learned:.1f} points that it had just learned"
    if lost < SMALL:
        return f"{label} {_little(lost, had)}."
    causes = _causes(changed, its="its", old="old")
    if lost >= CLEAR and all((points or 0.0) > -SMALL for points in parts.values()):
        for part, points in parts.items():
            causes[part] += f" ({100 * (points or 0.0) / lost:.0f} %)"
    return f"{label} forgets {lost:.1f} of {had}{_because(lost, parts, causes)}."


def _little(lost: float, had: str) -> str:
    return f"gains {-lost:.1f} on {had}" if lost <= -SMALL else f"forgets nothing of {had}"


def _causes(changed: Collection[str], its: str, old: str) -> dict[str, str]:
    causes = {part: text.format(its=its, old=old) for part, text in _COST.items()}
    if set(changed) == {"experts"}:  # there is no router, so these are all weights that there are
        causes["expert"] = f"because {its} weights changed"
    if set(changed) == {"router"}:
        causes["router"] += f", while {its} experts stayed the same"
    return causes


def _because(lost: float, parts: Parts, causes: Mapping[str, str]) -> str:
    """List the parts of a loss, the largest first, then what was won back."""
    known = ("router", "expert", "form")
    if parts.get("expert") is None:
        known = ("content", "form")
    points = {key: part for key in known if (part := parts.get(key)) and abs(part) >= SMALL}
    ordered = sorted(points, key=lambda key: -points[key])
    if len(ordered) == 1 and abs(points[ordered[0]] - lost) < SMALL:
        return f", all {causes[ordered[0]]}"
    cost = [f"{points[key]:.1f} {causes[key]}" for key in ordered if points[key] > 0]
    won = [f"{-points[key]:.1f} {_WON[key]}" for key in ordered if points[key] < 0]
    if not cost:
        return ""
    return f": {', '.join(cost)}" + (f", less {' and '.join(won)}" if won else "")


def _kinds(alone: Mapping[Slip, int]) -> str:
    """Name the errors that form alone is made of, with an example."""
    kinds: Counter[str] = Counter()
    for slip, count in alone.items():
        kinds[slip.error] += count
    names = [_ERRORS.get(kind, kind) for kind, _ in kinds.most_common(2)]
    first = max(alone, key=lambda slip: (slip.error == kinds.most_common(1)[0][0], alone[slip]))
    answer, wanted = _shortened(first.answer), _shortened(first.wanted)
    return f"{' and '.join(names)}, such as “{answer}” for “{wanted}”"


def _shortened(text: str) -> str:
    return text if len(text) <= _EXAMPLE else text[: _EXAMPLE - 1] + "…"
