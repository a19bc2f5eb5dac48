"""A finished run: its files, each read once, and what they say in numbers and facts.

Facts are what decides a run's numbers, flattened from its manifest into keys and values that
compare. A key that a manifest lacks, because an older undrift wrote it, is "not recorded".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from undrift.errors import RunDirError
from undrift.rundir import RunDir, damaged, read_answers, read_record
from undrift.rundir.files import SHORT, short_hash
from undrift.rundir.records import PARTS, Identified, Manifest, Matrix, Stream
from undrift.rundir.study_results import cost, general_of
from undrift.scoring import (
    KINDS,
    TASKS,
    AnswerStyle,
    Rules,
    Score,
    mean_score,
    rules_of,
    share_case_only,
)

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

GENERAL = "general_loss"
"""The metric of what the base could do before, which only some benchmarks measure."""
GENERAL_LOST = "general ability lost, %"

RULES = {
    "official": "by the data sets' own metrics",
    "lenient": "content only",
    "form": "share of answers in the right form, letter case included",
    "mif": "SMoLoRA's mean instruction following: as form, but blind to case and to final periods "
    "of short answers; not defined for boxes, numbers, documents, charts and free choices",
}
"""What is said of the answers at the end besides strict scores, where the lines keep it."""

NOT_RECORDED = "not recorded"
NOT_TRAINED = "not trained"
OPTION = "method."  # begins the keys of a method's own options, which other methods have not got
SEED = "seed"
RATE = "training.learning_rate"
_WHOLE = ("benchmark", "order", SEED, "profile", "backbone", "skipped")
_PARTS = {"data": "data", "weights": "weights", "protocol": "", "settings": OPTION}
_MACHINE = ("commit", "versions", "hardware")
_LEFT_OUT = {"data.licence", "weights.parameters"}  # the second counts the adapter's as well

Row = list[float | None]
Line = Mapping[str, Any]
Lines = Sequence[Line]
_T = TypeVar("_T")


class Asked(NamedTuple):
    """Questions as they were answered at one stage: what the model is called, score, answers."""

    stage: str
    score: float
    lines: Lines


@dataclass(frozen=True)
class Guard:
    """Questions that are no task, nobody was to learn them: asked before a task and after it.

    Args:
        name: What they are called.
        course: What was answered, stage by stage; the last two are before and after a task.
        pictures: The folder of the thumbnails, which may be missing.
    """

    name: str
    course: Sequence[Asked]
    pictures: Path


class RunFiles:
    """The files of a finished run, each read when it is asked for, and once.

    Args:
        folder: A folder that `undrift run` has written.

    Raises:
        RunDirError: If the folder holds no run; from any method, if a file lacks something.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = RunDir.existing(folder)
        self._read: dict[tuple[object, ...], Any] = {}

    @property
    def stage_names(self) -> Sequence[str]:
        """What the model is called after so many tasks, from none on; nothing in a run."""
        return ()

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know of the files, a sentence each without its full stop."""
        return ()

    @property
    def guards(self) -> Sequence[Guard]:
        """What was asked and not learned."""
        return ()

    @property
    def logs(self) -> Mapping[int, Path]:
        """The logs of the trainings, by the task."""
        found = {t: self.paths.train_log(t, name) for t, name in enumerate(self.tasks, 1)}
        return {task: file for task, file in found.items() if file.is_file()}

    def _once(self, key: tuple[object, ...], read: Callable[[], _T]) -> _T:
        if key not in self._read:
            self._read[key] = read()
        return self._read[key]

    @cached_property
    def matrix(self) -> dict[str, Any]:
        """matrix.json, which must be there and have every task in its last row."""
        file = self.paths.matrix_file
        saved = read_record(file, Matrix) if file.is_file() else None
        if saved is None or saved["metrics"]["last"] is None:
            raise RunDirError(
                f"{self.paths.root} holds an unfinished run; finish it first: "
                f"undrift run {self.paths.config_file} --out {self.paths.root}"
            )
        return saved

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json, which must name the tasks of the matrix, or none."""
        file = self.paths.manifest_file
        manifest = read_record(file, Manifest)
        recorded = [task["name"] for task in manifest.get("protocol", {}).get("tasks", ())]
        if recorded not in ([], self.tasks):
            raise damaged(file, f"protocol.tasks: expected those of {self.paths.matrix_file}")
        return manifest

    @property
    def tasks(self) -> list[str]:
        """The tasks' names in the order of learning."""
        return self.matrix["tasks"]

    @property
    def scorers(self) -> list[str]:
        """The tasks' scorers; none where an older undrift has not recorded them."""
        recorded = self.manifest.get("protocol", {}).get("tasks", ())
        return [task["scorer"] for task in recorded]

    @property
    def task_costs(self) -> Sequence[Mapping[str, Any]]:
        """What the manifest says of the cost of each task."""
        return self.manifest.get("budget", ())

    @cached_property
    def last_stage(self) -> int:
        """How many trainings had been done when the questions were asked for the last time."""
        stages = self.paths.stages()
        if not stages:
            raise RunDirError(f"{self.paths.root} holds no predictions (eval/ is empty)")
        return int(stages[-1].name.removeprefix("after-"))

    def asked(self, after: int, on: int) -> bool:
        """Tell whether a task was asked after so many trainings."""
        return self.paths.predictions(after, on).is_file()

    def answers(self, after: int, on: int) -> Lines:
        """Read the answers to task `on` after so many trainings, a line an example."""
        file = self.paths.predictions(after, on)
        return self._once(("answers", after, on), lambda: read_answers(file))

    def judged(self, after: int, on: int) -> Sequence[tuple[Line, Rules]]:
        """Judge the same answers by content and by form; the task's scorer must be known."""
        scorer, lines = self.scorers[on - 1], self.answers(after, on)
        return self._once(
            ("judged", after, on), lambda: [(line, rules_of(scorer, line)) for line in lines]
        )

    @cached_property
    def styles(self) -> dict[int, AnswerStyle]:
        """How each task's right answers look, by its number; all stages keep the same ones."""
        found: dict[int, AnswerStyle] = {}
        for task in range(1, len(self.tasks) + 1):
            stages = (s for s in range(self.last_stage, -1, -1) if self.asked(s, task))
            if (stage := next(stages, None)) is not None:
                found[task] = AnswerStyle(line["answers"] for line in self.answers(stage, task))
        return found

    def identified(self, after: int, on: int) -> Mapping[str, Any]:
        """Read what the method told of a task's prompts, see `Method.facts`; empty if nothing."""
        file = self.paths.predictions(after, on).with_suffix(".json")
        return read_record(file, Identified) if file.is_file() else {}

    @cached_property
    def general(self) -> dict[str, Any] | None:
        """general.json, if general ability was measured before and after."""
        return general_of(self.paths)

    @cached_property
    def stream(self) -> dict[str, Any] | None:
        """stream.json, if the run has learned a stream without boundaries."""
        file = self.paths.root / "stream.json"
        return read_record(file, Stream) if file.is_file() else None

    def diagnosis(self, part: str) -> dict[str, Any] | None:
        """Read what `undrift diagnose` has found: routes, experts, causes or reroute; or None."""
        file = self.paths.root / "diagnose" / f"{part}.json"
        return read_record(file, PARTS[part]) if file.is_file() else None


