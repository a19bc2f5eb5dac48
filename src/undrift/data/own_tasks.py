"""Your own tasks: found in folders by the names of their files, or listed in a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from undrift.data.bounded_yaml import MAX_BYTES, parse_yaml
from undrift.data.instructions import Lost, TaskFiles
from undrift.data.parquet import is_dataset, is_dataset_dict
from undrift.data.picture_folder import PictureFolder, existing, existing_path
from undrift.data.row_files import SUFFIXES, first_parts, stem
from undrift.data.row_layouts import AnswerReader
from undrift.errors import ConfigError, DataError, unknown
from undrift.untrusted import is_folder, is_regular, read_text, strange_kind, why

_YAML = (".yaml", ".yml")
_PATHS = ("train", "validation", "test", "images")
_KINDS = {int: "whole number", str: "text"}
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}
_PICTURES = frozenset(
    ".jpg .jpeg .jfif .png .gif .bmp .tif .tiff .webp .heic .heif .avif .jp2 .ppm .pgm".split()
)
_PART_OF_A_DICT = "dataset_dict.json"
_ON_THE_HUB = "data"


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
    """

    name: str
    train: Path
    images: Path
    validation: Path | None = None
    test: Path | None = None
    scorer: str = "exact"
    max_new_tokens: int = 128
    booleans: str = ""

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
        )


def own_task(
    data: Path, *, name: str | None = None, images: Path | None = None, **settings: Any
) -> OwnTask:
    """Make a task of one file, of a saved dataset or DatasetDict, or of a task's folder.

    Args:
        data: The file or folder.
        name: The task's name; that of the file or folder if not given.
        images: What the pictures' names are relative to; the task's folder, or that of the file.
        **settings: Further fields of `OwnTask`; what is None counts as not given.

    Returns:
        The task.

    Raises:
        DataError: If there are no such rows.
    """
    data = existing_path(data)
    folder = is_folder(data) and not is_dataset(data)
    given: dict[str, Any] = {**splits_in(data)} if folder else {"train": data}
    given |= {key: value for key, value in settings.items() if value is not None}
    place = (data if folder else data.parent) if images is None else images
    called = data.resolve().name if folder else data.stem
    return OwnTask(name or called, images=place, **given)


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
    inner = sorted(path for path in place.iterdir() if is_folder(path) and path.name[0] != ".")
    own_rows = rows_folder(place)
    inner = [path for path in inner if path != own_rows]
    folders = [path for path in inner if not is_dataset(path) and has_rows(path)]
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
        if is_folder(given["train"]) and not is_dataset(given["train"]):
            given = splits_in(given["train"]) | {k: v for k, v in given.items() if k != "train"}
        yield OwnTask(**given)


# ------------------------------------------------------------ files of a task


def rows_folder(folder: Path) -> Path:
    """Return where a task's rows are: right in its folder, or in `data`, as the Hub has parts."""
    inner = folder / _ON_THE_HUB
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


def has_rows(folder: Path) -> bool:
    """Tell whether a folder looks like a task's: pictures alone do not make one."""
    folder = rows_folder(folder)
    if is_dataset_dict(folder) or any(_of_split(folder, split) for split in _SPLITS):
        return True
    return any(path.suffix.lower() in SUFFIXES or is_dataset(path) for path in folder.iterdir())


def unread_in(folder: Path, read: set[Path]) -> Iterator[Path]:
    """Find the files and datasets right in a folder that nothing reads; pictures are none of them.

    Args:
        folder: The folder.
        read: What is read.

    Yields:
        The others, by name.
    """
    for path in sorted(folder.iterdir()):
        ordinary = is_regular(path) and path.suffix.lower() not in _PICTURES
        strange = strange_kind(path) or (is_folder(path) and is_dataset(path))
        known = path in read or path.name[0] == "." or path.name == _PART_OF_A_DICT
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
