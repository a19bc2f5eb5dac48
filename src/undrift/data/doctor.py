"""A benchmark looked through before anything is learned: every file, every row, every picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from undrift.data import doctor_checks as checks
from undrift.data.benchmarks import beside_benchmark
from undrift.data.benchmarks.folder import is_data
from undrift.data.doctor_checks import Finding, Item, RowQuestion, Severity, Split, first_rows
from undrift.data.instructions import Lost, ReadRow, Row, TaskFiles, each_row
from undrift.data.picture_decoding import Survey, survey
from undrift.data.picture_folder import PictureFolder
from undrift.data.row_files import BadRow
from undrift.data.subset import hold_out
from undrift.data.types import Benchmark, Example, chosen
from undrift.errors import ConfigError, DataError
from undrift.registry import BENCHMARKS

OnProgress = Callable[[str, int, int], None]


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
        """Whether there is nothing but notes, and what says nothing against the data."""
        against = (f for f in self.findings if f.check != checks.TOLD_BY_TEXT)
        return all(finding.severity == "note" for finding in against)

    def plus(self, findings: Iterable[Finding]) -> Report:
        """Return it with more findings: by task, those about several last; the worst first."""
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
                "questions": len(split.questions),
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
    progress: OnProgress | None = None,
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
        findings += checks.extra_keys(own)
        findings += checks.no_pictures(own, sees=sees)
    tell("comparing", len(tasks), len(tasks))
    findings += checks.ambiguous_names(splits)
    findings += checks.told_by_text(splits)
    return Report(name, root, tuple(splits), opened.sizes, ()).plus(findings)


def _read(
    name: str,
    root: Path | None,
    only: Sequence[str] | None,
    options: Mapping[str, Any],
    tell: OnProgress,
) -> tuple[dict[str, TaskFiles], list[Split], list[Finding]]:
    """Read all splits, by the benchmark's own code if it does not say where its files are."""
    benchmark, find = BENCHMARKS.load(name), beside_benchmark(name, "sources")
    for option in options:
        if option not in inspect.signature(benchmark).parameters:
            raise ConfigError(f"the benchmark {name!r} has no option {option!r}; leave it out")
    if find is None:
        return {}, _read_by(benchmark(root, progress=False, **options), only), []
    lost: Lost = {}
    known = inspect.signature(find).parameters
    about_files = {key: value for key, value in options.items() if key in known}
    sources = find(root, only=only, lost=lost, **about_files)
    findings = [Finding("file", "error", task, "", reason) for task, reason in lost.items()]
    files = [(source, split) for source in sources for split in source.files]
    splits = []
    for number, (source, split) in enumerate(files):
        tell("reading files", number, len(files))
        made, found = read_split(source, split)
        splits.append(made)
        findings += found
    tell("reading files", len(files), len(files))
    findings += _unread(beside_benchmark(name, "unread"), root)
    if not any(split.rows for split in splits):
        raise DataError(*(finding.message for finding in findings))
    return {source.name: source for source in sources}, splits, findings


def _read_by(made: Benchmark, only: Sequence[str] | None) -> list[Split]:
    """Make splits of what a benchmark's own code has read; rows are numbered as examples are."""
    splits = []
    for task in chosen(made.tasks, only):
        for name in ("train", "validation", "test"):
            examples: tuple[Example, ...] = getattr(task, name)
            if examples:
                asked = tuple(RowQuestion(at, example) for at, example in enumerate(examples, 1))
                about = {"max_new_tokens": task.max_new_tokens, "scorer": task.scorer}
                splits.append(Split(task.name, name, None, len(asked), asked, **about))
    return splits


