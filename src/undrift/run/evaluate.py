"""A cell of the matrix: answer a task's test examples, score them, keep every prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from undrift.data.collate import Encoded
from undrift.data.types import Example, Task
from undrift.run.backbone import Backbone, Collator
from undrift.run.generate import answers
from undrift.run.progress import Progress
from undrift.rundir import atomic_write, read_answers, text_of, write_lines
from undrift.rundir.files import line_of, read_line, writing
from undrift.rundir.records import Said, check
from undrift.scoring import in_other_units, scores_of, task_score


class Examiner:
    """Puts the test examples of tasks to a model; prompts are tokenised once per task.

    Args:
        backbone: The backbone.
        model: The model with its adapters.
        collator: Makes the batches.
        batch_size: Prompts at a time.
        progress: Told about every batch.
        scoring: The profile that decides what is strict, see `undrift.scoring.PROFILES`.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Any,
        collator: Collator,
        batch_size: int,
        progress: Progress,
        scoring: str = "coin",
    ) -> None:
        self.backbone = backbone
        self.model = model
        self.collator = collator
        self.batch_size = batch_size
        self.progress = progress
        self.scoring = scoring
        self._encoded: dict[str, list[Encoded]] = {}

    def cell(self, task: Task, file: Path, title: str, work: float = 0.0) -> float:
        """Measure one cell, unless its file is there already.

        Predictions are noted batch by batch in a file beside it, from which a killed run goes on.

        Args:
            task: What is asked.
            file: Where every prediction and its scores go.
            title: For the progress bar.
            work: The cell's share of the planned work.

        Returns:
            The strict score in percent; for captions CIDEr.
        """
        if not file.is_file():
            self.progress.stage(title, len(task.test), work)
            write_lines(file, self._rows(task, file.with_suffix(".part")))
            file.with_suffix(".part").unlink(missing_ok=True)
            units = in_other_units(task.scorer, read_answers(file))
            if units:
                self.progress.event("units", f"task {task.name}: {units}", task=task.name)
        return task_score(read_answers(file))

    def _rows(self, task: Task, notes: Path) -> list[dict[str, Any]]:
        said = _noted(notes)
        known = {example.id for example in task.test}
        said = {key: text for key, text in said.items() if key in known}
        self.progress.advance(len(said))
        waiting = [e for e in self._prompts(task) if e.id not in said]
        stream = answers(
            self.backbone,
            self.model,
            self.collator,
            waiting,
            task.max_new_tokens,
            self.batch_size,
            self.progress.advance,
        )
        atomic_write(notes, "".join(_note(notes, *known) for known in said.items()))
        with writing(notes), notes.open("a", encoding="utf-8") as file:
            for key, text in stream:
                said[key] = text
                file.write(_note(notes, key, text))
        return [scored(task.scorer, e, said[e.id], self.scoring) for e in task.test]

    def _prompts(self, task: Task) -> list[Encoded]:
        if task.name not in self._encoded:
            self._encoded[task.name] = self.collator.encode(task.test, answered=False)
        return self._encoded[task.name]


def scored(scorer: str, example: Example, prediction: str, scoring: str = "coin") -> dict[str, Any]:
    """Return the line that is kept of one prediction.

    Args:
        scorer: The scorer's name.
        example: What was asked.
        prediction: What was answered.
        scoring: The profile that decides what is strict.

    Returns:
        id, question, answers, prediction, and the scores of `undrift.scoring.scores_of`.
    """
    extra = {"question": example.question, **example.extra}
    return {
        "id": example.id,
        "question": example.question,
        "answers": list(example.answers),
        "prediction": prediction,
        **scores_of(scorer, prediction, example.answers, extra, scoring),
    }


def _note(notes: Path, key: str, text: str) -> str:
    return line_of(notes, {"id": key, "prediction": text})


def _noted(notes: Path) -> dict[str, str]:
    """Read the predictions of a cell that was not finished; a last line cut off is left out."""
    if not notes.is_file():
        return {}
    found: dict[str, str] = {}
    *lines, _ = text_of(notes).split("\n")
    for number, line in enumerate(lines, 1):
        row: Any = read_line(notes, line, number)
        if isinstance(row, list):  # as it was before there was a format
            row = dict(zip(("id", "prediction"), row, strict=False))
        check(notes, row, TypeAdapter(Said), (f"line {number}",))
        found[row["id"]] = row["prediction"]
    return found
