"""Who ends where, before anything is said of causes: a sentence or two, and what became of a chain.

Of runs it is the average at the end. Of adapters that `undrift learn` has left it is every task by
name, in points and in answers: the new one against the model before it, an earlier one against what
it was when it had just been learned, a guard against what it was before the last task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from undrift.report.comparison import Group, Section, number
from undrift.report.results import Lines, Results

SMALL = 0.05
"""Points below which a number is printed as 0.0."""


@dataclass(frozen=True)
class TaskChange:
    """What became of a task, or of a guard, over a chain of adapters.

    Args:
        name: What it is called.
        before: Its score before, in percent.
        after: Its score in the last adapter.
        old: Its answers before.
        new: Its answers of the last adapter.
        new_task: Whether it is the task that the last adapter has learned.
        guard: Whether it is no task.
        scores: Its score by the names of the stages at which it was asked.
        asked_last: The adapter that it was asked of for the last time, if that is an earlier one.
    """

    name: str
    before: float | None
    after: float | None
    old: Lines
    new: Lines
    new_task: bool = False
    guard: bool = False
    scores: Mapping[str, float] | None = None
    asked_last: str = ""

    @property
    def change(self) -> float | None:
        """In points."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def judged(self) -> bool:
        """Whether an answer is right or wrong; those of captions are not."""
        return bool(self.new) and all(line["strict"] is not None for line in self.new)

    @property
    def turned(self) -> tuple[int, int]:
        """How many answers were right before and are not now, and the other way round."""
        old = {line["id"]: right(line) for line in self.old}
        both = [(old[line["id"]], right(line)) for line in self.new if line["id"] in old]
        return sum(was and not now for was, now in both), sum(now and not was for was, now in both)

    @property
    def counts(self) -> str:
        """How many answers are right, lost and won, such as "15/40 −25 +2"."""
        if not self.judged:
            return str(len(self.new) or "")
        lost, won = self.turned
        parts = [f"−{lost}"] * bool(lost) + [f"+{won}"] * bool(won)
        return " ".join([f"{sum(map(right, self.new))}/{len(self.new)}", *parts])

    @property
    def sentence(self) -> str:
        """All this in words, without a full stop."""
        named = f"the guard {self.name}" if self.guard else self.name
        if self.asked_last:
            named += f", last asked of {self.asked_last},"
        if self.after is None:
            return f"{named} was not asked"
        count = sum(map(right, self.new))
        share = f"{count} of {len(self.new)} answers right" if self.judged else ""
        if self.before is None:
            return f"{named} stands at {self.after:.1f}{f' ({share})' if share else ''}"
        moved = self.after - self.before
        if abs(moved) < SMALL:
            return f"{named} kept its {self.after:.1f}{self._turned()}"
        how = "fell" if moved < 0 else "rose"
        return f"{named} {how} from {self.before:.1f} to {self.after:.1f}{self._turned()}"

    def _turned(self) -> str:
        lost, won = self.turned
        if not self.judged or not lost + won:
            return ""
        parts = [f"{n} of {len(self.new)} answers {how}" if not i or not lost else f"{n} {how}"
                 for i, (n, how) in enumerate(((lost, "lost"), (won, "won"))) if n]  # fmt: skip
        return f" ({', '.join(parts)})"


def right(line: Mapping[str, float | None]) -> bool:
    """Tell whether a line of answers is right by the strict rule."""
    return (line["strict"] or 0.0) >= 1.0


def changes(run: Results) -> list[TaskChange]:
    """Say what became of every task of a chain, and of its guards.

    Args:
        run: A chain of adapters.

    Returns:
        The new task first, then the earlier ones in the order of learning, then the guards.
    """
    last, found = len(run.tasks), []
    for task in (last, *range(1, last)):
        start = before_stage(run, task)
        asked = {s: _score(run, s, task) for s in range(last + 1)}
        scores = {run.files.stage_names[s]: v for s, v in asked.items() if v is not None}
        old, new = (_lines(run, stage, task) for stage in (start, last))
        name, ends = run.tasks[task - 1], (asked[start], asked[last])
        found.append(TaskChange(name, *ends, old, new, task == last, scores=scores))
    for guard in run.files.guards:
        scores = {each.stage: each.score for each in guard.course}
        old, new = guard.course[-2:]
        told = "" if new.stage == run.files.stage_names[-1] else new.stage
        ends = (old.score, new.score, old.lines, new.lines)
        found.append(TaskChange(guard.name, *ends, guard=True, scores=scores, asked_last=told))
    return found


def before_stage(run: Results, task: int) -> int:
    """Return after how many tasks the answers were given that a task's last are held against."""
    if run.is_chain and task == len(run.tasks):
        return task - 1
    return run.known_from(task)


def _score(run: Results, after: int, task: int) -> float | None:
    return (run.matrix[after - 1] if after else run.zero_shot)[task - 1]


def _lines(run: Results, after: int, task: int) -> Lines:
    return run.files.answers(after, task) if run.files.asked(after, task) else []


def chain_verdict(run: Results) -> str:
    """Say in words what the last adapter of a chain has learned, and what became of the rest."""
    new, *others = changes(run)
    share = f" ({sum(map(right, new.new))} of {len(new.new)} answers right)" if new.judged else ""
    was = "" if new.before is None else f", {new.before:.1f} before"
    said = f"{run.folder.name} has learned {new.name}: {number(new.after)} %{share}{was}."
    worst_first = sorted(others, key=lambda each: each.change or 0.0)
    return " ".join([said, *(f"{_capital(each.sentence)}." for each in worst_first)])


def _capital(text: str) -> str:
    return text if not text.startswith("the guard ") else f"T{text[1:]}"


def chain_table(run: Results) -> Section:
    """Set the scores of every task side by side, a column an adapter."""
    told = changes(run)
    known = {stage for each in told for stage in each.scores or {}}
    each_way = (s for name in run.files.stage_names for s in (f"before {name}", name))
    stages = [stage for stage in dict.fromkeys(each_way) if stage in known]
    rows = []
    for each in told:
        scores = each.scores or {}
        kind = " (new)" if each.new_task else " (guard)" if each.guard else ""
        still = each.change is None or abs(each.change) < SMALL
        moved = number(each.change) if still else f"{each.change:+.1f}"
        ends = f"{number(each.before) or '?'} → {number(each.after) or '?'}"
        course = [number(scores.get(stage)) for stage in stages]
        rows.append([f"{each.name}{kind}", ends, moved, each.counts, *course])
    header = ["task", "before → after", "change", "answers", *stages]
    note = (
        "Percent, by the strict rule; answers: how many are right now, and how many were lost and "
        "won. Before is for the new task before it was learned, for an earlier one when it had "
        "just been learned, for a guard before the new task."
    )
    return Section("before and after, in percent", header, rows, [note])


def ends(groups: Sequence[Group]) -> str:
    """Say where runs end on average, the best first; nothing of chains."""
    known = [
        (fmean(group.by_seed("last").values()), group)
        for group in groups
        if group.by_seed("last") and not group.runs[0].is_chain
    ]
    if not known:
        return ""
    ordered = sorted(known, key=lambda pair: -pair[0])
    (best, first), *rest = ordered
    tasks = len(first.runs[0].tasks)
    over = f" on average over {tasks} tasks" if tasks > 1 else ""
    said = [
        f"{first.label} ends at {best:.1f} %{over}",
        *(f"{g.label} at {v:.1f}" for v, g in rest),
    ]
    return f"{', '.join(said)}."
