"""A benchmark looked through before anything is learned: every file, every row, every picture."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from undrift.data.checks.answers import scored_answers
from undrift.data.checks.finding import Finding, Item, Severity, counted
from undrift.data.checks.looks import (
    ambiguous_names,
    changed_pictures,
    picture_sizes,
    unreadable_pictures,
)
from undrift.data.checks.overlap import overlap
from undrift.data.checks.prompts import format_lines
from undrift.data.checks.rows import (
    count_rows,
    extra_keys,
    id_kinds,
    no_pictures,
    repeated_ids,
    second_file,
)
from undrift.data.checks.split import Split, read_split, split_of
from undrift.data.own_files import is_data
from undrift.data.pictures import Survey, survey
from undrift.data.sources import Lost, Source
from undrift.data.subset import hold_out
from undrift.data.types import Benchmark
from undrift.errors import ConfigError, DataError, unknown
from undrift.registry import BENCHMARKS

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Report:
    """What was found in a benchmark.

    Args:
        benchmark: Its name.
        data: Its folder, if one was given.
        splits: Its splits as their files have them, task by task.
        sizes: Width and height, as it is seen, of every picture that can be read.
        findings: Everything that was found, task by task.
    """

    benchmark: str
    data: Path | None
    splits: tuple[Split, ...]
    sizes: Mapping[Path, tuple[int, int]]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity == "note" for finding in self.findings)

    def plus(self, findings: Iterable[Finding]) -> Report:
        """Return it with more findings: by task, those about several last; the worst first.

        Args:
            findings: The further ones.

        Returns:
            The new report.
        """
        names = dict.fromkeys(split.task for split in self.splits)
        place = {task: number for number, task in enumerate([*names, ""])}
        both = [*self.findings, *findings]
        worst = list(get_args(Severity))
        both.sort(key=lambda f: (place.get(f.task, -1), worst.index(f.severity)))  # -1: no file
        return replace(self, findings=tuple(both))

    def content(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        tasks: dict[str, dict[str, Any]] = {}
        for split in self.splits:
            tasks.setdefault(split.task, {})[split.name] = {
                "file": None if split.file is None else str(split.file),
                "rows": split.rows,
                "questions": len(split.asked),
                "pictures": len(split.pictures()),
            }
        return {
            "benchmark": self.benchmark,
            "data": None if self.data is None else str(self.data),
            "sound": self.sound,
            "tasks": tasks,
            "findings": [finding.content() for finding in self.findings],
        }


def examine(
    name: str,
    root: Path | None = None,
    *,
    only: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    sees: bool = False,
) -> Report:
    """Look a benchmark through.

    Args:
        name: Its name.
        root: Its folder.
        only: Names of the tasks to look into; all if None.
        options: More options of the benchmark, such as `{"instructions": "Diverse"}`.
        workers: Threads that open pictures; one a CPU if not given.
        progress: Called with (what is being done, pieces done, pieces in all).
        sees: Whether the model that it is for takes pictures.

    Returns:
        The report.

    Raises:
        ConfigError: If there is no such benchmark or option.
        DataError: If none of the files can be found or read.
    """
    tell = progress or (lambda *_: None)
    sources, splits, findings = _read(name, root, only, options or {}, tell)
    shown = {path: None for split in splits for path in split.pictures()}
    opened = survey(shown, workers, lambda done, total: tell("opening pictures", done, total))
    tasks = list(dict.fromkeys(split.task for split in splits))
    for number, task in enumerate(tasks):
        tell("comparing", number, len(tasks))
        own = [split for split in splits if split.task == task]
        findings += _of_task(own, sources.get(task), opened, options or {})
        findings += extra_keys(own)
        findings += no_pictures(own, sees=sees)
    tell("comparing", len(tasks), len(tasks))
    findings += ambiguous_names(splits)
    return Report(name, root, tuple(splits), opened.sizes, ()).plus(findings)


def _read(
    name: str,
    root: Path | None,
    only: Sequence[str] | None,
    options: Mapping[str, Any],
    tell: Progress,
) -> tuple[dict[str, Source], list[Split], list[Finding]]:
    """Read all splits, by the benchmark's own code if it does not say where its files are."""
    benchmark = BENCHMARKS.load(name)
    find = vars(sys.modules[benchmark.__module__]).get("sources")
    for option in options:
        if option not in inspect.signature(benchmark).parameters:
            raise ConfigError(f"the benchmark {name!r} has no option {option!r}; leave it out")
    if find is None:
        made: Benchmark = benchmark(root, progress=False, **options)
        for wanted in only or ():
            if wanted not in {task.name for task in made.tasks}:
                raise unknown("task", wanted, [task.name for task in made.tasks])
        chosen = [task for task in made.tasks if only is None or task.name in only]
        names = ("train", "validation", "test")
        return {}, [split_of(task, n) for task in chosen for n in names if getattr(task, n)], []
    lost: Lost = {}
    about_files = {
        key: options[key] for key in options if key in inspect.signature(find).parameters
    }
    sources = find(root, only=only, lost=lost, **about_files)
    findings = [Finding("file", "error", task, "", said) for task, said in lost.items()]
    files = [(source, split) for source in sources for split in source.files]
    splits = []
    for number, (source, split) in enumerate(files):
        tell("reading files", number, len(files))
        made_split, found = read_split(source, split)
        splits.append(made_split)
        findings += found
    tell("reading files", len(files), len(files))
    findings += _unread(vars(sys.modules[benchmark.__module__]).get("unread"), root)
    if not any(split.rows for split in splits):
        raise DataError(*(finding.message for finding in findings))
    return {source.name: source for source in sources}, splits, findings


