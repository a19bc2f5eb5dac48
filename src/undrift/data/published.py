"""Published benchmarks: what their tables of tasks have in common, and how such a table is loaded.

A benchmark's file states its tasks as `PublishedTask`s: the names of folders and files as they were
published, the published numbers of rows, and which public rule scores the answers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undrift.data.bars import bar
from undrift.data.files import BadRow, Pictures, existing, read_json
from undrift.data.instructions import Join, Row, read_examples
from undrift.data.sources import Lost, Source
from undrift.data.types import Benchmark, Task
from undrift.errors import ConfigError, DataError, unknown
from undrift.untrusted import is_folder, is_regular, strange_kind


@dataclass(frozen=True)
class Annotation:
    """A second file, which knows more about the test rows than their own file.

    Args:
        files: Its names, the first that exists is taken; beside the test file, or in the folder of
            the task's pictures (`<images>/<folder>/`).
        join: Makes of the file's content what adds to a row.
        required: Without it the task cannot be scored.
    """

    files: tuple[str, ...]
    join: Callable[[Any], Join]
    required: bool = True


@dataclass(frozen=True)
class PublishedTask:
    """One task as it was published.

    Args:
        name: The task's name.
        train: Names of the training file, the first that exists is taken.
        test: Names of the test file, likewise.
        scorer: Its key in `undrift.scoring.TASKS`, which holds its rules.
        train_rows: Published number of training rows (a row may hold many questions), if known.
        test_rows: Published number of test rows, if known.
        folders: Names of its folder; `name` alone if empty.
        max_new_tokens: How long an answer may get.
        annotation: A second file about the test rows.
        add: Adds to a test row what a rule wants and the row only implies.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    scorer: str
    train_rows: int | None = None
    test_rows: int | None = None
    folders: tuple[str, ...] = ()
    max_new_tokens: int = 128
    annotation: Annotation | None = None
    add: Join | None = None


def find(
    tasks: Sequence[PublishedTask],
    instructions: Path,
    images: Path | None,
    only: Sequence[str] | None,
    lost: Lost | None,
) -> list[Source]:
    """Find the files of a published benchmark; none is read but the second files of tasks.

    Args:
        tasks: Its table.
        instructions: The folder of the tasks' folders.
        images: What the pictures' names are relative to; None for the folder of each task.
        only: Names of the wanted tasks, for those who have a part of the data; all if None.
        lost: Receives the tasks whose files cannot be found; without it, the first is raised.

    Returns:
        The tasks' files, in the published order.

    Raises:
        DataError: If a folder or file is missing.
        UnknownName: If there is no task of a name in `only`.
    """
    for wanted in only or ():
        if wanted not in {task.name for task in tasks}:
            raise unknown("task", wanted, [task.name for task in tasks])
    sources = []
    for task in tasks:
        if only is None or task.name in only:
            try:
                sources.append(_source(task, instructions, images))
            except DataError as error:
                if lost is None:
                    raise
                lost[task.name] = str(error)
    return sources


def published(
    name: str,
    version: str,
    licence: str,
    sources: Sequence[Source],
    *,
    root: Path,
    progress: bool,
    bad: list[BadRow] | None,
) -> Benchmark:
    """Load a published benchmark.

    Args:
        name: The benchmark's name.
        version: Which edition of the data it is.
        licence: The terms, in words.
        sources: The tasks' files.
        root: The part of the pictures' paths that is not in the fingerprint.
        progress: Show a bar.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The benchmark, with its tasks in the published order and an order "reversed". Its
        fingerprint is of the texts and the names of the pictures, not of their pixels.

    Raises:
        DataError: If a row cannot be used.
    """
    loaded = []
    with bar(sources, f"reading {name}", shown=progress) as found:
        for source in found:
            train, test, pictures = source.files["train"], source.files["test"], source.pictures
            splits = {
                "train": read_examples(train, pictures, number_repeats=True, bad=bad),
                "validation": (),
                "test": read_examples(test, pictures, join=source.join, bad=bad),
            }
            made = Task(
                source.name, **splits, scorer=source.scorer, max_new_tokens=source.max_new_tokens
            )
            loaded.append(made)
    orders = {"reversed": tuple(task.name for task in reversed(loaded))}
    return Benchmark(name, version, tuple(loaded), licence, orders, fingerprint(loaded, root))


