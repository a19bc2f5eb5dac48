"""What a run's files say: matrix, metrics, scores by other rules, errors of case, protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from undrift.errors import RunDirError
from undrift.report.protocol import facts, made_with
from undrift.rundir import RunDir, damaged, read_answers, read_record
from undrift.rundir.costs import cost
from undrift.rundir.records import Manifest, Matrix
from undrift.scoring import KINDS, TASKS, Score, mean_score, share_case_only

DRIFTS = (
    "What makes a model forget: router drift (a later task sends old inputs to other experts), "
    "expert drift (a later task overwrites what the experts knew) and format drift (the answer is "
    "known, and said as a later task wants it). `undrift diagnose RUN` tells them apart."
)

PROTOCOL = ("benchmark", "order", "seed", "profile", "backbone")

NAMES = {
    "last": "Last (MFN, AP, ACC)",
    "mft": "MFT",
    "bwt": "BWT",
    "forgetting": "Forgetting",
    "maa": "MAA",
    "avg": "Avg (HiDe, Octopus)",
    "fwt": "FWT",
}
"""The metrics of `undrift.scoring.FORMULAS` as the field calls them."""

RULES = {
    "official": "by the data sets' own metrics",
    "lenient": "content only",
    "form": "share of answers in the right form, letter case included",
    "mif": "SMoLoRA's mean instruction following: as form, but blind to case and to final periods "
    "of short answers; not defined for boxes, numbers, documents, charts and free choices",
}
"""What is said of the answers at the end besides strict scores, where the lines keep it."""

Row = list[float | None]
Lines = Sequence[Mapping[str, Any]]


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
        ends: By the names in RULES: the score of each task at the end.
        facts: All that decides the numbers, see `protocol.facts`.
        made_with: Code, versions and machine.
        cost: What the method costs, see `undrift.rundir.costs`; empty where that is not known.
        budget: Which cost `--match-budget` has made equal to that of finetune, or "none".
        trained: Whether anything was trained; what was not has no noise of seeds.
    """

    folder: Path
    method: str
    protocol: Mapping[str, Any]
    tasks: Sequence[str]
    zero_shot: Row
    matrix: Sequence[Row]
    metrics: Mapping[str, float | None]
    case_only: float | None
    ends: Mapping[str, Row] = field(default_factory=dict[str, Row])
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    made_with: Mapping[str, str] = field(default_factory=dict[str, str])
    cost: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    budget: str = "none"
    trained: bool = True

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.protocol["seed"]

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

    def end(self, rule: str) -> tuple[float | None, int]:
        """Average a rule's scores at the end over the tasks that have one.

        Args:
            rule: A key of RULES.

        Returns:
            The mean, None if no task has such a score; and how many tasks have.
        """
        known = [score for score in self.ends.get(rule, ()) if score is not None]
        return (fmean(known) if known else None), len(known)


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
    manifest, tasks = read_record(run.manifest_file, Manifest), list(saved["tasks"])
    recorded = [task["name"] for task in manifest.get("protocol", {}).get("tasks", ())]
    if recorded not in ([], tasks):
        raise damaged(run.manifest_file, f"protocol.tasks: expected those of {run.matrix_file}")
    matrix = [_padded(row, len(tasks)) for row in saved["matrix"]]
    after, lines = _final_lines(run, len(tasks))
    return Results(
        folder=run.root,
        method=manifest["method"],
        protocol={key: manifest[key] for key in PROTOCOL},
        tasks=tasks,
        zero_shot=_padded(saved["zero_shot"] or [], len(tasks)),
        matrix=matrix,
        metrics=saved["metrics"],
        case_only=share_case_only(map(_score, _judged(lines))),
        ends=_ends(lines, manifest),
        facts=facts(manifest),
        made_with=made_with(manifest),
        cost=cost(manifest) or {},
        budget=manifest.get("match_budget", "none"),
        trained=after > 0,
    )


def labels(runs: Sequence[Results]) -> list[str]:
    """Name runs by their method, or where that is not enough, by method and folder.

    Args:
        runs: Any number of runs.

    Returns:
        One name for each.
    """
    methods = Counter(run.method for run in runs)
    folders = Counter((run.method, run.folder.name) for run in runs)
    names = []
    for run in runs:
        folder = run.folder if folders[run.method, run.folder.name] > 1 else run.folder.name
        names.append(run.method if methods[run.method] == 1 else f"{run.method} ({folder})")
    return names


def _finished(run: RunDir) -> dict[str, Any]:
    """Read matrix.json, which must be there and have every task in its last row."""
    saved = read_record(run.matrix_file, Matrix) if run.matrix_file.is_file() else None
    if saved is None or saved["metrics"]["last"] is None:
        raise RunDirError(
            f"{run.root} holds an unfinished run; "
            f"finish it first: undrift run {run.config_file} --out {run.root}"
        )
    return saved


def _padded(row: Sequence[float | None], length: int) -> Row:
    return [*row, *[None] * (length - len(row))]


def _final_lines(run: RunDir, tasks: int) -> tuple[int, list[Lines]]:
    """Read every prediction of the last stage, task by task; also say which stage that is."""
    stages = run.stages()
    if not stages:
        raise RunDirError(f"{run.root} holds no predictions (eval/ is empty)")
    after = int(stages[-1].name.removeprefix("after-"))
    return after, [read_answers(run.predictions(after, on)) for on in range(1, tasks + 1)]


def _judged(lines: Sequence[Lines]) -> Lines:
    """All lines but those of captions, which are not right or wrong."""
    return [row for task in lines for row in task if row["strict"] is not None]


def _score(row: Mapping[str, Any]) -> Score:
    return Score(row["strict"], row["caseless"])


def _ends(lines: Sequence[Lines], manifest: Mapping[str, Any]) -> dict[str, Row]:
    """Average each task's lines by every rule that they keep."""
    recorded = manifest.get("protocol", {}).get("tasks", ())
    scorers = [task["scorer"] for task in recorded] or [""] * len(lines)
    ends: dict[str, Row] = {
        rule: [mean_score(task, rule) for task in lines] for rule in RULES if rule != "mif"
    }
    ends["mif"] = [_mif(task, name) for task, name in zip(lines, scorers, strict=True)]
    return ends


def _mif(lines: Lines, scorer: str) -> float | None:
    rule = KINDS[TASKS[scorer].kind].mif if scorer in TASKS else None
    if rule is None:
        return None
    return 100 * fmean(rule(row["prediction"], row["answers"]) for row in lines)
