"""What a run's files say: the matrix, the metrics, the share of errors of letter case only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undrift.errors import RunDirError
from undrift.rundir import RunDir, read_json, read_lines
from undrift.scoring import Score, share_case_only

DRIFTS = (
    "Two kinds of drift make a mixture of experts forget: router drift (a later task sends old "
    "inputs to other experts) and expert drift (a later task overwrites what those experts knew)."
)

PROTOCOL = ("benchmark", "order", "seed", "profile", "backbone")

Row = list[float | None]


@dataclass(frozen=True)
class Results:
    """The numbers of one run, accuracies in percent, None where nothing was measured.

    Args:
        folder: The run's folder.
        method: Its name as on the command line ("same", "same-paper").
        protocol: What the run must share with another for the two to be comparable.
        tasks: Names in the order of learning.
        zero_shot: The untouched model's score on each task.
        matrix: Row t: the scores after training task t. One row if trained once or never.
        metrics: By the names in `undrift.scoring.FORMULAS`.
        case_only: The percentage of the final errors that are letter case only.
    """

    folder: Path
    method: str
    protocol: Mapping[str, Any]
    tasks: Sequence[str]
    zero_shot: Row
    matrix: Sequence[Row]
    metrics: Mapping[str, float | None]
    case_only: float | None

    @property
    def last(self) -> Row:
        """The score of each task at the end."""
        return self.matrix[-1]

    @property
    def learned(self) -> Row:
        """The score of each task when it had just been learned."""
        if len(self.matrix) < len(self.tasks):
            return [None] * len(self.tasks)
        return [row[index] for index, row in enumerate(self.matrix)]


def load(folder: Path) -> Results:
    """Read a finished run.

    Args:
        folder: A folder that `undrift run` has written.

    Returns:
        Its numbers.

    Raises:
        RunDirError: If the folder holds no run, an unfinished one, or files that lack something.
    """
    run = RunDir.existing(folder)
    saved = _finished(run)
    manifest, tasks = read_json(run.manifest_file), list(saved["tasks"])
    matrix = [_padded(row, len(tasks)) for row in saved["matrix"]]
    try:
        return Results(
            folder=run.root,
            method=manifest["method"],
            protocol={key: manifest[key] for key in PROTOCOL},
            tasks=tasks,
            zero_shot=_padded(saved["zero_shot"] or [], len(tasks)),
            matrix=matrix,
            metrics=saved["metrics"],
            case_only=share_case_only(_final_scores(run, len(tasks))),
        )
    except KeyError as error:
        raise RunDirError(f"{folder}: the manifest or a prediction lacks {error}") from error


def labels(runs: Sequence[Results]) -> list[str]:
    """Name runs by their method, or where that is not enough, by method and folder.

    Args:
        runs: Any number of runs.

    Returns:
        One name for each.
    """
    methods = [run.method for run in runs]
    return [
        run.method if methods.count(run.method) == 1 else f"{run.method} ({run.folder.name})"
        for run in runs
    ]


def summary(runs: Sequence[Results]) -> dict[str, Any]:
    """Gather the headline numbers in one value for JSON.

    Args:
        runs: The runs to gather.

    Returns:
        `{"methods": {"same": {"tasks", "last", "mft", "bwt", "forgetting", "case_only",
        "matrix"}}}`, all numbers in percent.
    """
    return {
        "methods": {
            label: {
                "tasks": list(run.tasks),
                **{name: run.metrics[name] for name in ("last", "mft", "bwt", "forgetting")},
                "case_only": run.case_only,
                "matrix": [list(row) for row in run.matrix],
            }
            for label, run in zip(labels(runs), runs, strict=True)
        }
    }


def _finished(run: RunDir) -> dict[str, Any]:
    """Read matrix.json, which must be there and have every task in its last row."""
    saved = read_json(run.matrix_file) if run.matrix_file.is_file() else None
    if saved is None or saved["metrics"]["last"] is None:
        raise RunDirError(
            f"{run.root} holds an unfinished run; "
            f"finish it first: undrift run {run.config_file} --out {run.root}"
        )
    return saved


def _padded(row: Sequence[float | None], length: int) -> Row:
    return [*row, *[None] * (length - len(row))]


def _final_scores(run: RunDir, tasks: int) -> list[Score]:
    """Read the scores behind the last row: every prediction of the last stage."""
    stages = sorted((run.root / "eval").glob("after-*"))
    if not stages:
        raise RunDirError(f"{run.root} holds no predictions (eval/ is empty)")
    after = int(stages[-1].name.removeprefix("after-"))
    return [
        Score(row["strict"], row["caseless"])
        for on in range(1, tasks + 1)
        for row in read_lines(run.predictions(after, on))
        if row["strict"] is not None  # captions are not right or wrong
    ]
