"""Your own data: a folder for each task, or a YAML file that lists the tasks.

Folders are learned in the order of their names, and pictures' names are relative to the task's
folder. `validation` and `test` may be missing; without a test file, part of the training examples
is held out. A file may be .json, .jsonl or .parquet, with rows as in `undrift.data.instructions`::

    DATA/01-birds/    train.json, test.json, photos/0001.jpg ...
    DATA/02-charts/   train.jsonl ...
    DATA/03-forms/    train/, test/: datasets saved by the library `datasets`, pictures inside

With a file DATA/tasks.yaml (or --data some/file.yaml), what it lists is learned in its order. Paths
are relative to that file::

    - name: birds
      train: birds/train.json
      test: birds/test.json      # optional, and so is validation
      images: pictures           # what pictures' names are relative to; the YAML file's folder
      scorer: letter             # exact, unless given
      max_new_tokens: 8          # 128, unless given
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from undrift.data.bars import bar
from undrift.data.bounded_yaml import MAX_BYTES, parse_yaml
from undrift.data.files import BadRow, Pictures, existing
from undrift.data.instructions import read_examples
from undrift.data.messages import is_dataset
from undrift.data.published import data_folder, fingerprint
from undrift.data.sources import Lost, Source
from undrift.data.subset import place
from undrift.data.types import Benchmark, Example, Task
from undrift.errors import ConfigError, DataError, unknown
from undrift.untrusted import is_folder, is_regular, read_text, strange_kind, why

LIST = "tasks.yaml"
_PATHS = ("train", "validation", "test", "images")
_KINDS = {int: "whole number", str: "text"}
_SUFFIXES = (".json", ".jsonl", ".parquet")
_SPLITS = {
    "train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",),
}  # fmt: skip


@dataclass(frozen=True)
class OwnTask:
    """One task of yours, with the files it is read from.

    Args:
        name: The task's name.
        train: The training file.
        images: What the pictures' names are relative to.
        validation: Examples to choose settings on.
        test: Examples that are measured; without it a part of `train` is held out.
        scorer: A name in `undrift.scoring.SCORERS`.
        max_new_tokens: How long an answer may get.
    """

    name: str
    train: Path
    images: Path
    validation: Path | None = None
    test: Path | None = None
    scorer: str = "exact"
    max_new_tokens: int = 128

    def source(self) -> Source:
        """Return the same as every benchmark gives it."""
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        there = {split: file for split, file in files.items() if file is not None}
        return Source(self.name, there, Pictures(self.images), self.scorer, self.max_new_tokens)


def benchmark(
    root: Path | None = None,
    *,
    progress: bool = True,
    held_out: float = 0.1,
    seed: int = 0,
    bad: list[BadRow] | None = None,
) -> Benchmark:
    """Load your own data.

    Args:
        root: The folder that --data names, or a YAML file.
        progress: Show a bar.
        held_out: Which share of the training examples is asked where a task has no test file.
        seed: Another seed holds out others.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The benchmark, with an order "reversed".

    Raises:
        ConfigError: If no folder is given, or if the list of tasks cannot be used.
        DataError: If a folder or file is missing, or a row cannot be used.
    """
    with bar(sources(root), "reading your data", shown=progress) as found:
        tasks = [read_own(source, held_out=held_out, seed=seed, bad=bad) for source in found]
    orders = {"reversed": tuple(task.name for task in reversed(tasks))}
    terms = "your own data: undrift knows nothing of its terms"
    digest = fingerprint(tasks, _list_file(root).parent)
    return Benchmark("folder", "own", tuple(tasks), terms, orders, digest)


def sources(
    root: Path | None = None, *, only: Sequence[str] | None = None, lost: Lost | None = None
) -> list[Source]:
    """Find the files of your tasks.

    Args:
        root: The folder that --data names, or a YAML file.
        only: Names of the wanted tasks; all if None.
        lost: Stays as it is: a list of tasks that names what is not there is a mistake in whole.

    Returns:
        The tasks' files, in their order.

    Raises:
        ConfigError: If no folder is given, or if the list of tasks cannot be used.
        DataError: If a folder or file is missing.
        UnknownName: If there is no task of a name in `only`.
    """
    file = _list_file(root)
    own = list(_listed(file) if is_regular(file) else _found(file.parent))
    if not own:
        raise DataError(
            f"{file.parent} holds no task; expected folders with a train.json, or {LIST}"
        )
    for wanted in only or ():
        if wanted not in {task.name for task in own}:
            raise unknown("task", wanted, [task.name for task in own])
    return [task.source() for task in own if only is None or task.name in only]


def read_own(
    source: Source, *, held_out: float, seed: int, bad: list[BadRow] | None = None
) -> Task:
    """Read one task of yours.

    Args:
        source: Its files.
        held_out: Which share of the training examples is asked if there is no test file.
        seed: Another seed holds out others.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The task.

    Raises:
        DataError: If a file or a row cannot be used.
        ConfigError: If `held_out` is not between 0 and 1.
    """
    files, pictures = source.files, source.pictures
    train = read_examples(files["train"], pictures, number_repeats=True, bad=bad)
    validation, test = (
        read_examples(files[split], pictures, bad=bad) if split in files else ()
        for split in ("validation", "test")
    )
    if "test" not in files:
        train, test = hold_out(train, held_out, seed, pictures.root)
    return Task(source.name, train, validation, test, source.scorer, source.max_new_tokens)


def hold_out(
    examples: Sequence[Example], share: float, seed: int, images: Path
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split examples in two, those with the same pictures on the same side.

    Questions about one picture would give each other away. A hash of the pictures' names decides,
    and for text alone one of the ids, without the number of the turn.

    Args:
        examples: All of them.
        share: Which share to hold out, in (0, 1); rounded up to whole groups.
        seed: Another seed is another split.
        images: The part of the pictures' paths that does not count.

    Returns:
        The examples to keep and those held out, each in the order given.

    Raises:
        ConfigError: If the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ConfigError(f"held_out is {share}; expected more than 0 and less than 1")
    start = f"{images}{os.sep}"
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        names = [os.fspath(path).removeprefix(start) for path in example.images]
        key = "|".join(names) or example.id.partition("#")[0]
        groups.setdefault(key, []).append(number)
    out: set[int] = set()
    for group in sorted(groups, key=lambda group: (place(group, seed), group)):
        if len(out) >= max(1, round(share * len(examples))):
            break
        out.update(groups[group])
    kept = tuple(example for number, example in enumerate(examples) if number not in out)
    return kept, tuple(examples[number] for number in sorted(out))


def _list_file(root: Path | None) -> Path:
    """The list of tasks, whether it is there or not; it lies in the folder with the data."""
    given = data_folder("folder", root, f"a folder for each task, or a {LIST}")
    file = given if is_regular(given) else given / LIST
    if kind := strange_kind(file):
        raise ConfigError(f"the list of tasks {file} is {kind}; expected a file")
    return file


def _found(root: Path) -> Iterable[OwnTask]:
    """Tasks of a folder of folders; a folder without any rows (of pictures only) is none."""
    for folder in sorted(path for path in root.iterdir() if is_folder(path)):
        found = {split: next(iter(_rows(folder, split)), None) for split in _SPLITS}
        if not folder.name.startswith(".") and any(
            path.suffix in _SUFFIXES or is_dataset(path) for path in folder.iterdir()
        ):
            train = found["train"] or existing(folder, [f"train{suffix}" for suffix in _SUFFIXES])
            yield OwnTask(folder.name, train, folder, found["validation"], found["test"])


def _rows(folder: Path, split: str) -> Iterable[Path]:
    """What holds the rows of a split: files, or datasets that `datasets` has saved."""
    for stem in _SPLITS[split]:
        files = (folder / (stem + suffix) for suffix in _SUFFIXES)
        yield from (file for file in files if is_regular(file) or strange_kind(file))
        if is_dataset(folder / stem):
            yield folder / stem


def _listed(file: Path) -> Iterable[OwnTask]:
    """Tasks of a YAML file."""
    try:
        rows = parse_yaml(read_text(file, MAX_BYTES), "it")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {why(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file} should hold a list of tasks, each with a name and a train file")
    known = [field.name for field in fields(OwnTask)]
    for number, row in enumerate(rows, 1):
        for key in row:
            if key not in known:
                raise unknown(f"key of task {number} in {file}:", str(key), known)
            kind = int if key == "max_new_tokens" else str
            if type(row[key]) is not kind:
                raise ConfigError(f"{key} of task {number} in {file} is no {_KINDS[kind]}")
        for key in ("name", "train"):
            if key not in row:
                raise ConfigError(f"task {number} in {file} has no {key}")
        given: dict[str, Any] = {"images": file.parent}
        for key, value in row.items():
            given[key] = existing(file.parent, (value,)) if key in _PATHS else value
        yield OwnTask(**given)