@dataclass(frozen=True)
class Results:
    """The numbers of one run, accuracies in percent, None where nothing was measured.

    Args:
        files: Where they are from.
        method: Its name as on the command line ("same", "same-paper").
        protocol: What the run must share with another for the two to be comparable.
        tasks: Names in the order of learning.
        zero_shot: The untouched model's score on each task.
        matrix: Row t: the scores after training task t. One row if trained once or never.
        metrics: By the names in `undrift.scoring.FORMULAS`, and GENERAL where it was measured.
        case_only: The percentage of the final errors that are letter case only.
        ends: By the names in RULES: the score of each task at the end.
        facts: All that decides the numbers, see the function `facts`.
        made_with: Code, versions and machine.
        cost: What the method costs, see `undrift.rundir.study_results`; empty if not known.
        budget: Which cost `--match-budget` has made equal to that of finetune, or "none".
        trained: Whether anything was trained; what was not has no noise of seeds.
    """

    files: RunFiles = field(repr=False, compare=False)
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
    def folder(self) -> Path:
        """The run's folder."""
        return self.files.paths.root

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.protocol["seed"]

    @property
    def in_turn(self) -> bool:
        """Whether every task has a row of the matrix; else it was trained once, or never."""
        return len(self.matrix) == len(self.tasks)

    @property
    def is_chain(self) -> bool:
        """Whether these are adapters that `undrift learn` has left, one after another."""
        return bool(self.files.stage_names)

    @property
    def may_drift(self) -> bool:
        """Whether it has learned one task after another."""
        return self.trained and len(self.tasks) > 1 and self.in_turn

    @property
    def last(self) -> Row:
        """The score of each task at the end."""
        return self.matrix[-1]

    @property
    def learned(self) -> Row:
        """The score of each task when it had just been learned, see `known_from`."""
        if not self.in_turn:
            return [None] * len(self.tasks)
        stages = map(self.known_from, range(1, len(self.tasks) + 1))
        return [self.matrix[stage - 1][index] for index, stage in enumerate(stages)]

    def known_from(self, task: int) -> int:
        """Return after how many tasks a task was asked first of all since it was learned.

        That is when it had just been learned, but in a chain of adapters whose first ones are gone.
        """
        since = range(task, len(self.matrix) + 1)
        return next((s for s in since if self.matrix[s - 1][task - 1] is not None), task)

    @property
    def effects(self) -> list[Row]:
        """What learning each task did to the others, in points: row t, column i, counted from 0.

        A[t][i] - A[t-1][i]; None unless task i was learned before task t, and where not measured.
        """
        A, numbers = self._by_task, range(len(self.tasks))
        return [[_less(A[t][i], A[t - 1][i]) if i < t else None for i in numbers] for t in numbers]

    @property
    def forward(self) -> Row:
        """What the tasks before it did for each task: A[i-1][i] - A[0][i], points; first None.

        What the model could do before it learned the task, above the untouched model.
        """
        before = [self._by_task[i - 1][i] for i in range(1, len(self.tasks))]
        return [None, *map(_less, before, self.zero_shot[1:])]

    @property
    def identified(self) -> Row:
        """The percentage of each task's prompts that the method took for that task, at the end.

        None where the method does not look for tasks.
        """
        return self._told("identified")

    @property
    def left_to_the_base(self) -> Row:
        """The percentage of each task's prompts that were near no task, at the end.

        None where the method gives every prompt to some task.
        """
        return self._told("base")

    def _told(self, fact: str) -> Row:
        last = len(self.tasks)
        return [self.files.identified(last, task).get(fact) for task in range(1, last + 1)]

    @property
    def general(self) -> str:
        """What became of general ability, in words; empty where it was not measured."""
        if (kept := self.files.general) is None:
            return ""
        after = kept["after"]
        parts = [f"{name} {was:.4g} → {after[name]:.4g}" for name, was in kept["before"].items()]
        lost = "" if kept["loss"] is None else f"; {kept['loss']:z.1f} % lost"
        return f"general ability, of the base and after the last task: {', '.join(parts)}{lost}"

    @property
    def _by_task(self) -> Sequence[Row]:
        none: Row = [None] * len(self.tasks)
        return self.matrix if self.in_turn else [none] * len(self.tasks)

    def end(self, rule: str) -> tuple[float | None, int]:
        """Average a rule's scores at the end over the tasks that have one.

        Args:
            rule: A key of RULES.

        Returns:
            The mean, None if no task has such a score; and how many tasks have.
        """
        known = [score for score in self.ends.get(rule, ()) if score is not None]
        return known_mean(known), len(known)


