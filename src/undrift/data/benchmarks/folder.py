"""Your own data: a folder for each task, one task's folder or file, or a YAML list of tasks.

Folders are learned in the order of their names, and pictures' names are relative to the task's
folder. `validation` and `test` may be missing; without test rows, part of the training examples is
held out. docs/data.md shows every format and layout of rows that is read::

    DATA/01-birds/    train.json, test.json, photos/0001.jpg ...
    DATA/02-charts/   train.csv ...
    DATA/03-signs/    train-00000-of-00002.parquet ..., or these in data/, as on the Hub
    DATA/04-forms/    train/, test/: saved by the library `datasets`, pictures inside

With a file DATA/tasks.yaml (or --data some/file.yaml), what it lists is learned in its order. Paths
are relative to that file::

    - name: birds
      train: birds/train.json
      test: birds/test.json      # optional, and so is validation
      images: pictures           # what pictures' names are relative to; the YAML file's folder
      scorer: letter             # exact, unless given
      max_new_tokens: 8          # 128, unless given
      booleans: yes-no           # true and false are Yes and No; they are refused, unless given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from undrift.data.instructions import Lost, TaskFiles
from undrift.data.own_tasks import OwnTask, is_one_task, own_task, own_tasks, rows_folder, unread_in
from undrift.data.parquet import is_dataset
from undrift.data.picture_folder import existing_path
from undrift.data.progress_bar import bar
from undrift.data.published_benchmark import benchmark_of, data_folder
from undrift.data.row_files import SUFFIXES, BadRow, first_parts, parts_of
from undrift.data.subset import hold_out
from undrift.data.types import Benchmark, chosen
from undrift.errors import ConfigError, DataError
from undrift.untrusted import is_folder, is_regular, strange_kind

__all__ = ["OwnTask", "benchmark", "hold_out", "own_task", "sources", "unread"]

LIST = "tasks.yaml"


def benchmark(
    root: Path | None = None,
    *,
    progress: bool = True,
    held_out: float = 0.1,
    seed: int = 0,
    images: Path | str | None = None,
    scorer: str | None = None,
    booleans: str | None = None,
    bad: list[BadRow] | None = None,
) -> Benchmark:
    """Load your own data.

    Args:
        root: What --data names: a folder of tasks, a task's folder or file, or a YAML file.
        progress: Show a bar.
        held_out: Which share of the training examples is asked where a task has no test file.
        seed: Another seed holds out others.
        images: What pictures' names are relative to, in the place of the tasks' own folders.
        scorer: How answers are scored, in the place of the tasks' own rules.
        booleans: "yes-no" to read true and false as Yes and No.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The benchmark, with an order "reversed".

    Raises:
        ConfigError: If no folder is given, or if the list of tasks cannot be used.
        DataError: If a folder or file is missing, or a row cannot be used.
    """
    there = sources(root, images=images, scorer=scorer, booleans=booleans)
    with bar(there, "reading your data", shown=progress) as found:
        tasks = [source.task(bad, held_out=held_out, seed=seed) for source in found]
    terms = "your own data: undrift knows nothing of its terms"
    given = _place_of(root)
    pictures = given if is_folder(given) else given.parent
    return benchmark_of(tasks, pictures, "folder", "own", terms)


def sources(
    root: Path | None = None,
    *,
    only: Sequence[str] | None = None,
    lost: Lost | None = None,
    images: Path | str | None = None,
    scorer: str | None = None,
    booleans: str | None = None,
) -> list[TaskFiles]:
    """Find the files of your tasks.

    Args:
        root: What --data names.
        only: Names of the wanted tasks; all if None.
        lost: Receives the folders whose files cannot be used; without it, the first is raised. A
            list of tasks that names what is not there is a mistake in whole. With it, the files of
            a folder without any task are given as well, each by itself.
        images: See `benchmark`.
        scorer: See `benchmark`.
        booleans: See `benchmark`.

    Returns:
        The tasks' files, in their order.

    Raises:
        ConfigError: If no folder is given, or if the list of tasks cannot be used.
        DataError: If a folder or file is missing.
        UnknownName: If there is no task of a name in `only`.
    """
    place = _place_of(root)
    own = list(own_tasks(place, lost))
    if not own and not lost and lost is not None and is_folder(place):  # rows all the same
        files = [path for path in place.iterdir() if path.suffix.lower() in SUFFIXES]
        own = [own_task(path, name=path.name) for path in first_parts(files)]
    if not own and not lost:
        raise DataError(
            f"{place} holds no task; expected folders with a train.json (or .jsonl, .csv, .tsv, "
            f".parquet, a dataset), or {LIST}"
        )
    own = chosen(own, only)
    settings = {"scorer": scorer, "booleans": booleans}
    settings |= {"images": None if images is None else existing_path(Path(images))}
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    return [replace(task, **given).source() for task in own]


def _place_of(root: Path | None) -> Path:
    """What --data names; the list of tasks if there is one in a folder."""
    given = data_folder("folder", root, f"a folder for each task, or a {LIST}")
    file = given / LIST if is_folder(given) else given
    if kind := strange_kind(file):
        raise ConfigError(f"the list of tasks {file} is {kind}; expected a file")
    return file if is_regular(file) else given


def unread(root: Path | None = None) -> list[tuple[str, Path]]:
    """Name the files in the tasks' folders that are not read, for whoever thinks they are.

    Args:
        root: What --data names.

    Returns:
        The task's name (empty if there is none) and the file; nothing where tasks are listed.
    """
    place = _place_of(root)
    if not is_folder(place) or is_dataset(place):
        return []
    lost: Lost = {}
    try:
        own = {task.images: task for task in own_tasks(place, lost)}
    except DataError:  # told as an error of its own
        return []
    files = [path for t in own.values() for path in (t.train, t.validation, t.test) if path]
    read = {part for path in files for part in parts_of(path)}
    inner = [] if is_one_task(place) else sorted(filter(is_folder, place.iterdir()))
    folders = [f for f in inner if f.name[0] != "." and f.name not in lost and not is_dataset(f)]
    return [
        (own[folder].name if folder in own else "", path)
        for folder in (place, *folders)
        for where in dict.fromkeys((folder, rows_folder(folder)))
        for path in unread_in(where, read)
    ]
