"""`undrift verify`: whether the numbers of a run's folder follow from the files in it.

Nothing is trained and nothing is asked again. Scores are computed from the kept answers, cells
from the scores, metrics from the cells; adapters are read; digests are compared; records are held
against each other, and rows and pictures against the data, where it is at hand. What cannot be
checked is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from undrift.data.benchmarks import DRAWN
from undrift.data.benchmarks.folder import OwnTask
from undrift.data.stream import STREAM
from undrift.data.types import Benchmark, Task
from undrift.errors import UndriftError
from undrift.methods.shared.budget import state_bytes
from undrift.registry import METHODS
from undrift.run.adapters import lesson_of, origin_of
from undrift.run.config import RunConfig, load_yaml, spelled_out, validated
from undrift.run.folder_check import Check, Question, Verdict
from undrift.run.general_ability import (
    EXACT,
    EXAMPLES,
    Stage,
    general_loss,
    prompts_file,
    share_alike,
)
from undrift.run.input_changes import ADAPTER, splits_of
from undrift.run.learn import AFTER, BEFORE
from undrift.run.learned_tasks import examples_digest, find_again, relocated
from undrift.run.load_tasks import cut, read_benchmark
from undrift.run.progress import Progress
from undrift.run.remember import NONE, folder_given
from undrift.run.stream import spaced_steps, stream_steps
from undrift.run.task_loop import cells_to_measure
from undrift.run.trainer import JOINT
from undrift.rundir import RunDir, read_answers
from undrift.rundir.paths import LearnDir
from undrift.rundir.records import General, Identified, Matrix, Result, Stream
from undrift.scoring import mean_score, metrics
from undrift.scoring.over_time import over_time

_NEVER = (
    "whether the adapters give these answers (undrift eval asks them again), what training did, "
    "seconds, tokens, memory and counts of parameters"
)
Row = list[float | None]


def verify(
    folder: Path,
    *,
    data: Path | None = None,
    backbone: str | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Hold the files of a run, or of one more task, against each other.

    Args:
        folder: What `undrift run` or `undrift learn` has written.
        data: The benchmark's folder; where the adapters' records say by itself.
        backbone: Where the base is, to be compared as well.
        progress: Told about slow parts.

    Returns:
        What matches, what does not, and what could not be checked.

    Raises:
        RunDirError: If the folder is neither.
    """
    learn = (folder / LearnDir.config_name).is_file()
    files = LearnDir(folder) if learn else RunDir.existing(folder)
    kind = _OfLearn if isinstance(files, LearnDir) else _OfRun
    check = kind(files, data, backbone, progress or Progress())
    check.sums()
    check.all()
    check.strays()
    check.verdict.unchecked.append(_NEVER)
    return check.verdict


def _answers_there(check: Check) -> set[str]:
    """Name all answers that are there, where nothing says which of them have to be."""
    return {
        check.place(file) for top in ("eval", "stream") for file in (check.root / top).rglob("*")
    }