def fingerprint(tasks: Sequence[Task], root: Path) -> str:
    """Return a digest of all examples; pictures count by their names.

    Args:
        tasks: The tasks.
        root: The part of the pictures' paths that does not count.

    Returns:
        16 hexadecimal digits, the same wherever the data lies.
    """
    digest, start = hashlib.sha256(), f"{root}{os.sep}"
    for task in tasks:
        for split in (task.train, task.validation, task.test):
            digest.update(f"{task.name}:{len(split)}".encode())
            for example in split:
                names = [os.fspath(path).removeprefix(start) for path in example.images]
                content = [example.id, example.question, example.answers, names]
                content += [example.system] if example.system else []
                digest.update(json.dumps(content).encode())
    return digest.hexdigest()[:16]


def data_folder(name: str, root: Path | None, holds: str) -> Path:
    """Return the folder that --data names.

    Args:
        name: The benchmark.
        root: The folder.
        holds: What it should hold, for the message.

    Returns:
        The folder.

    Raises:
        ConfigError: If none was given.
        DataError: If there is no such folder.
    """
    if root is None:
        raise ConfigError(f"{name} is read from a folder of yours: add --data DIR, with {holds}")
    return existing(Path(root).parent, (Path(root).name,)) if Path(root).name else Path(root)


def inner(root: Path, name: str) -> Path:
    """Return a folder inside another if it is there, and the outer one if it is not."""
    return root / name if is_folder(root / name) else root


def by_question_id(known: Mapping[str, Row], file: str) -> Join:
    """Make a join that adds what is known about a question; what the row has already stays.

    Args:
        known: What to add, by the question's id as a text.
        file: What it was read from, for the message.

    Returns:
        The join.
    """

    def join(row: Row) -> Row:
        identity = str(row.get("question_id", row.get("id")))
        if identity not in known:
            raise DataError(f"the {file} knows nothing about question {identity!r}")
        return {**known[identity], **row}

    return join


def _source(task: PublishedTask, instructions: Path, images: Path | None) -> Source:
    folder = existing(instructions, task.folders or (task.name,))
    pictures = Pictures(folder if images is None else images)
    files = {"train": existing(folder, task.train), "test": existing(folder, task.test)}
    rows = {"train": task.train_rows, "test": task.test_rows}
    known = {split: count for split, count in rows.items() if count is not None}
    annotation, join = _second_file(task, folder, pictures.root)
    return Source(
        task.name, files, pictures, task.scorer, task.max_new_tokens, known, annotation, join
    )


def _second_file(
    task: PublishedTask, folder: Path, images: Path
) -> tuple[Path | None, Join | None]:
    """Find and read what is known about the test rows besides; None where there is no such file."""
    if task.annotation is None:
        return None, task.add
    for place in (folder, images / folder.name):
        for name in task.annotation.files:
            if is_regular(place / name) or strange_kind(place / name):  # refused by read_json
                content = read_json(place / name)
                try:
                    return place / name, task.annotation.join(content)
                except (LookupError, TypeError, ValueError, AttributeError, DataError) as error:
                    raise DataError(
                        f"{place / name} cannot be the annotation file of {task.name} "
                        f"({type(error).__name__}: {error}); put the published file there"
                    ) from error
    if not task.annotation.required:
        return None, None
    raise DataError(
        f"task {task.name!r} is scored by {task.annotation.files[0]}, which is neither in {folder} "
        f"nor in {images / folder.name}; put the published file there"
    )
