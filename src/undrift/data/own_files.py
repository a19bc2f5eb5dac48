"""Which files of your own folders hold the rows of which split, and which are not read at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from undrift.data.files import existing
from undrift.data.formats import SUFFIXES, first_parts, stem
from undrift.data.formats.saved import is_dataset, is_dataset_dict
from undrift.errors import DataError
from undrift.untrusted import is_folder, is_regular, strange_kind

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


def has_train(folder: Path) -> bool:
    """Tell whether a folder is one task's, with its rows of train right in it."""
    return bool(_of_split(rows_folder(folder), "train"))


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