def results_of(files: RunFiles) -> Results:
    """Read a finished run.

    Args:
        files: Its files.

    Returns:
        Its numbers.

    Raises:
        RunDirError: If it is unfinished, or a file lacks something.
    """
    saved, manifest, tasks = files.matrix, files.manifest, list(files.tasks)
    after = files.last_stage
    last = {
        on: files.answers(after, on) for on in range(1, len(tasks) + 1) if files.asked(after, on)
    }
    lines = [last.get(on, []) for on in range(1, len(tasks) + 1)]
    judged = [row for task in lines for row in task if row["strict"] is not None]  # no captions
    general = {} if files.general is None else {GENERAL: files.general["loss"]}
    return Results(
        files=files,
        method=manifest["method"],
        protocol={key: manifest[key] for key in PROTOCOL},
        tasks=tasks,
        zero_shot=_padded(saved["zero_shot"] or [], len(tasks)),
        matrix=[_padded(row, len(tasks)) for row in saved["matrix"]],
        metrics={**saved["metrics"], **general},
        case_only=share_case_only(Score(row["strict"], row["caseless"]) for row in judged),
        ends=_ends(lines, files.scorers or [""] * len(tasks)),
        facts=facts(manifest),
        made_with=made_with(manifest),
        cost=cost(manifest) or {},
        budget=manifest.get("match_budget", "none"),
        trained=after > 0,
    )