def _unread(find: Callable[..., list[tuple[str, Path]]] | None, root: Path | None) -> list[Finding]:
    """Name the files that lie with the data and are not read."""
    found: dict[tuple[str, bool], list[Path]] = {}
    for task, path in find(root) if find is not None else ():
        found.setdefault((task, is_data(path)), []).append(path)
    return [
        Finding(
            "unread file",
            "warning" if meant else "note",
            task,
            "",
            f"{counted(len(paths), 'file')} not read: {', '.join(path.name for path in paths)}",
            "name rows train, validation or test, in a format that is read; move the rest away"
            if meant
            else "",
            tuple(Item(path.name, "", path) for path in paths),
        )
        for (task, meant), paths in found.items()
    ]


def _of_task(
    splits: list[Split], source: Source | None, opened: Survey, options: Mapping[str, Any]
) -> Iterator[Finding]:
    """Ask all questions to one task."""
    by_name = {split.name: split for split in splits}
    for split in splits:
        yield from unreadable_pictures(split, opened)
        yield from id_kinds(split)
        yield from repeated_ids(split)
        if source is not None and split.name in source.rows:
            yield from count_rows(split, source.rows[split.name])
    if source is not None and "test" in by_name:
        yield from second_file(source, by_name["test"])
    elif source is not None:
        yield _held_out(by_name["train"], source, options)
    yield from format_lines(splits)
    yield from scored_answers(splits)
    for split in splits:
        if split.name != "train" and "train" in by_name:
            yield from overlap(by_name["train"], split)
    yield from changed_pictures(splits[0].task, splits, opened)
    yield from picture_sizes(splits[0].task, splits, opened.sizes)


def _held_out(train: Split, source: Source, options: Mapping[str, Any]) -> Finding:
    """Tell what is asked where there is no test file."""
    share, seed = options.get("held_out", 0.1), options.get("seed", 0)
    said = f"no test file: {'a part of' if share else 'all of'} the training questions "
    said += "is held out, and asked" if share else "are asked, none is held out"
    examples = [asked.example for asked in train.asked]
    try:
        hold_out(examples, share, seed, source.pictures.root)
    except DataError as error:
        return Finding("file", "error", source.name, "test", str(error))
    return Finding("file", "note", source.name, "test", said)
