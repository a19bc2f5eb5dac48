"""Data of the answer browser: each test example, and what every run answered, then and at the end.

One value for JSON, made for the eye of a reader, not for a program: texts, a mark for each answer,
pictures as data URLs. The page's script filters and draws it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undrift.report.forms import OTHER_NOTATION
from undrift.report.pictures import Pictures
from undrift.report.results import Results, labels
from undrift.rundir import RunDir, read_answers, read_record
from undrift.rundir.records import Manifest
from undrift.scoring import rules_of

RIGHT, FORM, PARTLY, WRONG = "right", "form", "partly", "wrong"
"""Marks: right by the strict rule; only by the lenient one; partial credit; wrong by every rule."""

_NUMERAL = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
_BOX = re.compile(rf"\s*\[{_NUMERAL},{_NUMERAL},{_NUMERAL},{_NUMERAL}\]\s*")

Said = tuple[str, str | None, str | None]
"""An answer, its mark (None for captions, which are not right or wrong), its error of form."""


def answers(runs: Sequence[Results], page: Path | None = None) -> dict[str, Any]:
    """Gather what runs have answered, example by example.

    Args:
        runs: The runs. Examples are matched by their tasks and ids.
        page: Where the page will lie; pictures that it has no room for are referred to from there.

    Returns:
        `runs`: their names; `errors`: the errors of form that occur; `tasks`: each with `name`,
        `boxes` (whether its answers are boxes in shares of the picture) and `examples`: `id`,
        `question`, `answers`, `pictures` (addresses, None for what is not embedded) and `said`:
        for each run None, or its answers just learned (None if it was not asked then) and at the
        end, as `Said`.
    """
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    pictures, errors = Pictures(page), dict[str, None]()
    for place, run in enumerate(runs):
        scorers = _scorers(run)
        for index, name in enumerate(run.tasks, 1):
            learned = _learned(run, index, scorers.get(name))
            examples = tasks.setdefault(name, {})
            for number, line in enumerate(_end(run, index), 1):
                end = _said(line, scorers.get(name))
                example = examples.setdefault(
                    line["id"],
                    {
                        "id": line["id"],
                        "question": line["question"],
                        "answers": list(line["answers"]),
                        "said": [None] * len(runs),
                    },
                )
                before = learned.get(line["id"])
                example["said"][place] = (before, end)
                pictures.offer((name, line["id"]), run.folder, index, name, number)
                errors |= dict.fromkeys(kind for *_, kind in filter(None, (before, end)) if kind)
    shown = pictures.addresses()
    return {
        "runs": labels(runs),
        "errors": list(errors),
        "tasks": [
            {
                "name": name,
                "boxes": _relative([example["answers"] for example in examples.values()]),
                "examples": [
                    {**example, "pictures": shown.get((name, id_), [])}
                    for id_, example in examples.items()
                ],
            }
            for name, examples in tasks.items()
        ],
    }


def _scorers(run: Results) -> dict[str, str]:
    recorded = (
        read_record(RunDir(run.folder).manifest_file, Manifest).get("protocol", {}).get("tasks", ())
    )
    return {task["name"]: task["scorer"] for task in recorded}


def _end(run: Results, on: int) -> list[dict[str, Any]]:
    """Read a task's lines at the end, by whichever stage was the last."""
    last = RunDir(run.folder).stages()[-1]
    return read_answers(last / f"on-{on:02d}.jsonl")


def _learned(run: Results, on: int, scorer: str | None) -> dict[str, Said]:
    """Read what was answered to each example when its task had just been learned, if it was."""
    file = RunDir(run.folder).predictions(on, on)
    if len(run.matrix) < len(run.tasks) or not file.is_file():
        return {}
    return {line["id"]: _said(line, scorer) for line in read_answers(file)}


def _said(line: Mapping[str, Any], scorer: str | None) -> Said:
    if scorer is None:  # an older run, which tells what was right and nothing of form
        strict, lenient, error = line["strict"], None, None
    else:
        strict, lenient, _, error = rules_of(scorer, line)
    if strict is None:
        return line["prediction"], None, error
    if strict >= 1:
        return line["prediction"], RIGHT, None
    if lenient is not None and lenient >= 1:
        return line["prediction"], FORM, error or OTHER_NOTATION
    return line["prediction"], PARTLY if strict > 0 else WRONG, error


def _relative(answers: Sequence[Sequence[str]]) -> bool:
    """Tell whether all answers are boxes in shares of the picture: pixels would go beyond 1."""
    boxes = [_BOX.fullmatch(answer) for each in answers for answer in each]
    return bool(boxes) and all(b and max(map(float, b.groups())) <= 1 for b in boxes)
