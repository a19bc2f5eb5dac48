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
      test_images: scans         # and those of test, if they are others
      scorer: letter             # exact, unless given
      max_new_tokens: 8          # 128, unless given
      booleans: yes-no           # true and false are Yes and No; they are refused, unless given
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from undrift.bounded_yaml import MAX_BYTES, parse_yaml
from undrift.data.instructions import Lost, TaskFiles
from undrift.data.picture_folder import PictureFolder, existing, existing_path
from undrift.data.progress_bar import bar
from undrift.data.published_benchmark import benchmark_of, data_folder
from undrift.data.row_files import (
    SUFFIXES,
    BadRow,
    first_parts,
    is_dataset,
    is_dataset_dict,
    parts_of,
    stem,
)
from undrift.data.row_layouts import AnswerReader
from undrift.data.types import Benchmark, chosen
from undrift.errors import ConfigError, DataError, unknown
from undrift.untrusted import is_folder, is_regular, read_text, strange_kind, why

LIST = "tasks.yaml"

_YAML = (".yaml", ".yml")
_PATHS = ("train", "validation", "test", "images", "test_images")
_KINDS = {int: "whole number", str: "text"}
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}
_PICTURES = frozenset(
    ".jpg .jpeg .jfif .png .gif .bmp .tif .tiff .webp .heic .heif .avif .jp2 .ppm .pgm".split()
)


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
        own = [own_task(path, name=path.name) for path in first_parts(_rows_by_suffix(place))]
    if not own and not lost:
        raise DataError(
            f"{place} holds no task; expected folders with a train.json (or .jsonl, .csv, .tsv, "
            f".parquet, a dataset), or {LIST}"
        )
    pictures = None if images is None else existing_path(Path(images))
    settings = _without_none(scorer=scorer, booleans=booleans, images=pictures)
    return [replace(task, **settings).source() for task in chosen(own, only)]


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
    inner = [] if is_one_task(place) else _inner_folders(place)
    folders = [folder for folder in inner if folder.name not in lost]
    return [
        (own[folder].name if folder in own else "", path)
        for folder in (place, *folders)
        for where in dict.fromkeys((folder, rows_folder(folder)))
        for path in _unread_in(where, read)
    ]


# ------------------------------------------------------------ tasks


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
        booleans: "yes-no" to read true and false as Yes and No.
        test_images: What those of `test` are relative to, where it is another folder.
    """

    name: str
    train: Path
    images: Path
    validation: Path | None = None
    test: Path | None = None
    scorer: str = "exact"
    max_new_tokens: int = 128
    booleans: str = ""
    test_images: Path | None = None

    def source(self) -> TaskFiles:
        """Return the same as every benchmark gives it."""
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        return TaskFiles(
            self.name,
            {split: file for split, file in files.items() if file is not None},
            PictureFolder(self.images),
            self.scorer,
            self.max_new_tokens,
            answers=AnswerReader(self.scorer, self.booleans),
            test_pictures=self.test_images and PictureFolder(self.test_images),
        )


def own_task(
    data: Path, *, name: str | None = None, images: Path | None = None, **settings: Any
) -> OwnTask:
    """Make a task of one file, of a saved dataset or DatasetDict, or of a task's folder.

    Args:
        data: The file or folder.
        name: The task's name; that of the file or folder if not given.
        images: What the pictures' names are relative to; the task's folder, or that of the file.
            Those of a `test` that is given are relative to its own folder.
        **settings: Further fields of `OwnTask`; what is None counts as not given.

    Returns:
        The task.

    Raises:
        DataError: If there are no such rows.
    """
    data = existing_path(data)
    folder = is_folder(data) and not is_dataset(data)
    if folder:
        found, place, called = splits_in(data), data, data.resolve().name
    else:
        found, place, called = {"train": data}, data.parent, data.stem
    given = _without_none(**settings)
    if images is None and "test" in given:
        given["test_images"] = given["test"].parent
    return OwnTask(name or called, images=images or place, **{**found, **given})


def test_beside(data: Path) -> Path | None:
    """Find the test questions that lie beside a training file.

    Args:
        data: What was given; looked beside is a file (or saved dataset) of train's names only.

    Returns:
        What holds the rows of test there; None if nothing does.

    Raises:
        DataError: If two do.
    """
    given = existing_path(data)
    is_file = is_regular(given) or is_dataset(given)
    if not is_file or stem(given) not in _SPLITS["train"]:
        return None
    several = _of_split(given.parent, "test")
    if len(several) > 1:
        names = " and ".join(path.name for path in several)
        raise DataError(f"{given.parent} holds {names}; say with --test which of them are asked")
    return several[0] if several else None


def _without_none(**settings: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def is_one_task(place: Path) -> bool:
    """Tell whether a folder is one task's, with its rows right in it, or a saved DatasetDict."""
    return is_dataset_dict(place) or bool(_of_split(rows_folder(place), "train"))


