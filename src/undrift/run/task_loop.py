"""The run: learn one task after another, and after each ask about all that were seen.

For every task without its DONE mark: the state of the task before is restored, the task is
trained (from its latest snapshot if it was cut off), adapter and state are saved, the cells of its
row are measured, the matrix is written, and the task is marked. Every step looks at the files
first, so the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from undrift.data.types import Benchmark, Task
from undrift.methods.shared.budget import measured, rank_to_meet
from undrift.methods.shared.model_card import write_card
from undrift.run.adapters import note_origin
from undrift.run.answer import measure_cell
from undrift.run.backbone import Backbone, outline_for, refuse_pictures
from undrift.run.config import MethodConfig, Profile, RunConfig
from undrift.run.general_ability import Stage, asked_of, cut_general, note
from undrift.run.input_changes import Inputs, splits_of
from undrift.run.learned_tasks import from_benchmark
from undrift.run.load_model import source, with_base_folder
from undrift.run.load_tasks import Skipped, check_answers, cut, note_skipped, read_benchmark
from undrift.run.manifest import manifest, note_resume
from undrift.run.plan import Size, TaskPlan, size_expected, size_of, tell_run
from undrift.run.progress import Progress
from undrift.run.ranks import alone_in
from undrift.run.remember import PROMPTS, begin_with, check_remember, folder_given
from undrift.run.report_to import Reporters, check_reporters
from undrift.run.session import (
    Session,
    keep_features,
    make_method,
    options_used,
    settings_begun,
)
from undrift.run.stopping import finishing_steps
from undrift.run.stream import PointWatch, StreamPlan, for_stream
from undrift.run.thumbnails import keep_pictures
from undrift.run.trainer import (
    JOINT,
    StepBar,
    diverging,
    teach,
    training_settings,
    training_work,
)
from undrift.run.training_cost import Meter
from undrift.run.watch_routes import ROUTES, RouteWatch, mention_unwatchable
from undrift.rundir import (
    RunDir,
    atomic_folder,
    read_record,
    write_json,
    write_lines,
)
from undrift.rundir.files import remove
from undrift.rundir.records import Manifest, Matrix
from undrift.scoring import metrics
from undrift.tuner.frozen import count_parameters

Row = list[float | None]


class Run:
    """One method on one benchmark, begun or resumed.

    Args:
        config: What to do.
        progress: What is told meanwhile.
        replace: Delete a run that is in the folder, and begin again.
        force: Go on although rows, pictures, weights or settings of the training have changed.
        backbone: A backbone that is loaded already, instead of `config.backbone`.
        benchmark: A benchmark that is loaded already, instead of `config.benchmark`.
        dry: Only look: nothing is written and no weights are read, so that `tell_plan` is all that
            can be asked for.

    Raises:
        ConfigError: If something about the configuration cannot be.
        RunDirError: If the folder holds another run, or what it was begun with has changed.
    """

    def __init__(
        self,
        config: RunConfig,
        progress: Progress | None = None,
        *,
        replace: bool = False,
        force: bool = False,
        backbone: Backbone | None = None,
        benchmark: Benchmark | None = None,
        dry: bool = False,
    ) -> None:
        self._backbone = backbone
        self._at = 0  # how many trainings the model in memory has had
        self._seconds: dict[str, float] = {}
        self._backbone_size = 0  # in parameters, before anything is attached
        with nullcontext() if dry else alone_in(config.folder):
            there = RunDir(config.folder)
            replace = replace or there.only_planned
            config = for_stream(with_base_folder(config, None if replace else there))
            self.config = config
            self.progress = progress or Progress()
            begun = {} if replace else settings_begun(there.manifest_file, config.method.name)
            self._matched: int | None = None  # the rank that was found when the run was begun
            if config.match_budget != "none":
                begun = dict(begun)
                self._matched = begun.pop("rank", None)
            self.method = make_method(config.method.name, config.method.options, begun)
            check_remember(config.remember, self.method)
            check_reporters(config.report_to)
            # told now, not after the drawing
            base = source(config.base) if backbone is None else None
            self.skipped: tuple[Skipped, ...] = ()
            if benchmark is None:
                benchmark, self.skipped = read_benchmark(
                    config, self.progress, backbone or config.base
                )
            self.benchmark = benchmark
            order = self.benchmark.in_order(config.order)
            self.tasks = [cut(task, config.profile, config.eval.split) for task in order]
            check_answers(self.tasks, config.eval.scoring, self.progress)
            general = self.benchmark.general
            if general is not None and self.method.must_be_told:
                text = "general ability is not measured: its questions are of no task, and "
                text += f"{self.method.name}, as it is set, has to be told one"
                self.progress.event("left out", text, what="general ability")
                general = None
            self.general = None if general is None else cut_general(general, config.profile)
            self.stream = StreamPlan.of(config, self.tasks) if config.is_stream else None
            self.stages = trainings(self.tasks, self.method.schedule)
            self._points: dict[int, list[int]] = {}  # who is asked inside a stream, by its steps
            if self.stream is not None:
                self.stages = [self.stream.stream.task]
                self._points = {step: self.stream.seen(step) for step in self.stream.points[:-1]}
            self.cells = cells_to_measure(config.profile, len(self.tasks), len(self.stages))
            self._text = config.text()
            if replace:
                read = (config.data, Path(config.base), *folder_given(config.remember).values())
                RunDir(config.folder).refuse_to_delete(*read)
            at = RunDir.looked_at(config.folder, self._text, replace=replace, force=force)
            begun = at.config_file.is_file() and not replace
            splits, folders = splits_of(self.tasks), folder_given(config.remember)
            if dry:
                if begun and not force:
                    Inputs(at, splits, base, folders, progress=self.progress, keep=False)
                return
            if not begun:
                self._load()  # before anything is written: what cannot be loaded leaves nothing
            self.files = RunDir.start(config.folder, self._text, replace=replace, force=force)
            self.inputs = Inputs(
                self.files, splits, base, folders, force=force, progress=self.progress
            )

    def tell_plan(self) -> dict[str, Any]:
        """Tell the plan without the weights of the base.

        Returns:
            The plan, for programs.

        Raises:
            ConfigError: If the base cannot be loaded, as far as can be told without its weights.
            DataError: If it reads text only, and there are pictures.
        """
        model, processor, each = outline_for(self.config)
        refuse_pictures(self.config.backbone, processor, self._pictures)
        self._match_budget(model)
        tasks = max(1, len(self.stages))
        return self._planned(size_expected(self.config, self.method, model, each, tasks))

    def go(self) -> dict[str, Any]:
        """Do what is not done yet.

        Returns:
            The content of matrix.json.

        Raises:
            TrainingDiverged: If a loss is not finite; what was finished before is kept.
            RunDirError: If another process works in the folder, or has put another run there.
        """
        with alone_in(self.files.root):
            RunDir.start(self.files.root, self._text)
            return self._go()

    # ------------------------------------------------------------ the parts of a run

    def _go(self) -> dict[str, Any]:
        if self._complete():
            self.inputs.check_base(self.config, self._backbone)
            if self.inputs.changes:  # which the manifest tells now
                self.files.note_sums(resumed=True)
            return read_record(self.files.matrix_file, Matrix)
        self.files.note_sums(resumed=True)
        session = self._prepare()
        self.progress.plan(
            sum(training_work(stage, self._settings(stage)) for stage in self.stages)
            + sum(len(self.tasks[i - 1].test) for row in self.cells.values() for i in row)
            + sum(len(self.tasks[i - 1].test) for asked in self._points.values() for i in asked)
            + 2 * len(asked_of(self.general))
        )
        self._note_general(session, "before")  # nothing is restored yet: it is the base
        zero_shot: Row = [None] * len(self.tasks)
        if 0 in self.cells:
            zero_shot = self._row(session, 0)
        matrix: list[Row] = []
        for index, stage in enumerate(self.stages, start=1):
            live = self.files.live(index, stage.name)
            with Reporters(self.config.report_to, live) as reporters:
                if not self.files.adapter(index, stage.name).is_dir():
                    self._restore(session, index - 1)
                    with finishing_steps():
                        self._train(session, index, stage, reporters)
                remove(self._snapshots(index, stage))
                matrix.append(self._row(session, index))
                self._write_card(index, stage, zero_shot, matrix)
                reporters.scores(self._named(matrix[-1]))
            if not self.files.is_done(index, stage.name):
                self._write_matrix(zero_shot, matrix, unfinished=True)
                self._write_stream(session, matrix[-1])
                self._write_seconds()
                self.files.note_sums()
                self.files.mark_done(index, stage.name)
        if self.general is not None:
            self._restore(session, len(self.stages))
            self._note_general(session, "after")
        return self._finish(zero_shot, matrix or [zero_shot])

    def _complete(self) -> bool:
        done = all(self.files.is_done(i, stage.name) for i, stage in enumerate(self.stages, 1))
        if not done or not self.files.matrix_file.is_file():
            return False
        return read_record(self.files.matrix_file, Matrix)["metrics"]["last"] is not None

    def _load(self) -> Backbone:
        """Return the backbone, loaded once, if it is of the kind that the data asks for."""
        if self._backbone is None:
            with self._timed("load"):
                self._backbone = Backbone.load_for(self.config)
            name, processor = self._backbone.name, self._backbone.processor
            refuse_pictures(name, processor, self._pictures)
        return self._backbone

    @property
    def _pictures(self) -> list[Path]:
        splits = [split for task in self.tasks for split in (task.train, task.test)]
        return [picture for split in splits for e in split for picture in e.images]

    def _planned(self, size: Size) -> dict[str, Any]:
        """Tell the plan."""
        config, method = self.config, self.method
        plans = [TaskPlan.of(config, method, each, self._settings(each)) for each in self.stages]
        return tell_run(self.progress, plans, config, size, len(self.tasks))

    def _prepare(self) -> Session:
        """Load the backbone, keep its image features, attach the method."""
        config = self.config
        backbone = self._load()
        with self._timed("features"):
            examples = [e for task in self.tasks for e in (*task.train, *task.test)]
            examples += asked_of(self.general)
            examples += self.benchmark.prompts if config.remember == PROMPTS else ()
            keep_features(config, backbone, examples, self.progress)
        self._match_budget(backbone.model)
        self._backbone_size = count_parameters(backbone.model)
        if self.stages and not self.files.adapter(1, self.stages[0].name).is_dir():
            place, prompts = self.files.remembered, self.benchmark.prompts
            begin_with(config, self.method, backbone, place, prompts, self.progress)
        session = Session.open(config, self.method, backbone, self.progress)
        self._planned(size_of(session.model, self._backbone_size))
        self._write_manifest(backbone)
        mention_unwatchable(config.watch_routes, session)
        return session

    def _match_budget(self, model: Any) -> None:
        """Give the method the rank that meets the budget; the adapters' notes name that rank."""
        kind = self.config.match_budget
        if kind == "none":
            return
        rank = self._matched or rank_to_meet(self.method, kind, model, len(self.stages))
        name, options = self.config.method.name, {**self.config.method.options, "rank": rank}
        self.method = make_method(name, options, asdict(self.method.config))
        method = MethodConfig(name=name, options=options)
        self.config = self.config.model_copy(update={"method": method})
        text = f"rank {rank} meets the {kind} budget"
        self.progress.event("matched", text, rank=rank, budget=kind)

    def _restore(self, session: Session, index: int) -> None:
        """Bring the model to where it was after so many trainings."""
        if self._at != index:
            folder = self.files.adapter(index, self.stages[index - 1].name)
            self.method.load_state(session.model, folder)
            self._at = index

    def _train(self, session: Session, index: int, stage: Task, reporters: Reporters) -> None:
        settings = self._settings(stage)
        place = f"task {index} of {len(self.stages)}"
        work = training_work(stage, settings)
        device = session.backbone.device if index == 1 else None  # the others take as long
        bar = StepBar(self.progress, f"{place}: learning {stage.name}", work, device)
        meter = Meter(self.method, session.backbone.device)
        earlier = dict(enumerate(self.tasks[: index - 1], 1))
        every = self.config.watch_routes
        routes = RouteWatch.where_due(session, earlier, every, meter.paused)
        callbacks: list[TrainerCallback] = [bar, meter, reporters]
        order = None
        if self.stream is not None:
            order = self.stream.stream.order
            ask = partial(self._point, session)
            aside = partial(self._aside, meter)
            callbacks.append(PointWatch(session, [*self._points], ask, aside, bar.go_on))
        with self._timed("train"), meter, diverging(f"{place} ({stage.name})", self.files.root):
            seed = self.config.seed
            snapshots = self._snapshots(index, stage)
            log = teach(session, stage, index, seed, settings, snapshots, callbacks, routes, order)
        last = log[-1] if log else {}
        write_lines(self.files.train_log(index, stage.name), log)
        with atomic_folder(self.files.adapter(index, stage.name)) as folder:
            self.method.save_state(session.model, folder)
            budget = measured(self.method, session.model, self._backbone_size, folder)
            self._note_budget(index, {"task": stage.name, **asdict(budget), **meter.effort()})
            learned = self.tasks[:index] if len(self.stages) > 1 else self.tasks
            sources = from_benchmark(self.config, learned)
            changes = self.inputs.changes
            note_origin(folder, self.config, self.method, session.backbone, index, sources, changes)
        self._at = index
        last = {key: value for key, value in last.items() if not key.startswith(ROUTES)}
        text = f"{place}: learned {stage.name} ({last.get('step')} steps, loss {last.get('loss')})"
        self.progress.event("trained", text, index=index, task=stage.name, **last)
        told = {"index": index, "task": stage.name, **asdict(budget)}
        self.progress.event("budget", f"{place}: {budget}", **told)

    def _row(self, session: Session, after: int) -> Row:
        """Measure what is not measured yet of one row."""
        row: Row = [None] * len(self.tasks)
        asked = {i: self.files.predictions(after, i) for i in self.cells[after]}
        for i in asked:
            task = self.tasks[i - 1]
            keep_pictures(self.files.pictures(i, task.name), task)
        fresh = not all(file.is_file() for file in asked.values())
        if fresh:
            self._restore(session, after)
        session.model.eval()
        when = "at the end" if self.stream is not None and after else f"after task {after}"
        with self._timed("eval"):
            for i, file in asked.items():
                task = self.tasks[i - 1]
                title = f"{when}: asking {task.name}"
                told = i if self.stream is None else None
                with self.method.predicting(session.model, task=told):
                    row[i - 1] = measure_cell(session, task, file, title, facts=True)
        if fresh:
            said = "  ".join(f"{name} {score:.1f}" for name, score in self._named(row).items())
            self.progress.event("measured", f"{when}: {said}", after=after, row=row)
        return row

    def _point(self, session: Session, step: int) -> list[float | None]:
        """Measure what is not measured yet of one point of a stream."""
        row: Row = [None] * len(self.tasks)
        files = {i: self.files.point(step, i) for i in self._points[step]}
        fresh = not all(file.is_file() for file in files.values())
        for i, file in files.items():
            title = f"at step {step}: asking {self.tasks[i - 1].name}"
            row[i - 1] = measure_cell(session, self.tasks[i - 1], file, title)
        if fresh:
            said = "  ".join(f"{name} {score:.1f}" for name, score in self._named(row).items())
            self.progress.event("point", f"at step {step}: {said}", step=step, row=row)
        return row

    def _note_general(self, session: Session, stage: Stage) -> None:
        """Measure what the model can do in general, where the benchmark asks for that."""
        if self.general is not None:
            with self._timed("eval"):
                content = note(session, self.general, self.files, stage)
            loss = content.get("loss")
            lost = "" if stage == "before" or loss is None else f"; {loss:.1f} % lost"
            parts = ", ".join(f"{name} {value:.4g}" for name, value in content[stage].items())
            text = f"general ability, {stage} learning: {parts}{lost}"
            self.progress.event("general", text, stage=stage, parts=content[stage], loss=loss)

    def _named(self, row: Row) -> dict[str, float]:
        """Return the scores of a row by task, those that were measured."""
        named = zip(self.tasks, row, strict=True)
        return {task.name: score for task, score in named if score is not None}

    def _snapshots(self, index: int, stage: Task) -> Path:
        return self.files.task(index, stage.name) / "training"

    def _settings(self, stage: Task) -> Any:
        if self.stream is not None:
            return self.stream.settings(self.method)
        return training_settings(self.config, self.method, stage, len(self.tasks))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def _aside(self, meter: Meter) -> Iterator[None]:
        """Count what is done within a training as asking, and not as the training's time."""
        start = time.perf_counter()
        with meter.paused(), self._timed("eval"):
            yield
        self._seconds["train"] = self._seconds.get("train", 0.0) - (time.perf_counter() - start)

    # ------------------------------------------------------------ files

    def _write_matrix(
        self, zero_shot: Row, matrix: Sequence[Row], *, unfinished: bool = False
    ) -> dict[str, Any]:
        """Write what is known; metrics say that all is done, the last task's mark included."""
        numbers = metrics(matrix, zero_shot)
        content = {
            "tasks": [task.name for task in self.tasks],
            "zero_shot": zero_shot,
            "matrix": matrix,
            "metrics": dict.fromkeys(numbers) if unfinished else numbers,
        }
        write_json(self.files.matrix_file, content)
        return content

    def _write_stream(self, session: Session, last: Row) -> None:
        """Write what the tasks of a stream were worth against time."""
        if self.stream is not None:
            rows = [*(self._point(session, step) for step in self._points), last]
            write_json(self.files.stream_file, self.stream.record(self.tasks, rows))

    def _write_card(self, index: int, stage: Task, zero_shot: Row, matrix: Sequence[Row]) -> None:
        """Let the adapter's card say what became of every task, unless all is done already."""
        if not self.files.is_done(index, stage.name):
            rows = zip(self.tasks, [zero_shot, *matrix][-2], matrix[-1], strict=True)
            scores = [{"task": task.name, "before": b, "after": a} for task, b, a in rows]
            write_card(self.files.adapter(index, stage.name), scores)

    def _finish(self, zero_shot: Row, matrix: Sequence[Row]) -> dict[str, Any]:
        self._write_seconds()
        self.files.note_sums()
        content = self._write_matrix(zero_shot, matrix)  # last: its metrics say that all is done
        self.progress.event("finished", f"all in {self.files.root}", **content["metrics"])
        return content

    def _write_manifest(self, backbone: Backbone) -> None:
        options = options_used(self.config, self.method)
        content = manifest(self.config, self.benchmark, self.tasks, backbone, options)
        there = self.files.manifest_file
        before = read_record(there, Manifest) if there.is_file() else {}
        self.inputs.enter(content)
        content["match_budget"] = self.config.match_budget
        content["budget"] = before.get("budget", [])
        content["seconds"] = before.get("seconds", {})
        content["skipped"] = len(self.skipped)
        note_skipped(self.skipped, self.files.root, self.progress)
        done = sum(self.files.is_done(i, stage.name) for i, stage in enumerate(self.stages, 1))
        if another := note_resume(content, before, done):
            self.progress.event("resumed", f"goes on with {another}", after=done)
        write_json(self.files.manifest_file, content)

    def _note_budget(self, index: int, entry: Mapping[str, Any]) -> None:
        """Enter what a task costs; that of a task trained once more takes the old one's place."""
        content = read_record(self.files.manifest_file, Manifest)
        content["budget"] = [*content["budget"][: index - 1], entry]
        write_json(self.files.manifest_file, content)

    def _write_seconds(self) -> None:
        """Add the seconds since the last time to those in the manifest."""
        content = read_record(self.files.manifest_file, Manifest)
        for phase, seconds in self._seconds.items():
            content["seconds"][phase] = round(content["seconds"].get(phase, 0.0) + seconds, 3)
        self._seconds = {}
        write_json(self.files.manifest_file, content)


