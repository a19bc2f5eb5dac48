"""The tasks of a run: a benchmark as a configuration asks for it, without its bad parts, cut."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from undrift.data.picture_decoding import survey
from undrift.data.row_files import BadRow
from undrift.data.subset import subset
from undrift.data.types import Benchmark, Example, Task
from undrift.errors import DataError
from undrift.registry import BENCHMARKS
from undrift.run.backbone import Backbone
from undrift.run.config import Profile, RunConfig
from undrift.run.progress import Progress
from undrift.run.ranks import first_before_others
from undrift.run.refused_examples import refused, renderer_of
from undrift.run.setting_keys import check_reading
from undrift.rundir import write_lines
from undrift.scoring import copy_fault

_SPLITS = ("train", "validation", "test")


class Skipped(NamedTuple):
    """Something that was left out because it could not be used.

    Args:
        where: The file with the row's number, or the task with the example's id.
        reason: What is wrong with it.
    """

    where: str
    reason: str


def read_benchmark(
    config: RunConfig, progress: Progress, backbone: str | Backbone | None = None
) -> tuple[Benchmark, tuple[Skipped, ...]]:
    """Load the benchmark of a run.

    Args:
        config: The run: benchmark, data, reading, order (of named tasks, only these are read) and
            skip_bad.
        progress: Told about slow parts.
        backbone: With `skip_bad`, whose processor says what cannot be used.

    Returns:
        The benchmark, and what was left out of it: nothing without `skip_bad`.

    Raises:
        UnknownName: If there is no such benchmark, or it has no such option.
        DataError: If the data cannot be used.
        ConfigError: If an option has a value that cannot be used.
    """
    load = BENCHMARKS.load(config.benchmark)
    check_reading(config.benchmark, config.reading)
    known, options = inspect.signature(load).parameters, dict(config.reading)
    if "only" in known and not isinstance(config.order, str):
        options["only"] = config.order
    bad: list[BadRow] = []
    if config.skip_bad and "bad" in known:
        options["bad"] = bad
    with first_before_others():  # pictures are unpacked or drawn, and kept
        made = load(config.data, progress=progress.drawn, **options)
    if not config.skip_bad:
        return made, ()
    tasks, pictures = without_bad(made.tasks, progress, backbone)
    return replace(made, tasks=tasks), (*rows_skipped(bad), *pictures)


def rows_skipped(bad: Sequence[BadRow]) -> list[Skipped]:
    """Say which rows of files were left out."""
    return [Skipped(f"{row.file}, row {row.row}", row.reason) for row in bad]


def check_answers(tasks: Sequence[Task], scoring: str, progress: Progress) -> None:
    """Score a perfect copy of every answer that will be asked for, before anything is learned.

    Args:
        tasks: Tasks.
        scoring: The profile that decides what is right.
        progress: Told of the tasks where even perfect copies are wrong.

    Raises:
        DataError: If an answer cannot be scored at all.
    """
    for task in tasks:
        wrong: list[str] = []
        for example in task.test:
            extra = {"question": example.question, **example.extra}
            try:
                fault = copy_fault(task.scorer, example.answers, extra, scoring)
            except DataError as error:
                raise DataError(f"task {task.name}, example {example.id}: {error}") from error
            if fault is not None:
                wrong.append(f"{example.id}: {fault}")
        if wrong:
            text = (
                f"task {task.name}: of {len(wrong)} of {len(task.test)} answers even a perfect "
                f"copy is not right, such as {wrong[0]}"
            )
            progress.event("answers", text, task=task.name, count=len(wrong))


def note_skipped(skipped: Sequence[Skipped], root: Path, progress: Progress) -> None:
    """Write what was left out to skipped.jsonl in a run's folder, and tell how much it was."""
    if skipped:
        file = root / "skipped.jsonl"
        write_lines(file, (row._asdict() for row in skipped))
        text = f"{len(skipped)} bad examples left out: {file}"
        progress.event("skipped", text, count=len(skipped))


def without_bad(
    tasks: Sequence[Task], progress: Progress, backbone: str | Backbone | None = None
) -> tuple[tuple[Task, ...], list[Skipped]]:
    """Leave out the examples whose pictures cannot be read, and those that a backbone refuses.

    Args:
        tasks: Tasks.
        progress: Told about every picture: each is opened.
        backbone: Whose processor is asked what it refuses; nobody's if not given.

    Returns:
        The tasks with what remains, and the examples that were left out.

    Raises:
        DataError: If nothing remains to train on or to ask, or if the processor refuses all.
    """
    everything = [e for task in tasks for split in _SPLITS for e in getattr(task, split)]
    pictures = sorted({picture for example in everything for picture in example.images})
    progress.stage("opening every picture", len(pictures))
    seen = 0

    def told(done: int, total: int) -> None:
        nonlocal seen
        progress.advance(done - seen)
        seen = done

    opened = survey(pictures, progress=told)
    refusing = None if backbone is None else renderer_of(backbone)
    skipped: list[Skipped] = []

    def good(task: Task, split: str) -> tuple[Example, ...]:
        examples: tuple[Example, ...] = getattr(task, split)
        broken = [(opened.unreadable.get(path) for path in e.images) for e in examples]
        reasons = [next(filter(None, own), None) for own in broken]
        if refusing is not None:
            asked = refused(refusing, examples, opened.sizes)
            reasons = [own or other for own, other in zip(reasons, asked, strict=True)]
        pairs = list(zip(examples, reasons, strict=True))
        where = f"task {task.name}, {split} example"
        skipped.extend(Skipped(f"{where} {e.id}", why) for e, why in pairs if why is not None)
        return tuple(e for e, why in pairs if why is None)

    changed = [{split: good(task, split) for split in _SPLITS} for task in tasks]
    if skipped:
        tasks = [replace(task, **splits) for task, splits in zip(tasks, changed, strict=True)]
    return tuple(tasks), skipped


def cut(task: Task, profile: Profile, split: str = "test") -> Task:
    """Return a task with the part of its examples that the profile uses.

    `limit` and `fraction` choose by the examples' ids; of what remains the shares are taken, evenly
    spaced.

    Args:
        task: The whole task.
        profile: How much of it is used.
        split: "test", or "validation" to ask its validation examples instead.

    Returns:
        The task; the examples to ask stand in its `test`.

    Raises:
        DataError: If the split has zero examples.
    """
    asked = task.test if split == "test" else task.validation
    if not asked:
        raise DataError(f"task {task.name!r} has zero {split} examples; use eval.split=test")
    chosen = {"limit": profile.limit, "fraction": profile.fraction, "seed": profile.draw}
    return replace(
        task,
        train=_share(subset(task.train, **chosen), profile.train_share),
        test=_share(subset(asked, **chosen), profile.test_share),
    )


def spaced(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Choose so many examples, evenly spaced, in their order."""
    return tuple(examples[i * len(examples) // count] for i in range(count))


def _share(examples: Sequence[Example], share: float) -> tuple[Example, ...]:
    return spaced(examples, max(1, round(len(examples) * share)))
