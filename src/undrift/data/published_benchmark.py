"""Published benchmarks: their tables of tasks, how they are loaded, their test questions alone.

A benchmark's file states its tasks as `PublishedTask`s: the names of folders and files as they were
published, the published numbers of rows, and which public rule scores the answers.

To score answers, only the questions are read: no picture is looked for, and the training file need
not be there. `coin/REC` is the task as the benchmark calls it, `coin/Grounding` as
`undrift.scoring.TASKS` does; both are understood.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undrift.data.benchmarks import beside_benchmark
from undrift.data.instructions import Join, Lost, Row, TaskFiles, read_examples
from undrift.data.picture_folder import PictureFolder, existing, existing_path
from undrift.data.progress_bar import bar
from undrift.data.row_files import BadRow, read_json
from undrift.data.types import Benchmark, Example, Task, chosen
from undrift.errors import ConfigError, DataError, unknown
from undrift.untrusted import is_folder, is_regular, strange_kind

INSTRUCTIONS = ("Instructions_Original", "instructions", "domain", "")
"""Where in a benchmark's folder the tasks' folders are; `""` is the folder itself."""

_PICTURES = ("cl_dataset", "datasets", "", "..")  # where the pictures' folders are


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

    def files(self, instructions: Path, images: Path | None) -> TaskFiles:
        """Find the task's files; none is read but the second one about the test rows.

        Args:
            instructions: The folder of the tasks' folders.
            images: What the pictures' names are relative to; None for the task's folder.

        Returns:
            The files.

        Raises:
            DataError: If one is missing.
        """
        folder = existing(instructions, self.folders or (self.name,))
        pictures = PictureFolder(folder if images is None else images)
        files = {"train": existing(folder, self.train), "test": existing(folder, self.test)}
        rows = {"train": self.train_rows, "test": self.test_rows}
        known = {split: count for split, count in rows.items() if count is not None}
        second, join = self.second_file((folder, pictures.root / folder.name))
        return TaskFiles(
            self.name, files, pictures, self.scorer, self.max_new_tokens, known, second, join
        )

    def second_file(self, folders: Sequence[Path]) -> tuple[Path | None, Join | None]:
        """Find and read what is known about the test rows besides, if there is such a file.

        Args:
            folders: Where it may be.

        Returns:
            The file, and what adds to a row.

        Raises:
            DataError: If it cannot be used, or if it is required and missing.
        """
        if self.annotation is None:
            return None, self.add
        for path in (folder / name for folder in folders for name in self.annotation.files):
            if is_regular(path) or strange_kind(path):  # the latter is refused by its reader
                content = read_json(path)
                try:
                    return path, self.annotation.join(content)
                except (LookupError, TypeError, ValueError, AttributeError, DataError) as error:
                    raise DataError(
                        f"{path} cannot be the annotation file of {self.name} "
                        f"({type(error).__name__}: {error}); put the published file there"
                    ) from error
        if not self.annotation.required:
            return None, None
        raise DataError(
            f"task {self.name!r} is scored by {self.annotation.files[0]}, which is in none of "
            f"{', '.join(map(str, dict.fromkeys(folders)))}; put the published file there"
        )


@dataclass(frozen=True)
class PublishedBenchmark:
    """A benchmark that was published as LLaVA-style files; the pictures come from elsewhere.

    Args:
        name: The benchmark's name.
        licence: The terms, in words.
        holds: What the folder that --data names should hold, for the message.
        tasks: Its table, in the published order.
        instructions: The folder of the tasks' folders; where it is missing, they are in --data's.
        pictures: The folder that pictures' names are relative to, likewise; if empty, each task's.
        version: Which edition of the data it is.
        whole: Whether the folder of instructions must be there.
    """

    name: str
    licence: str
    holds: str
    tasks: tuple[PublishedTask, ...]
    instructions: str
    pictures: str = ""
    version: str = "published"
    whole: bool = False

    def benchmark(
        self,
        root: Path | None = None,
        *,
        progress: bool = True,
        only: Sequence[str] | None = None,
        bad: list[BadRow] | None = None,
    ) -> Benchmark:
        """Load the benchmark.

        Args:
            root: The folder that --data names.
            progress: Show a bar.
            only: Names of the tasks to load; all if None.
            bad: Receives the rows that cannot be used; without it, the first one is raised.

        Returns:
            The benchmark, with its tasks in the published order and an order "reversed". Its
            fingerprint is of the texts and the names of the pictures, not of their pixels.

        Raises:
            ConfigError: If no folder is given.
            DataError: If a folder or file is missing, or a row cannot be used.
        """
        with bar(self.sources(root, only=only), f"reading {self.name}", shown=progress) as found:
            tasks = [files.task(bad) for files in found]
        place = _inner(self._folder(root), self.pictures or self.instructions)
        return benchmark_of(tasks, place, self.name, self.version, self.licence)

    def sources(
        self,
        root: Path | None = None,
        *,
        only: Sequence[str] | None = None,
        lost: Lost | None = None,
    ) -> list[TaskFiles]:
        """Find the tasks' files; none is read but the second files about test rows.

        Args:
            root: The folder that --data names.
            only: Names of the wanted tasks, for those who have a part of the data; all if None.
            lost: Receives the tasks whose files cannot be found; without it, the first is raised.

        Returns:
            The tasks' files, in the published order.

        Raises:
            ConfigError: If no folder is given.
            DataError: If a folder or file is missing.
            UnknownName: If there is no task of a name in `only`.
        """
        folder = self._folder(root)
        if self.whole:
            instructions = existing(folder, (self.instructions,))
        else:
            instructions = _inner(folder, self.instructions)
        images = _inner(folder, self.pictures) if self.pictures else None
        found = []
        for task in chosen(self.tasks, only):
            try:
                found.append(task.files(instructions, images))
            except DataError as error:
                if lost is None:
                    raise
                lost[task.name] = str(error)
        return found

    def _folder(self, root: Path | None) -> Path:
        return data_folder(self.name, root, self.holds)


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
    return existing_path(Path(root))


def benchmark_of(
    tasks: Sequence[Task], pictures: Path, name: str, version: str, licence: str
) -> Benchmark:
    """Return the benchmark of tasks, with an order "reversed"; see `fingerprint` for `pictures`."""
    orders = {"reversed": tuple(task.name for task in reversed(tasks))}
    return Benchmark(name, version, tuple(tasks), licence, orders, fingerprint(tasks, pictures))


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


def _inner(root: Path, name: str) -> Path:
    """Return a folder inside another if it is there, and the outer one if it is not."""
    return root / name if is_folder(root / name) else root


# ------------------------------------------------------------ test questions alone


class Unseen(PictureFolder):
    """Pictures that nobody opens: any name is taken."""

    def find(self, name: str) -> Path:
        """Return where the picture would be."""
        return self.root / name


def find_published(name: str) -> PublishedTask:
    """Return a published task, such as `coin/ScienceQA`; an UnknownName offers the nearest."""
    benchmark = name.partition("/")[0]
    tasks = beside_benchmark(benchmark, "TASKS") or ()
    tasks = [task for task in tasks if isinstance(task, PublishedTask)]
    by_name = {f"{benchmark}/{task.name}": task for task in tasks}
    known = {task.scorer: task for task in tasks} | by_name
    if name not in known:
        raise unknown("published task", name, by_name)
    return known[name]


def questions_in(task: PublishedTask, root: Path) -> tuple[Example, ...]:
    """Read a task's test questions from where its benchmark lies.

    Args:
        task: From `find_published`.
        root: The benchmark's folder; or the folder of instructions in it, such as
            `Instructions_Diverse`, where a wording other than the original is wanted.

    Returns:
        The examples, with what the task's second file knows about them.

    Raises:
        DataError: If a file is missing, or a row cannot be used.
    """
    folders = task.folders or (task.name,)
    places = [root / inner for inner in INSTRUCTIONS]
    there = [place for place in places if any(is_folder(place / name) for name in folders)]
    folder = existing(there[0] if there else root, folders)
    beside = [folder, *(root / inner / folder.name for inner in _PICTURES)]
    return questions_of(task, existing(folder, task.test), beside)


def questions_of(
    task: PublishedTask, file: Path, beside: Sequence[Path] = ()
) -> tuple[Example, ...]:
    """Read a task's test questions from one file.

    Args:
        task: From `find_published`.
        file: The test file, as it was published.
        beside: Folders where the task's second file may be; the test file's own if empty.

    Returns:
        The examples.

    Raises:
        DataError: If a file is missing, or a row cannot be used.
    """
    _, join = task.second_file(beside or (file.parent,))
    return read_examples(file, Unseen(file.parent), join=join)


def questions_in_file(file: Path) -> tuple[Example, ...]:
    """Read the test questions of one's own data, in any format that `undrift run folder` reads."""
    return read_examples(file, Unseen(file.parent))