def own_tasks(place: Path, lost: Lost | None) -> Iterator[OwnTask]:
    """Find tasks.

    Args:
        place: A YAML list, a file of rows, a task's folder, or a folder of such.
        lost: Receives the folders whose files cannot be used; without it, the first is raised.

    Yields:
        The tasks, in their order.

    Raises:
        ConfigError: If the list cannot be used.
        DataError: If a file is missing, or a folder can be meant in two ways.
    """
    if is_regular(place) and place.suffix.lower() in _YAML:
        yield from _listed(place)
        return
    if not is_folder(place) or is_dataset(place):
        yield own_task(place)
        return
    own_rows = rows_folder(place)
    folders = [path for path in _inner_folders(place) if path != own_rows and _has_rows(path)]
    if is_one_task(place):
        if folders:
            raise DataError(
                f"{place} holds rows of train, and tasks' folders as well ({folders[0].name}); "
                "give the path of one of them, or put the rows into a folder of their own"
            )
        yield own_task(place)
        return
    for folder in folders:
        try:
            yield own_task(folder)
        except DataError as error:
            if lost is None:
                raise
            lost[folder.name] = str(error)


def _listed(file: Path) -> Iterator[OwnTask]:
    """Tasks of a YAML file."""
    try:
        rows = parse_yaml(read_text(file, MAX_BYTES), f"cannot read {file}: it")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {why(error)}") from error
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
        paths = {key: existing(file.parent, (row[key],)) for key in row if key in _PATHS}
        given = {"images": file.parent} | row | paths
        if is_folder(given["train"]) and not is_dataset(given["train"]):
            given = splits_in(given.pop("train")) | given
        yield OwnTask(**given)


# ------------------------------------------------------------ files of a task


def rows_folder(folder: Path) -> Path:
    """Return where a task's rows are: right in its folder, or in `data`, as the Hub has parts."""
    inner = folder / "data"
    if not is_folder(inner) or any(_of_split(folder, split) for split in _SPLITS):
        return folder
    parts = [path for path in _of_split(inner, "train") if "-of-" in path.name]
    return inner if parts else folder


def splits_in(folder: Path) -> dict[str, Path]:
    """Find what holds the rows of each split in a task's folder, or in a saved DatasetDict.

    Args:
        folder: The folder.

    Returns:
        A file or a saved dataset for "train", and for "validation" and "test" if they are there.

    Raises:
        DataError: If nothing holds the rows of train, or two things those of one split.
    """
    found: dict[str, Path] = {}
    folder = rows_folder(folder)
    for split in _SPLITS:
        several = _of_split(folder, split)
        if len(several) == 1:
            found[split] = several[0]
        elif several:
            names = " and ".join(path.name for path in several)
            raise DataError(
                f"{folder} holds {names}, and only one can be the rows of {split}; leave one, or "
                "give the others another place"
            )
    if "train" not in found:
        existing(folder, [f"train{suffix}" for suffix in SUFFIXES])
    return found


def _inner_folders(place: Path) -> list[Path]:
    """The folders in one that may be a task's, by name."""
    inner = [path for path in sorted(place.iterdir()) if is_folder(path) and path.name[0] != "."]
    return [path for path in inner if not is_dataset(path)]


def _has_rows(folder: Path) -> bool:
    """Tell whether a folder looks like a task's: pictures alone do not make one."""
    folder = rows_folder(folder)
    named = is_dataset_dict(folder) or any(_of_split(folder, split) for split in _SPLITS)
    return bool(named or _rows_by_suffix(folder) or any(map(is_dataset, folder.iterdir())))


def _rows_by_suffix(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]


def _unread_in(folder: Path, read: set[Path]) -> Iterator[Path]:
    """Find the files and datasets right in a folder that nothing reads; pictures are none."""
    for path in sorted(folder.iterdir()):
        ordinary = is_regular(path) and path.suffix.lower() not in _PICTURES
        strange = strange_kind(path) or (is_folder(path) and is_dataset(path))
        known = path in read or path.name[0] == "." or path.name == "dataset_dict.json"
        if (ordinary or strange) and not known:
            yield path


def is_data(path: Path) -> bool:
    """Tell whether a file that is not read was likely meant to be."""
    return stem(path) in {name for names in _SPLITS.values() for name in names} or (
        path.suffix.lower() not in ("", ".md", ".rst", ".py", ".sh", ".log", ".pdf", ".html")
    )


def _of_split(folder: Path, split: str) -> list[Path]:
    """What may hold the rows of a split; a file of another suffix only where there is no other."""
    named = [path for path in sorted(folder.iterdir()) if stem(path) in _SPLITS[split]]
    files = [path for path in named if is_regular(path) or strange_kind(path)]
    known = [path for path in files if path.suffix.lower() in SUFFIXES]
    others = [path for path in files if path.suffix.lower() not in _PICTURES]
    files = first_parts(known or others)
    return [*files, *(path for path in named if is_folder(path) and is_dataset(path))]