def labels(runs: Sequence[Results]) -> list[str]:
    """Name runs by their method, or where that is not enough, by method and folder.

    A chain of adapters is called as the folder of its last one.
    """
    called = [run.folder.resolve().name if run.is_chain else run.method for run in runs]
    folders = Counter((name, run.folder.name) for name, run in zip(called, runs, strict=True))
    names = []
    for name, run in zip(called, runs, strict=True):
        folder = run.folder if folders[name, run.folder.name] > 1 else run.folder.name
        names.append(name if called.count(name) == 1 else f"{name} ({folder})")
    return names


def known_mean(values: Iterable[float | None]) -> float | None:
    """Average what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _padded(row: Sequence[float | None], length: int) -> Row:
    return [*row, *[None] * (length - len(row))]


def _ends(lines: Sequence[Lines], scorers: Sequence[str]) -> dict[str, Row]:
    """Average each task's lines by every rule that they keep."""
    ends: dict[str, Row] = {
        rule: [mean_score(task, rule) if task else None for task in lines]
        for rule in RULES
        if rule != "mif"
    }
    ends["mif"] = [_mif(task, name) for task, name in zip(lines, scorers, strict=True)]
    return ends


def _mif(lines: Lines, scorer: str) -> float | None:
    rule = KINDS[TASKS[scorer].kind].mif if scorer in TASKS else None
    if rule is None or not lines:
        return None
    return 100 * fmean(rule(row["prediction"], row["answers"]) for row in lines)


# ------------------------------------------------------------ what decides the numbers


def facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Flatten what decides the numbers, as far as it was recorded.

    Args:
        manifest: The content of manifest.json.

    Returns:
        Values as text by dotted keys: `seed`, `weights.fingerprint`, `scoring`,
        `training.global_batch`, `task.digits.scorer`, `method.rank` ... The prompt template is
        there as its hash.
    """
    found = {key: words(manifest[key]) for key in _WHOLE if key in manifest}
    for part, prefix in _PARTS.items():
        for key, value in _flat(manifest.get(part, {}), prefix.removesuffix(".")):
            found[key] = value[:SHORT] if key.endswith("fingerprint") else value
    if "prompt" in found:
        found["prompt_hash"] = short_hash(found.pop("prompt"))
    rate = found.pop(f"{OPTION}learning_rate", None)
    if rate is not None:
        found[RATE] = rate
    return {key: value for key, value in found.items() if key not in _LEFT_OUT}


def made_with(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Flatten what should not decide the numbers and may: code, versions, machine."""
    return dict(_flat({key: manifest[key] for key in _MACHINE if key in manifest}))


def differences(sides: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """List the keys in which runs differ.

    Args:
        sides: The facts of each run.

    Returns:
        The value of each by key, such as `training.global_batch`. A method's option is only
        compared between the runs whose methods have it, and how training was done between those
        that were trained.
    """
    keys = dict.fromkeys(key for side in sides for key in side)
    found: dict[str, list[str]] = {}
    for key in keys:
        values = [side.get(key, NOT_RECORDED) for side in sides]
        no_matter = (NOT_TRAINED, NOT_RECORDED) if key.startswith(OPTION) else (NOT_TRAINED,)
        compared = [value for value in values if value not in no_matter]
        if len(set(compared)) > 1:
            found[key] = values
    return found


def untrained(facts: Mapping[str, str]) -> dict[str, str]:
    """Return the facts of a run that has trained nothing: seed, options and training say so."""
    moot = (SEED, OPTION, RATE.partition(".")[0])
    return {key: NOT_TRAINED if key.startswith(moot) else v for key, v in facts.items()}


def words(value: Any) -> str:
    """Write a value of a manifest as text."""
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return "none" if value is None else str(value)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Walk through mappings; a list of named things counts as a mapping by their names."""
    if prefix == "tasks":
        prefix, value = "task", {task["name"]: task for task in value}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    elif not prefix.endswith(".name"):
        yield prefix, words(value)