class SoughtPictures(PictureFolder):
    """Pictures of which those that cannot be found are noted instead of raised.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.missing = dict[Path, str]()
        self.outside = dict[Path, str]()

    def find(self, name: str) -> Path:
        """Return where a picture is or should be; anywhere, if it is in `outside`."""
        path = None
        try:
            path = self.place(name)
            return super().find(name)
        except DataError as error:
            if path is None:
                path = self.root / name
                self.outside.setdefault(path, str(error))
            else:
                self.missing.setdefault(path, str(error))
            return path


def read_split(source: TaskFiles, name: str) -> tuple[Split, list[Finding]]:
    """Read one split as a run does, and find what keeps rows from being used.

    Args:
        source: The task's files.
        name: Which split.

    Returns:
        What can be read of it, and the findings; a damaged file is one, too.
    """
    file, pictures = source.files[name], SoughtPictures(source.pictures_of(name).root)
    bad, strangers, read, damaged = list[BadRow](), set[str](), list[ReadRow](), ""

    def joined(row: Row) -> Row:
        try:
            return row if source.join is None or name != "test" else source.join(row)
        except DataError as error:
            strangers.add(str(error))
            raise

    try:
        # what was read before the damage stays
        read += each_row(file, pictures, join=joined, answers=source.answers, bad=bad)
    except DataError as error:
        damaged = str(error)
    refused = [Item(f"row {row.row}", row.reason, row.file, row.row) for row in bad]
    questions = tuple(RowQuestion(one.number, example) for one in read for example in one.examples)
    rows = first_rows(questions)
    missing = {path: why for path, why in pictures.missing.items() if path in rows}
    outside = {path: why for path, why in pictures.outside.items() if path in rows}
    split = Split(
        source.name,
        name,
        file,
        len(read) + len(bad),
        questions,
        tuple((one.number, one.identity) for one in read if one.identity is not None),
        frozenset({*missing, *outside}),
        tuple(item for item in refused if item.reason in strangers),
        source.max_new_tokens,
        source.scorer,
    )
    found = list[Finding]()
    if damaged:
        found.append(Finding("file", "error", source.name, name, damaged))
    elif not split.rows:
        message = f"{file} holds no row"
        found.append(Finding("file", "error", source.name, name, message, "get the file again"))
    items = [item for item in refused if item.reason not in strangers]
    message, advice = "that cannot be used", "mend them, or leave them out with --skip-bad"
    found += checks.found(split, "row", "error", items, "row", message, advice)
    items = [Item(str(path), why, file, rows[path]) for path, why in missing.items()]
    message = f"{'is' if len(items) == 1 else 'are'} not there"
    advice = "get them, or leave their rows out with --skip-bad"
    found += checks.found(split, "missing picture", "error", items, "picture", message, advice)
    items = [Item(f"row {rows[path]}", why, file, rows[path]) for path, why in outside.items()]
    message = "outside the pictures' folder"
    advice = "write names that are relative to it; nothing outside is ever opened"
    found += checks.found(split, "picture outside", "error", items, "picture", message, advice)
    return split, found


def _unread(find: Callable[..., list[tuple[str, Path]]] | None, root: Path | None) -> list[Finding]:
    """Name the files that lie with the data and are not read."""
    unread: dict[tuple[str, bool], list[Path]] = {}
    for task, path in find(root) if find is not None else ():
        unread.setdefault((task, is_data(path)), []).append(path)
    findings = list[Finding]()
    for (task, meant), paths in unread.items():
        message = f"not read: {', '.join(path.name for path in paths)}"
        advice = "name rows train, validation or test, in a format that is read; move the rest away"
        severity, advice = ("warning", advice) if meant else ("note", "")
        items = [Item(path.name, "", path) for path in paths]
        findings += checks.found(task, "unread file", severity, items, "file", message, advice)
    return findings


def _of_task(
    splits: list[Split], source: TaskFiles | None, opened: Survey, options: Mapping[str, Any]
) -> Iterator[Finding]:
    """Ask all questions to one task."""
    by_name = {split.name: split for split in splits}
    for split in splits:
        yield from checks.unreadable_pictures(split, opened)
        yield from checks.id_kinds(split)
        yield from checks.repeated_ids(split)
        if source is not None and split.name in source.rows:
            yield from checks.count_rows(split, source.rows[split.name])
    if source is not None and "test" in by_name:
        yield from checks.second_file(source, by_name["test"])
    elif source is not None:
        yield _held_out(by_name["train"], source, options)
    yield from checks.format_lines(splits)
    yield from checks.scored_answers(splits)
    for split in splits:
        if split.name != "train" and "train" in by_name:
            yield from checks.overlap(by_name["train"], split)
    yield from checks.changed_pictures(splits, opened)
    yield from checks.picture_sizes(splits, opened.sizes)


def _held_out(train: Split, source: TaskFiles, options: Mapping[str, Any]) -> Finding:
    """Tell what is asked where there is no test file."""
    share, seed = options.get("held_out", 0.1), options.get("seed", 0)
    message = f"no test file: {'a part of' if share else 'all of'} the training questions "
    message += "is held out, and asked" if share else "are asked, none is held out"
    examples = [question.example for question in train.questions]
    try:
        hold_out(examples, share, seed, source.pictures.root)
    except DataError as error:
        return Finding("file", "error", source.name, "test", str(error))
    return Finding("file", "note", source.name, "test", message)