def trainings(tasks: Sequence[Task], schedule: str) -> list[Task]:
    """Return what is trained, in order: the tasks, or all of them as one, or nothing.

    Args:
        tasks: The tasks in order.
        schedule: "sequential", "joint" or "none", see `Method.schedule`.

    Returns:
        Tasks to train on.
    """
    if schedule == "none":
        return []
    if schedule == "sequential":
        return list(tasks)
    union = tuple(
        replace(example, id=f"{task.name}/{example.id}") for task in tasks for example in task.train
    )
    return [replace(tasks[0], name=JOINT, train=union, validation=())]


def cells_to_measure(profile: Profile, tasks: int, trained: int) -> dict[int, list[int]]:
    """Return the cells of the matrix that are measured.

    Args:
        profile: Which cells it wants.
        tasks: How many tasks there are.
        trained: How many trainings there are: as many, or 1, or 0.

    Returns:
        Row by row.
    """
    everything = list(range(1, tasks + 1))
    planned: dict[int, list[int]] = {}
    if profile.cells != "ends" or not trained:
        planned[0] = everything
    for t in range(1, trained):
        ahead = [t + 1] if profile.cells == "all" else []
        planned[t] = [t] if profile.cells == "ends" else [*range(1, t + 1), *ahead]
    if trained:
        planned[trained] = everything
    return planned
