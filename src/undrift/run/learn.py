"""One more task for an adapter: learned with the history it carries, and asked what it cost.

The adapter's record (undrift.json) says how it was made, how many tasks it has learned and where
their test examples are. The new task gets the next number, and its seed from that number, so that
tasks learned one by one give, bit for bit, the adapter of one `undrift run` over all of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from undrift.data.benchmarks.folder import OwnTask
from undrift.data.processor import text_only
from undrift.data.row_files import BadRow
from undrift.data.types import Benchmark, Task
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.shared.budget import check_fits
from undrift.methods.shared.model_card import write_card
from undrift.run.adapters import find_adapter, note_origin, origin_of, start_before
from undrift.run.answer import measure_cell
from undrift.run.backbone import Backbone, outline_for, refuse_pictures
from undrift.run.config import (
    RunConfig,
    TrainConfig,
    load_yaml,
    merged,
    resolve,
    spelled_out,
    validated,
)
from undrift.run.guards import notes_of, read_guards
from undrift.run.input_changes import ADAPTER, Inputs, splits_of
from undrift.run.kept_tests import MEGABYTES, keep_test
from undrift.run.learned_tasks import Note, find_again, from_files, relocated, seen_from
from undrift.run.load_model import source, with_base_folder
from undrift.run.load_tasks import (
    Skipped,
    check_answers,
    note_skipped,
    rows_skipped,
    without_bad,
)
from undrift.run.manifest import manifest, note_resume
from undrift.run.plan import Size, TaskPlan, size_expected, size_of, tell_lesson
from undrift.run.progress import Progress
from undrift.run.ranks import alone_in
from undrift.run.remember import NONE, begin_with, check_remember, folder_given
from undrift.run.report_to import Reporters, check_reporters
from undrift.run.session import (
    Session,
    keep_features,
    make_method,
    options_used,
    settings_begun,
)
from undrift.run.stopping import finishing_steps
from undrift.run.thumbnails import keep_pictures
from undrift.run.trainer import StepBar, diverging, teach, training_settings, training_work
from undrift.run.watch_routes import RouteWatch, mention_unwatchable
from undrift.rundir import (
    atomic_folder,
    read_answers,
    read_record,
    write_json,
    write_lines,
)
from undrift.rundir.files import remove
from undrift.rundir.paths import LearnDir
from undrift.rundir.records import Manifest, Result
from undrift.scoring import task_score
from undrift.tuner.frozen import count_parameters

BEFORE, AFTER = "before", "after"
_COUNTED = ("digest", "examples")  # what a note says of the rows, which data.json tells better
OF_A_STREAM = ("boundaries", "stream")
OF_A_RUN = (
    *("benchmark", "reading", "match_budget", "order", "profile", "data", "out"),
    *OF_A_STREAM,
)
"""Keys of a configuration that `undrift run` alone has."""


@dataclass(frozen=True)
class Start:
    """What learning goes on from.

    Args:
        config: The run that the adapter comes from, with what is asked for now put over it.
        adapter: The adapter's folder; None to start one.
        notes: A note of each task it has learned, see `undrift.run.learned_tasks`.
        fingerprint: Of the backbone that it was trained on, if there is one.
        changes: What had changed while it was made, see `undrift.run.input_changes`.
        settings: All options that it was learned with; adapters of before do not say.
    """

    config: RunConfig
    adapter: Path | None = None
    notes: Sequence[Note] = ()
    fingerprint: str | None = None
    changes: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def settings_file(file: Path) -> Mapping[str, Any]:
    """Read a file of settings for `undrift learn`, such as its --dry-run has printed.

    Args:
        file: YAML.

    Returns:
        A layer of configuration.

    Raises:
        ConfigError: If it cannot be used, or is that of a run.
    """
    layer = load_yaml(file)
    if key := _key_of_a_run(layer):
        raise ConfigError(
            f"{file} has the key {key}, which is for `undrift run`; leave it out, or give what "
            "--dry-run of `undrift learn` prints"
        )
    return layer


def _key_of_a_run(layer: Mapping[str, Any]) -> str | None:
    """Find a key that no lesson reads; `eval.split` may say what is so anyway."""
    asks = layer.get("eval")
    if isinstance(asks, Mapping) and asks.get("split", "test") != "test":
        return "eval.split"
    return next((key for key in OF_A_RUN if key in layer), None)


def start_from(
    given: str,
    *asked: Mapping[str, Any],
    moved: Mapping[str, Path] = MappingProxyType({}),
) -> Start:
    """Find out what to go on from.

    Args:
        given: An adapter's folder, a run's, that of an earlier `learn`; or a backbone.
        *asked: Layers of configuration, as in `undrift.run.config`.
        moved: By earlier task, where its test questions are now, see `relocated`.

    Returns:
        The start.

    Raises:
        ConfigError: If it is neither, or a layer cannot be used or has a key of a run.
        RunDirError: If the adapter was not saved by undrift's own commands.
    """
    for layer in asked:
        if (key := _key_of_a_run(layer)) and key != "boundaries":  # which a lesson itself refuses
            raise ConfigError(
                f"the setting {key} is for `undrift run`, and no lesson; leave it out"
            )
    try:
        folder = find_adapter(Path(given))
    except RunDirError:
        source(given)  # a name that cannot be a backbone either is told now
        own = {"benchmark": "folder", "backbone": given, "train": {"epochs": "auto"}}
        return Start(resolve(own, *asked))
    origin = origin_of(folder)
    if "learned" not in origin:
        raise RunDirError(
            f"{folder} does not say which tasks it has learned, so undrift has not saved it; a "
            "plain LoRA becomes part of the base: `undrift export "
            f"{shlex.quote(str(folder))} --to merged --limit 0 --backbone BASE --out MERGED`, then "
            "learn from MERGED"
        )
    own = {key: value for layer in map(spelled_out, asked) for key, value in layer.items()}
    name = own.get("method", {}).get("name", origin["method"])
    if name != origin["method"]:
        raise ConfigError(
            f"{folder} was made by {origin['method']!r}, and cannot be continued by {name!r}; "
            "leave out --method"
        )
    if own.get("remember", origin["run"].get("remember", NONE)) != origin["run"].get(
        "remember", NONE
    ):
        raise ConfigError(
            f"{folder} has learned tasks, and only the first can begin with the base remembered; "
            "leave out --remember, or begin again from the base"
        )
    run = {key: value for key, value in origin["run"].items() if key not in OF_A_STREAM}
    content = merged(spelled_out(run), *map(spelled_out, asked))
    if "backbone" in own and "backbone_folder" not in own:
        content.pop("backbone_folder", None)  # that of another place
    config = validated(RunConfig, content)
    changes = origin.get("changes", ())
    notes = relocated(origin["learned"], folder, moved)
    settings = origin.get("settings", {})
    return Start(config, folder, notes, origin["fingerprint"], changes, settings)


def _learned_already(own: OwnTask, out: Path, start: Start, names: Sequence[str]) -> ConfigError:
    """Say how to learn a task again with other data."""
    before = start_before(start.adapter, own.name) if start.adapter else None
    later = ", ".join(names[names.index(own.name) + 1 :])
    go_on = f", then {later} again from what that leaves" * bool(later)
    place = "ADAPTER_BEFORE_IT" if before is None else shlex.quote(before)
    how = f"undrift learn {place} --data {own.train} --name {own.name} --out {out}"
    return ConfigError(
        f"the adapter has learned a task called {own.name!r} already; to learn it again with other "
        f"data go back to what came before it: `{how}`{go_on}; or give this one another name with "
        "--name: then the history holds both"
    )


@dataclass(frozen=True)
class Change:
    """What became of one task.

    Args:
        task: Its name.
        before: Its score before the new task was learned, in percent.
        after: Its score afterwards.
        examples: How many test examples it has.
        new: Whether it is the task that was learned.
        changed: Whether its test examples are others than when it was learned.
    """

    task: str
    before: float
    after: float
    examples: int
    new: bool = False
    changed: bool = False

    @property
    def drop(self) -> float:
        """By how many points an earlier task fell; 0 for the new one."""
        return 0.0 if self.new else max(0.0, self.before - self.after)

    def as_guard(self) -> dict[str, Any]:
        """Return what result.json says of a guard."""
        row = asdict(self) | {"drop": self.drop}
        return {key: row[key] for key in ("task", "before", "after", "examples", "drop")}


class Learn:
    """One new task for an adapter, begun or resumed.

    Args:
        start: What to go on from, see `start_from`.
        own: The new task's files.
        out: Where everything goes.
        progress: What is told meanwhile.
        held_out: Which share of the data is asked where there is no test file.
        without: Earlier tasks that are not asked.
        guards: Files of questions that are no task, asked before and after as well.
        guard_scorer: How their answers are scored; as the task's by itself.
        keep_tests: Up to how many megabytes the test questions of a task are copied; 0 for none.
        replace: Delete what an earlier `learn` has left in the folder, and begin again.
        force: Go on although rows, pictures, weights or settings of the training have changed.
        backbone: A backbone that is loaded already.
        dry: Only look: nothing is written and no weights are read, so that `tell_plan` is all that
            can be asked for.

    Raises:
        ConfigError: If something about it cannot be.
        DataError: If the data of this task or the test data of an earlier one cannot be used.
        RunDirError: If the folder holds something else, or what it was begun with has changed.
    """

    def __init__(
        self,
        start: Start,
        own: OwnTask,
        out: Path,
        progress: Progress | None = None,
        *,
        held_out: float = 0.1,
        without: Sequence[str] = (),
        guards: Sequence[Path] = (),
        guard_scorer: str | None = None,
        keep_tests: float = MEGABYTES,
        replace: bool = False,
        force: bool = False,
        backbone: Backbone | None = None,
        dry: bool = False,
    ) -> None:
        with nullcontext() if dry else alone_in(out):
            self.start, self.progress = start, progress or Progress()
            self.files = LearnDir(out)
            self.config = with_base_folder(start.config, None if replace else self.files)
            if not replace and not force:
                self._keep_epochs()
            check_reporters(self.config.report_to)
            wanted, there = self.config.method, self.files.manifest_file
            begun = {} if replace else settings_begun(there, wanted.name)
            self.method = make_method(wanted.name, wanted.options, begun or start.settings)
            if start.adapter is None:
                check_remember(self.config.remember, self.method)
            if self.method.schedule != "sequential":
                raise ConfigError(f"{self.method.name!r} does not learn one task after another")
            if self.config.is_stream:
                raise ConfigError("boundaries=none is for `undrift run`: a lesson is one task")
            self._backbone = backbone
            self.index = len(start.notes) + 1
            names = [note["name"] for note in start.notes]
            if own.name in names:
                raise _learned_already(own, out, start, names)
            for name in without:
                if name not in names:
                    known = ", ".join(names)
                    raise ConfigError(f"--without {name}: the adapter has learned {known}")
            self.files.task(self.index, own.name)  # refuses a name that cannot be a file's
            self.task, self.skipped = self._read(own, held_out)
            self.note = from_files(own, self.task, held_out, self.config.seed, self.config.skip_bad)
            asked = [note for note in start.notes if note["name"] not in without]
            self.keep_tests = keep_tests
            self.earlier = find_again(
                asked, self.progress, backbone or self.config.base, adapter=start.adapter
            )
            if guards and self.method.must_be_told:
                raise ConfigError(
                    f"{self.method.name}, as it is set, has to be told the task of a question, and "
                    "a guard is no task; leave out --guard, or set it otherwise"
                )
            guarding = notes_of(guards, own, guard_scorer, self.config.skip_bad)
            taken = [own.name, *names]
            self.guards = read_guards(guarding, taken, self.progress, backbone or self.config.base)
            for guard in self.guards:
                self.files.guard_answers(BEFORE, guard.name)  # refuses a name likewise
            asked_tasks = [self.task, *self._asked_only]
            check_answers(asked_tasks, self.config.eval.scoring, self.progress)
            content = {
                "from": str(start.adapter.resolve() if start.adapter else self.config.backbone),
                "task": {key: value for key, value in self.note.items() if key not in _COUNTED},
                "train": {"file": str(own.train.resolve())},
                "without": list(without),
                **({"guards": guarding} if guarding else {}),
                "run": yaml.safe_load(self.config.text()),
            }
            self._text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            base = source(self.config.base) if backbone is None else None
            self._backbone, self._train, self._test = backbone, own.train, own.test
            if replace:
                self.files.refuse_to_delete(*self._read_from(own), *guards)
            there = LearnDir.looked_at(out, self._text, replace=replace, force=force)
            begun = there.config_file.is_file() and not replace
            splits = splits_of([self.task], self._asked_only)
            adapter = {} if start.adapter is None else {ADAPTER: start.adapter}
            folders = adapter or folder_given(self.config.remember)
            if dry:
                if begun and not force:
                    Inputs(there, splits, base, folders, progress=self.progress, keep=False)
                return
            if not begun:
                self._load()  # before anything is written: what cannot be loaded leaves nothing
            self.files = LearnDir.start(out, self._text, replace=replace, force=force)
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
        self._tell(processor)
        size = size_expected(self.config, self.method, model, each, self.index)
        return self._planned(size)

    def go(self) -> list[Change]:
        """Do what is not done yet.

        Returns:
            What became of every task that was asked, the new one last.

        Raises:
            TrainingDiverged: If a loss is not finite.
            AdapterMismatch: If the adapter belongs to another backbone.
            RunDirError: If another process works in the folder, or has put another task there.
        """
        with alone_in(self.files.root):
            LearnDir.start(self.files.root, self._text)
            if self.files.result_file.is_file():
                self.inputs.check_base(self.config, self._backbone)
                if self.inputs.changes:  # which the manifest tells now
                    self.files.note_sums(resumed=True)
            else:
                self.files.note_sums(resumed=True)
                self._measure(self._prepare())
        rows = read_record(self.files.result_file, Result)["tasks"]
        known = {field.name for field in fields(Change)}
        return [Change(**{key: row[key] for key in known}) for row in rows]

    def guarded(self) -> list[Change]:
        """Return what became of every guard, once `go` has done all."""
        rows = read_record(self.files.result_file, Result).get("guards", ())
        keys = ("task", "before", "after", "examples")
        return [Change(**{key: row[key] for key in keys}) for row in rows]

    def settings(self) -> str:
        """Return all settings as YAML, which `undrift learn --config` takes back."""
        content: dict[str, Any] = yaml.safe_load(self.config.text(whole=True))
        left_out = {*OF_A_RUN, "backbone", "backbone_folder"}
        content = {key: value for key, value in content.items() if key not in left_out}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    @property
    def adapter(self) -> Path:
        """Where the new adapter goes."""
        return self.files.root / "adapter"

    # ------------------------------------------------------------ the parts

    @property
    def _snapshots(self) -> Path:
        return self.files.root / "training"

    def _read_from(self, own: OwnTask) -> Iterator[Path | None]:
        """Name the files and folders that this lesson is made from."""
        yield from (self.start.adapter, Path(self.config.base))
        yield from folder_given(self.config.remember).values()
        yield from (own.train, own.validation, own.test, own.images, own.test_images)

    def _read(self, own: OwnTask, held_out: float) -> tuple[Task, list[Skipped]]:
        seed = self.config.seed
        if not self.config.skip_bad:
            return own.source().task(held_out=held_out, seed=seed), []
        bad: list[BadRow] = []
        task = own.source().task(bad, held_out=held_out, seed=seed)
        (task,), pictures = without_bad([task], self.progress, self._backbone or self.config.base)
        return task, [*rows_skipped(bad), *pictures]

    def _keep_epochs(self) -> None:
        """Go on with the epochs of a task that was begun before there was a rule for them."""
        file = self.files.config_file
        if self.config.train.epochs != "auto" or not file.is_file():
            return
        run = load_yaml(file).get("run")
        train = run.get("train") if isinstance(run, Mapping) else None
        if isinstance(train, Mapping) and train.get("epochs") == 1:
            train = self.config.train.model_copy(update={"epochs": 1.0})
            self.config = self.config.model_copy(update={"train": train})
            text = f"goes on with train.epochs=1, as {self.files.root} was begun with"
            self.progress.event("begun", text)

    def _load(self) -> Backbone:
        """Return the backbone, loaded once, if it is of the kind that the data asks for."""
        if self._backbone is None:
            self._backbone = Backbone.load_for(self.config)
            pictures = self._pictures
            refuse_pictures(self._backbone.name, self._backbone.processor, pictures)
        return self._backbone

    @property
    def _asked_only(self) -> list[Task]:
        return [*(task for task, _ in self.earlier), *self.guards]

    @property
    def _pictures(self) -> list[Path]:
        splits = [self.task.train, self.task.test, *(task.test for task in self._asked_only)]
        return [picture for split in splits for e in split for picture in e.images]

    def _planned(self, size: Size) -> dict[str, Any]:
        """Tell the plan."""
        settings = training_settings(self.config, self.method, self.task)
        plan = TaskPlan.of(self.config, self.method, self.task, settings)
        others = [f"{task.name} ({len(task.test)} questions)" for task, _ in self.earlier]
        others += [f"the guard {g.name} ({len(g.test)} questions)" for g in self.guards]
        return tell_lesson(
            self.progress,
            plan,
            self.config,
            size,
            questions=self._where_asked(),
            others=others,
            test_file=bool(self.note.get("test")),
        )

    def _where_asked(self) -> str:
        count = len(self.task.test)
        asked = f"{count} question{'s' * (count != 1)}"
        if self.note.get("test"):
            beside = self._test is not None and self._test.parent == self._train.parent
            where = f"{self._test}{', beside the training file' if beside else ''}"
            return f"{asked} in {where}"
        if self.note.get("held_out") == 0:
            return f"{asked}, all of them learned as well (--held-out 0)"
        share = self.note["held_out"]
        both = count + len(self.task.train)
        return f"{asked} held out of {both} (--held-out {share:g})"

    def _own_base(self) -> str:
        """Say how the adapter gets the base that it was trained on."""
        origin = origin_of(self.start.adapter) if self.start.adapter else {}
        for key, now in (("dtype", self.config.dtype), ("quantize", self.config.quantize)):
            if origin.get(key, now) != now:
                return (
                    f"it was trained with {key} {origin[key]}, and {now} is asked for: leave it out"
                )
        return "give its own with --backbone"

    def _prepare(self) -> Session:
        config = self.config
        backbone = self._load()
        another = self.start.fingerprint not in (None, backbone.fingerprint)
        if another and not self.inputs.force:
            raise AdapterMismatch(
                f"the adapter in {self.start.adapter} was trained on another backbone than "
                f"{backbone.name!r} is now ({str(self.start.fingerprint)[:12]} against "
                f"{backbone.fingerprint[:12]}); {self._own_base()}, or go on all the same with "
                "--force"
            )
        asked = [task.test for task in self._asked_only]
        examples = [e for split in (self.task.train, self.task.test, *asked) for e in split]
        keep_features(config, backbone, examples, self.progress)
        if self.start.adapter is not None:
            check_fits(self.method, backbone.model, self.start.adapter)
        base = count_parameters(backbone.model)
        if self.start.adapter is None and not self.adapter.is_dir():
            begin_with(config, self.method, backbone, self.files.remembered, (), self.progress)
        session = Session.open(config, self.method, backbone, self.progress)
        mention_unwatchable(config.watch_routes, session)
        self._tell(backbone.processor)
        plan = self._planned(size_of(session.model, base))
        self._write_manifest(backbone, plan)
        return session

    def _tell(self, processor: Any) -> None:
        """Say what may not be meant: a task without pictures, one that is asked what it learns."""
        name, model = self.task.name, self.config.backbone
        if not text_only(processor) and not any(e.images for e in self.task.train):
            text = f"no question of {name} shows a picture, though {model} takes pictures"
            self.progress.event("no picture", text, task=name)
        if self.note.get("held_out") == 0:
            text = f"nothing of {name} is held out: its scores are of what it was trained on"
            self.progress.event("held out", text, task=name)

    def _measure(self, session: Session) -> None:
        settings = training_settings(self.config, self.method, self.task)
        work = training_work(self.task, settings)
        asked = [task for task, _ in self.earlier] + [self.task]
        questions = sum(len(task.test) for task in (*asked, *self.guards))
        self.progress.plan(work + 2 * questions)
        self._keep_tests(asked)
        learned = self.adapter.is_dir()
        if self.start.adapter is not None and not learned:
            self.method.load_state(session.model, self.start.adapter)
        live = self.files.live(self.index, self.task.name)
        with Reporters(self.config.report_to, live) as reporters:
            if not learned:
                self._ask(session, asked, BEFORE)
                with finishing_steps():
                    self._teach(session, settings, work, reporters)
            else:
                self.method.load_state(session.model, self.adapter)
            remove(self._snapshots)
            self._ask(session, asked, AFTER)
            for number, task in enumerate(asked, 1):
                keep_pictures(self.files.pictures(number, task.name), task)
            for guard in self.guards:
                keep_pictures(self.files.guard_pictures(guard.name), guard)
            changes = self._write_result(asked)
            reporters.scores({change.task: change.after for change in changes})

    def _keep_tests(self, tasks: Sequence[Task]) -> None:
        """Copy test questions beside the adapter, so that they are there where it is taken."""
        names = [str(note["name"]) for note in (*self.start.notes, self.note)]
        of_files = {note["name"] for note in (*self.start.notes, self.note) if "images" in note}
        for task in tasks if self.keep_tests else ():
            if task.name in of_files:
                folder = self.files.tests(names.index(task.name) + 1, task.name)
                if why := keep_test(folder, task, self.keep_tests):
                    text = f"the test questions of {task.name} stay where they are: {why}"
                    self.progress.event("not kept", text, task=task.name)

    def _teach(
        self, session: Session, settings: TrainConfig, work: float, reporters: Reporters
    ) -> None:
        bar = StepBar(self.progress, f"learning {self.task.name}", work, session.backbone.device)
        names = [note["name"] for note in self.start.notes]
        earlier = {names.index(task.name) + 1: task for task, _ in self.earlier}
        routes = RouteWatch.where_due(session, earlier, self.config.watch_routes)
        callbacks = [bar, reporters]
        with diverging(f"task {self.index} ({self.task.name})", self.files.root):
            seed = self.config.seed
            log = teach(
                session, self.task, self.index, seed, settings, self._snapshots, callbacks, routes
            )
        write_lines(self.files.root / "train.jsonl", log)
        with atomic_folder(self.adapter) as folder:
            self.method.save_state(session.model, folder)
            notes = seen_from([*self.start.notes, self.note], self.adapter)
            changes = [*self.start.changes, *self.inputs.changes]
            note_origin(
                folder, self.config, self.method, session.backbone, self.index, notes, changes
            )

    def _ask(self, session: Session, tasks: Sequence[Task], when: str) -> None:
        session.model.eval()
        learned = [str(note["name"]) for note in (*self.start.notes, self.note)]
        for number, task in enumerate(tasks, 1):
            file = self.files.answers(when, number, task.name)
            with self.method.predicting(session.model, task=learned.index(task.name) + 1):
                measure_cell(session, task, file, f"asking {task.name}, {when}")
        for guard in self.guards:
            file = self.files.guard_answers(when, guard.name)
            with self.method.predicting(session.model):
                measure_cell(session, guard, file, f"asking the guard {guard.name}, {when}")

    def _write_result(self, tasks: Sequence[Task]) -> list[Change]:
        def score(when: str, number: int, task: Task) -> float:
            return task_score(read_answers(self.files.answers(when, number, task.name)))

        def guarded(when: str, guard: Task) -> float:
            return task_score(read_answers(self.files.guard_answers(when, guard.name)))

        changed = [differs for _, differs in self.earlier] + [False]
        changes = [
            Change(
                task.name,
                score(BEFORE, number, task),
                score(AFTER, number, task),
                len(task.test),
                new=task is self.task,
                changed=changed[number - 1],
            )
            for number, task in enumerate(tasks, 1)
        ]
        rows = [{**asdict(change), "drop": change.drop} for change in changes]
        guards = [
            Change(guard.name, guarded(BEFORE, guard), guarded(AFTER, guard), len(guard.test))
            for guard in self.guards
        ]
        content = {"adapter": str(self.adapter), "tasks": rows, "skipped": len(self.skipped)}
        if guards:
            content["guards"] = [guard.as_guard() for guard in guards]
        self.files.note_sums()
        write_card(self.adapter, rows)
        write_json(self.files.result_file, content)
        return changes

    def _write_manifest(self, backbone: Backbone, plan: Mapping[str, Any]) -> None:
        terms = "your own data: undrift knows nothing of its terms"
        made = Benchmark("folder", "own", (self.task,), terms, {}, str(self.note["digest"]))
        options = options_used(self.config, self.method)
        content = manifest(self.config, made, made.tasks, backbone, options)
        trained_on = self.start.fingerprint
        self.inputs.enter(
            content, {"weights": {"fingerprint": trained_on}} if trained_on is not None else None
        )
        there = self.files.manifest_file
        before = read_record(there, Manifest) if there.is_file() else {}
        if another := note_resume(content, before, int(self.adapter.is_dir())):
            self.progress.event("resumed", f"goes on with {another}")
        write_json(there, {**content, "skipped": len(self.skipped), "plan": plan})
        note_skipped(self.skipped, self.files.root, self.progress)
