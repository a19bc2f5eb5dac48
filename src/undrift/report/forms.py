"""The form of a run's answers, cell by cell: three scores, the errors of form, whose form it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from undrift.rundir import RunDir, read_answers, read_record
from undrift.rundir.records import Manifest, Matrix
from undrift.scoring import AnswerStyle, Rules, Score, rules_of, share_case_only

OTHER_NOTATION = "other notation"
"""Right by content and wrong by the strict rule, for a reason without a name: `7` for `seven`."""


class Slip(NamedTuple):
    """An answer with the right content in the wrong form: the error, what was said and wanted."""

    error: str
    said: str
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
        case_only: The percentage of the wrong ones that are letter case only; None where none is
            wrong and for captions.
        worn: How many of the wrong ones look like the answers of which task learned since.
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
    case_only: float | None
    worn: Mapping[str, int]
    alone: Mapping[Slip, int] = field(default_factory=dict[Slip, int])


def form_cells(folder: Path) -> list[FormCell]:
    """Judge the form of every answer to a task that had been learned.

    Args:
        folder: A finished run's folder.

    Returns:
        A cell for every task and every later stage at which it was asked, stage by stage. A run
        that was trained once for all tasks has cells for the last stage only; a model that was not
        trained has none. None either where the manifest, which older versions have written, does
        not name the tasks' scorers.

    Raises:
        RunDirError: If files are missing, damaged, or lack something.
    """
    answers = Answers(folder)
    tasks = range(1, len(answers.tasks) + 1)
    pairs = [(task, after) for after in tasks for task in tasks[:after]]
    return [answers.cell(*pair) for pair in pairs if answers.has(*pair)]


class Answers:
    """The kept predictions of one run.

    Args:
        folder: A finished run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._run = RunDir.existing(folder)
        saved = read_record(self._run.matrix_file, Matrix)
        self.tasks: list[str] = saved["tasks"]
        self._matrix: list[list[float | None]] = saved["matrix"]
        self._once = len(self._matrix) < len(self.tasks)

    def has(self, task: int, after: int) -> bool:
        """Tell whether a learned task was asked at a stage, and its scorer is known."""
        if not self._scorers or (self._once and after < len(self.tasks)):
            return False
        return self._file(task, after).is_file()

    def cell(self, task: int, after: int) -> FormCell:
        """Judge the answers to one task at one stage.

        Args:
            task: From 1.
            after: The stage; the number of tasks for the end of a run trained once for all.

        Returns:
            The cell.

        Raises:
            RunDirError: If the predictions are missing or lack something.
        """
        file = self._file(task, after)
        lines = read_answers(file)
        judged = [(line, rules_of(self._scorers[task - 1], line)) for line in lines]
        wrong = [(line, rules) for line, rules in judged if (rules.strict or 0.0) < 1.0]
        errors = [_error(rules) for _, rules in wrong]
        own, later = self._looks[task], self._learned_since(task, after)
        return FormCell(
            task=task,
            name=self.tasks[task - 1],
            after=after,
            strict=self._matrix[-1 if self._once else after - 1][task - 1],
            lenient=_percent([rules.lenient for _, rules in judged]),
            form=_percent([rules.form for _, rules in judged]),
            wrong=len(wrong),
            errors=_count(errors),
            case_only=share_case_only(
                Score(rules.strict, line["caseless"])
                for line, rules in judged
                if rules.strict is not None
            ),
            worn=_count(own.borrowed_from(line["prediction"], later) for line, _ in wrong),
            alone=_count(
                Slip(error, line["prediction"], line["answers"][0])
                for (line, rules), error in zip(wrong, errors, strict=True)
                if error is not None and _alone(rules)
            ),
        )

    def _learned_since(self, task: int, after: int) -> dict[str, AnswerStyle]:
        since = [k for k in range(task + 1, after + 1) if k in self._looks]
        return {self.tasks[k - 1]: self._looks[k] for k in since}

    @cached_property
    def _scorers(self) -> list[str]:
        manifest = read_record(self._run.manifest_file, Manifest)
        return [task["scorer"] for task in manifest.get("protocol", {}).get("tasks", ())]

    @cached_property
    def _looks(self) -> dict[int, AnswerStyle]:
        """How each task's answers look, by its number; all stages keep the same answers."""
        found: dict[int, AnswerStyle] = {}
        for file in [
            each for stage in reversed(self._run.stages()) for each in stage.glob("on-*.jsonl")
        ]:
            task = int(file.stem.removeprefix("on-"))
            if task not in found:
                found[task] = AnswerStyle(line["answers"] for line in read_answers(file))
        return found

    def _file(self, task: int, after: int) -> Path:
        return self._run.predictions(1 if self._once else after, task)


def _alone(rules: Rules) -> bool:
    """Tell whether a prediction that strict does not call right has the right content."""
    return rules.strict is not None and rules.lenient == 1.0


def _error(rules: Rules) -> str | None:
    return rules.error or (OTHER_NOTATION if _alone(rules) else None)


_T = TypeVar("_T", bound=Hashable)


def _count(found: Iterable[_T | None]) -> Counter[_T]:
    return Counter(one for one in found if one is not None)


def _percent(scores: Sequence[Any]) -> float | None:
    known = [score for score in scores if score is not None]
    return round(100 * sum(known) / len(known), 6) if known and len(known) == len(scores) else None