class _OfRun(Check):
    """A folder of `undrift run`."""

    tasks: Sequence[str] = ()
    stages: Sequence[str] = ()
    cells: Mapping[int, Sequence[int]] = {}
    stream_steps = 0
    points: Sequence[int] = ()  # of a stream, but for its end

    @property
    def finished(self) -> bool:
        return bool(self._matrix) and self._matrix["metrics"]["last"] is not None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        file = self.files.matrix_file
        self._matrix = (self.record(file, Matrix) or {}) if file.is_file() else {}

    def expected(self) -> set[str]:
        if not self.cells:
            return _answers_there(self)
        cells = [self.files.predictions(t, i) for t, row in self.cells.items() for i in row]
        cells += [self.files.point(s, i) for s in self.points for i, _ in enumerate(self.tasks, 1)]
        return {self.place(c) for cell in cells for c in (cell, cell.with_suffix(".json"))}

    def tasks_there(self) -> set[str]:
        named = enumerate(self.stages, 1)
        return {self.files.task(index, name).name for index, name in named}

    def all(self) -> None:
        read = partial(load_yaml, self.files.config_file)
        content = self.tried(read)
        config = self.tried(lambda: validated(RunConfig, spelled_out(content or {})))
        asked = self.manifest.get("protocol", {}).get("tasks", ())
        self.tasks = [task["name"] for task in asked] or self._matrix.get("tasks", [])
        if config is None or not self.tasks:
            if not self.tasks:
                self.unchecked("anything else: neither manifest nor matrix names the tasks")
            return
        schedule = self.tried(lambda: METHODS.load(config.method.name).schedule)
        if schedule is None:
            return
        self.stages = {"none": [], "joint": [JOINT]}.get(schedule, self.tasks)
        if config.is_stream:
            self.stages = [STREAM]
            counts = [task.get("train") or 0 for task in asked]
            self.stream_steps = stream_steps(config.train, counts)
            self.points = spaced_steps(self.stream_steps, config.stream.points)[:-1]
        self.cells = cells_to_measure(config.profile, len(self.tasks), len(self.stages))
        self.settings(config)
        done = [i for i, name in enumerate(self.stages, 1) if self._there(i, name)]
        origins = [self._trained(config, index) for index in done]
        tasks = self._data(config, origins)
        self._measured(config, asked, tasks)
        self._general()
        self.base(config)

    def _there(self, index: int, name: str) -> bool:
        """Tell whether a training has left an adapter; name what its mark promises."""
        adapter, marked = self.files.adapter(index, name), self.files.is_done(index, name)
        if self.finished and not marked:
            self.wrong(self.files.task(index, name), "has no DONE, and the matrix is finished")
        promised = marked or self.finished
        for path in (adapter, self.files.train_log(index, name)):
            if promised and not path.exists():
                self.wrong(path, "is missing, and the task is marked as done")
        if promised and not self.files.matrix_file.is_file() and index == 1:
            self.wrong(self.files.matrix_file, "is missing, and tasks are marked as done")
        if not promised:
            self.unchecked(f"the task {name}, which is not finished")
        return adapter.is_dir()

    def _trained(self, config: RunConfig, index: int) -> dict[str, Any]:
        name = self.stages[index - 1]
        learned = self.tasks[:index] if len(self.stages) > 1 else self.tasks
        folder = self.files.adapter(index, name)
        origin = self.adapter(folder, index, learned, config)
        costs = self.manifest.get("budget", ())
        cost = costs[index - 1] if index <= len(costs) else None
        if cost is None and self.manifest.get("versions"):
            self.wrong(self.files.manifest_file, f"says nothing of the budget of {name}")
        if cost is not None:
            where = self.files.manifest_file
            self.same(where, f"the task of budget {index}", cost.get("task", name), name, "it is")
            size = state_bytes(folder)
            self.same(where, f"state_bytes of {name}", cost["state_bytes"], size, "its files have")
        limit = config.train.max_steps
        steps = None if cost is None else cost.get("steps")
        if config.is_stream:
            limit = self.stream_steps
        if limit is not None and steps is not None:
            due = limit * (len(self.tasks) if name == JOINT else 1)
            self.same(self.files.manifest_file, f"steps of {name}", steps, due, "run.yaml says")
        if self.files.train_log(index, name).is_file():
            self.log(self.files.train_log(index, name), steps, config.train.log_steps)
        return origin

    def _data(self, config: RunConfig, origins: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
        """Read the benchmark again, where it is at hand, and compare it with what was used."""
        if origins:
            said = f"{len(origins)} adapters: {self.tensors} tensors whole and finite, records"
            self.checked(said)
        notes = [note for origin in origins for note in origin.get("learned", ())]
        recorded = next((note["data"] for note in notes if note.get("data")), None)
        place = self.data or (Path(recorded) if recorded is not None else None)
        if config.benchmark in DRAWN:
            place = self.data
        elif place is None or not place.exists():
            self._no_data("give --data")
            return {}
        try:
            made = self._read(config, place)
            tasks = [cut(t, config.profile, config.eval.split) for t in made.in_order(config.order)]
        except UndriftError as error:
            self._no_data(" ".join(str(error).split()))
            return {}
        if data := self.manifest.get("data"):
            where, why = self.files.manifest_file, "the data's is"
            self.same(where, "data.fingerprint", data["fingerprint"], made.fingerprint, why)
        self.same("matrix.json", "tasks", self.tasks, [task.name for task in tasks], "the data has")
        self._protocol(tasks)
        self.inputs(splits_of(tasks), folder_given(config.remember))
        by_name = {task.name: task for task in tasks}
        for note in notes:
            task = by_name.get(note["name"])
            if task is not None:
                now = examples_digest(task.test)
                self.same(
                    "tasks", f"the digest of {task.name}", note["digest"], now, "the data's is"
                )
        return by_name

    def _read(self, config: RunConfig, place: Path | None) -> Benchmark:
        given = config.model_copy(update={"data": place})
        return read_benchmark(given, self.progress, self.backbone or config.base)[0]

    def _no_data(self, why: str) -> None:
        many = "task's" if len(self.tasks) == 1 else "tasks'"
        self.unchecked(f"rows and pictures of {len(self.tasks)} {many} data: not at hand ({why})")

    def _protocol(self, tasks: Sequence[Task]) -> None:
        asked = {task["name"]: task for task in self.manifest.get("protocol", {}).get("tasks", ())}
        for task in tasks:
            there = asked.get(task.name, {})
            for key, value in (
                ("scorer", task.scorer),
                ("train", len(task.train)),
                ("test", len(task.test)),
                ("max_new_tokens", task.max_new_tokens),
            ):
                if key in there:
                    what = f"{key} of {task.name}"
                    self.same(self.files.manifest_file, what, there[key], value, "the data says")

    def _measured(
        self, config: RunConfig, asked: Iterable[Mapping[str, Any]], tasks: Mapping[str, Task]
    ) -> None:
        """Compute every cell, the matrix and the metrics from the answers."""
        recorded = {task["name"]: task for task in asked}
        questions = [
            Question(
                name,
                recorded[name]["scorer"] if name in recorded else None,
                recorded.get(name, {}).get("test"),
                self.ids_of(name),
                {e.id: e for e in tasks[name].test} if name in tasks else None,
            )
            for name in self.tasks
        ]
        zero: Row = [None] * len(self.tasks)
        matrix: list[Row] = []
        read = 0
        for after, row in self.cells.items():
            scores: Row = [None] * len(self.tasks)
            for on in row:
                file = self.files.predictions(after, on)
                if file.is_file():
                    scores[on - 1] = self.answers(file, questions[on - 1])
                    read += 1
                elif self.finished or self._marked(after):
                    self.wrong(file, "is missing, and its row of the matrix is finished")
                if file.with_suffix(".json").is_file():
                    self.record(file.with_suffix(".json"), Identified)
            if after == 0:
                zero = scores
            else:
                matrix.append(scores)
        if config.is_stream:
            read += self._against_time(questions, matrix[-1])
        self.told(read)
        if self._matrix:
            self._compare(zero, matrix or [zero])

    def _against_time(self, questions: Sequence[Question], last: Row) -> int:
        """Compute a stream's scores against time from the answers; return how many files it has."""
        file, read, rows = self.files.stream_file, 0, []
        for step in self.points:
            row: Row = [None] * len(self.tasks)
            for on, question in enumerate(questions, 1):
                if (answers := self.files.point(step, on)).is_file():
                    row[on - 1], read = self.answers(answers, question), read + 1
            rows.append(row)
        there = self.record(file, Stream) if file.is_file() else None
        if there is None:
            if self.finished and not file.is_file():
                self.wrong(file, "is missing, and the run is finished")
            return read
        rows.append(last)
        self.same(file, "tasks", there["tasks"], list(self.tasks), "the manifest says")
        steps = [each["step"] for each in there["points"][:-1]]
        self.same(file, "the steps of its points", steps, list(self.points), "run.yaml says")
        for point, row in zip(there["points"], rows, strict=False):
            for task, was, now in zip(self.tasks, point["scores"], row, strict=False):
                self.same(file, f"step {point['step']}, {task}", was, now, "the answers give")
        for key, now in over_time(rows).items():
            self.same(file, key, there["metrics"].get(key), now, "the answers give")
        self.checked(f"{len(rows)} points of the stream, and its metrics")
        return read

    def _general(self) -> None:
        """Compute what became of general ability from the answers, where it was measured."""
        file = self.files.general_file
        if not file.is_file() or (kept := self.record(file, General)) is None:
            return
        stages: tuple[tuple[Stage, dict[str, float]], ...] = (
            ("before", kept["before"]),
            ("after", kept.get("after") or {}),
        )
        for stage, parts in stages:
            answers = self.files.general_answers / f"{stage}.jsonl"
            if EXAMPLES in parts and answers.is_file():
                rows = self.tried(partial(read_answers, answers)) or []
                now = mean_score(rows, "strict")
                self.same(file, f"{stage}.{EXAMPLES}", parts[EXAMPLES], now, "the answers give")
            elif EXAMPLES in parts:
                self.wrong(answers, f"is missing, and {file.name} says what it gives")
            self._prompts(file, stage, parts.get(EXACT))
        if kept.get("after"):
            loss = general_loss(kept["before"], kept["after"])
            self.same(file, "loss", kept.get("loss"), loss, "its parts give")
            self.checked("general ability, before and after")

    def _prompts(self, file: Path, stage: Stage, noted: float | None) -> None:
        """Compute how many prompts are answered as the base answered them."""
        if noted is None:
            return
        answers = [prompts_file(self.files, each) for each in ("before", stage)]
        if lost := [each for each in answers if not each.is_file()]:
            self.wrong(lost[0], f"is missing, and {file.name} says what it gives")
            return
        own, rows = (self.tried(partial(read_answers, each)) or [] for each in answers)
        if own and len(own) == len(rows):
            now = share_alike(own, rows)
            self.same(file, f"{stage}.{EXACT}", noted, now, "the answers give")
        else:
            self.wrong(answers[1], f"has {len(rows)} answers, and {answers[0].name} {len(own)}")

    def _marked(self, after: int) -> bool:
        index = max(after, 1)
        return index <= len(self.stages) and self.files.is_done(index, self.stages[index - 1])

    def _compare(self, zero: Row, matrix: list[Row]) -> None:
        file, there = self.files.matrix_file, self._matrix
        self.same(file, "tasks", there["tasks"], list(self.tasks), "the manifest says")
        if self.finished and len(there["matrix"]) != len(matrix):
            self.wrong(file, f"has {len(there['matrix'])} rows, and the run {len(matrix)}")
        rows = [("after 0", there["zero_shot"] or [], zero)]
        rows += [
            (f"after {t}", row, now)
            for t, (row, now) in enumerate(zip(there["matrix"], matrix, strict=False), 1)
        ]
        for name, row, now in rows:
            padded = [*row, *[None] * (len(now) - len(row))]
            for task, was, value in zip(self.tasks, padded, now, strict=False):
                self.same(file, f"{name}, {task}", was, value, "the answers give")
        if self.finished:
            kept = [[*row, *[None] * (len(self.tasks) - len(row))] for row in there["matrix"]]
            for computed, source in ((matrix, "answers"), (kept, "matrix")):
                first = zero if source == "answers" else there["zero_shot"]
                now = self.tried(partial(metrics, computed, first)) or {}
                for key in sorted({*now, *there["metrics"]}):
                    was = there["metrics"].get(key)
                    self.same(file, key, was, now.get(key), f"the {source} give")
        else:
            self.unchecked("the metrics: the run is not finished")
        count = sum(value is not None for row in (zero, *matrix) for value in row)
        self.checked(f"{count} cells of the matrix, and its metrics")


class _OfLearn(Check):
    """A folder of `undrift learn`."""

    files: LearnDir
    asked: Sequence[Mapping[str, Any]] = ()
    guards: Sequence[Mapping[str, Any]] = ()

    @property
    def finished(self) -> bool:
        return self.files.result_file.is_file()

    def expected(self) -> set[str]:
        if not self.asked:
            return _answers_there(self)
        return {self.place(file) for when in (BEFORE, AFTER) for file in self._answers(when)}

    def _answers(self, when: str) -> list[Path]:
        """Name the files of answers, those of the tasks and then those of the guards."""
        tasks = enumerate((note["name"] for note in self.asked), 1)
        return [
            *(self.files.answers(when, number, name) for number, name in tasks),
            *(self.files.guard_answers(when, note["name"]) for note in self.guards),
        ]

    def all(self) -> None:
        content = self.tried(partial(lesson_of, self.files))
        if content is None:
            return
        config = self.tried(lambda: validated(RunConfig, spelled_out(content["run"])))
        folder = self.root / "adapter"
        if config is None:
            return
        self.settings(config.model_copy(update={"benchmark": "folder"}))
        origin = self.tried(partial(origin_of, folder)) or {}
        notes: Sequence[Mapping[str, Any]] = origin.get("learned", ())
        if not notes:
            what = self.wrong if self.finished else lambda _, said: self.unchecked(said)
            what(folder, "there is no adapter that says what it has learned")
            return
        own = content["task"]["name"]
        self.same(
            folder / "undrift.json", "its last task", notes[-1]["name"], own, "learn.yaml says"
        )
        self.adapter(folder, len(notes), [note["name"] for note in notes], config)
        self.checked(f"the adapter: {self.tensors} tensors whole and finite, records")
        self.log(self.root / "train.jsonl", None, config.train.log_steps)
        without = set(content.get("without", ()))
        self.asked = [*(n for n in notes[:-1] if n["name"] not in without), notes[-1]]
        self.guards = content.get("guards", ())
        if self.data is not None and not any("benchmark" in note for note in self.asked):
            self.unchecked(f"{self.data}: --data is for a benchmark, of which no task here is")
        tasks = {note["name"]: self._again(note) for note in (*self.asked, *self.guards)}
        self._inputs(content, notes[-1], tasks)
        self._measured(tasks)
        self.base(config)

    def _again(self, note: Mapping[str, Any]) -> Task | None:
        """Read the questions of a task where its record says that they are."""
        if self.data is not None and "benchmark" in note:
            note = {**note, "data": str(self.data)}
        try:
            beside = self.root / "adapter"
            (note,) = relocated([note], beside)
            found = find_again([note], self.progress, self.backbone, adapter=beside)
            ((task, changed),) = found
        except UndriftError as error:
            said = " ".join(str(error).split()).partition("; put its data back")[0]
            self.unchecked(f"rows and pictures of {note['name']}: {said}")
            return None
        if changed and self.ids_of(note["name"]) is None:
            self.wrong("adapter", f"{note['name']} had other questions when it was learned")
        return task

    def _inputs(
        self, content: Mapping[str, Any], note: Mapping[str, Any], tasks: Mapping[str, Task | None]
    ) -> None:
        splits = {f"{name}, test": task.test for name, task in tasks.items() if task is not None}
        start = Path(content["from"])
        train = Path(content.get("train", {}).get("file", ""))
        own = OwnTask(
            note["name"],
            train,
            Path(note["images"]),
            test=Path(note["test"]) if note.get("test") else None,
            scorer=note["scorer"],
            max_new_tokens=note["max_new_tokens"],
            booleans=note.get("booleans", ""),
        )
        share = {"held_out": note.get("held_out") or 0.1, "seed": note.get("seed") or 0}
        if "held_out" in note:
            share["held_out"] = note["held_out"]
        try:
            if note["skip_bad"]:
                self.unchecked(f"the rows that {note['name']} was learned from, some left out")
            else:
                splits[f"{note['name']}, train"] = own.source().task(**share).train
        except UndriftError as error:
            said = " ".join(str(error).split())
            self.unchecked(f"the rows that {note['name']} was learned from: {said}")
        remembered = folder_given(content["run"].get("remember", NONE))
        self.inputs(splits, {ADAPTER: start, **remembered})

    def _measured(self, tasks: Mapping[str, Task | None]) -> None:
        """Compute the scores before and after from the answers, and compare them."""
        protocol = self.manifest.get("protocol", {}).get("tasks", ())
        scorers = {task["name"]: task["scorer"] for task in protocol}
        result = self.record(self.files.result_file, Result) if self.finished else None
        rows = {
            row["task"]: row for kind in ("tasks", "guards") for row in (result or {}).get(kind, ())
        }
        file, read = self.files.result_file, 0
        kept = zip(self._answers(BEFORE), self._answers(AFTER), strict=True)
        for note, both in zip((*self.asked, *self.guards), kept, strict=True):
            name, task = note["name"], tasks[note["name"]]
            scorer = note.get("scorer") or (task.scorer if task else None)
            if name in scorers:
                where, why = self.files.manifest_file, "the adapter's record says"
                self.same(where, f"scorer of {name}", scorers[name], scorer, why)
            ids = self.ids_of(name)
            examples = {e.id: e for e in task.test} if task else None
            question = Question(name, scorer, len(ids) if ids else None, ids, examples)
            row = rows.get(name)
            if row is None and result is not None:
                self.wrong(file, f"says nothing of {name}")
            scores: dict[str, float | None] = {}
            for when, answers in zip((BEFORE, AFTER), both, strict=True):
                if answers.is_file():
                    read += 1
                    scores[when] = self.answers(answers, question)
                    if row is not None:
                        why = "the answers give"
                        self.same(file, f"{when} of {name}", row[when], scores[when], why)
                elif self.finished:
                    self.wrong(answers, "is missing, and the result is written")
            if row is not None:
                self.same(
                    file, f"examples of {name}", row["examples"], len(question.said), "it has"
                )
                new = name == self.asked[-1]["name"]
                self.same(file, f"new of {name}", row.get("new", new), new, "it should be")
                drop = 0.0 if new else max(0.0, row["before"] - row["after"])
                self.same(file, f"drop of {name}", row.get("drop", drop), drop, "its scores give")
        for name in rows.keys() - tasks.keys():
            self.wrong(file, f"{name} was not asked")
        self.told(read)
        if result is None:
            self.unchecked("the result: not all is done yet")
        else:
            self.checked(f"{len(rows)} tasks and guards of result.json")
