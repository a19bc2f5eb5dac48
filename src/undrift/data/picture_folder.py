"""Where pictures are below a folder, what is there where a file is missing, where the cache is."""

from __future__ import annotations

import functools
import os
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

from undrift.errors import DataError, brief
from undrift.untrusted import is_folder, is_regular, strange_kind, why

_FILE, _LINK, _OTHER = range(3)
_LONGEST = 4096  # characters of a path; no system takes longer ones
_LONGEST_NAME = 255
_WEB = ("http://", "https://", "s3://", "gs://", "ftp://")
_NEAREST = 100  # missing pictures for which the nearest name is looked for


def cache_folder() -> Path:
    """Where drawn pictures, kept pictures and features go: $UNDRIFT_CACHE or ~/.cache/undrift."""
    return Path(os.environ.get("UNDRIFT_CACHE") or Path.home() / ".cache" / "undrift")


def existing(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of several files or folders that is there.

    Args:
        folder: Where it should be.
        names: What it may be called, the most wanted first.

    Returns:
        Its path.

    Raises:
        DataError: If there is none; the message offers the nearest name.
    """
    for name in names:
        place = folder / name
        if is_regular(place) or is_folder(place):
            return place
        if kind := strange_kind(place):
            raise DataError(f"{place} is {kind}; expected a file or a folder")
    others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
    raise DataError(f"{folder / names[0]} does not exist{others}{_instead(folder / names[0])}")


def existing_path(path: Path) -> Path:
    """Return a path that is there; a DataError offers the nearest name otherwise."""
    return existing(path.parent, (path.name,)) if path.name else path


class PictureFolder:
    """The picture files below one folder, found by the names that rows give them.

    A name is a path relative to the folder, or an absolute one that leads into it, and is taken as
    it stands: a picture is never looked for elsewhere, since two data sets may both hold a
    `000001.jpg`. An accented letter may be written in one character or in two, and where there is
    no file of a name, that name without spaces around it or `%20` in it is taken. No picture is
    opened; each folder is listed once, which costs far less than asking for every file.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()
        self._listed: dict[Path, dict[str, int]] = {}
        self._found: dict[str, Path] = {}
        self._names = functools.cache(_sorted_names)
        self._missing = 0

    def find(self, name: str) -> Path:
        """Return the file of a picture.

        Args:
            name: A path with slashes, see `place`.

        Returns:
            The path below `root`.

        Raises:
            DataError: If it leads out of `root` (see `place`) or if there is no such file; the
                message names the nearest one.
        """
        if (known := self._found.get(name)) is not None:
            return known
        path = self.place(name)
        if not self._has(path):
            others = (name.strip(), unquote(name.strip()))
            places = (self.place(other) for other in others if other != name)
            path = next(filter(self._has, places), path)
        if not self._has(path):
            if what := "a folder" if is_folder(path) else strange_kind(path):
                raise DataError(f"there is no picture {path}: it is {what}; expected a file")
            self._missing += 1  # comparing names is slow, and whole folders may be missing
            nearest = _instead(path, self._names) if self._missing <= _NEAREST else ""
            raise DataError(f"there is no picture {path}{nearest}")
        self._found[name] = path
        return path

    def _has(self, path: Path) -> bool:
        kind = self._entries(path.parent).get(path.name)
        return kind == _FILE or (kind == _LINK and is_regular(path))

    def place(self, name: str) -> Path:
        """Return where a picture should be, whether it is there or not.

        Args:
            name: A path with slashes: relative to `root`, perhaps with `./` before it, or an
                absolute one that leads into `root`, perhaps with `file://` before it.

        Returns:
            The path below `root`.

        Raises:
            DataError: If it is a web address, or leads out of `root`: by `..`, as an absolute path,
                or through a link.
        """
        if (address := name[:8].lower()).startswith(_WEB):
            raise DataError(
                f"the picture {brief(name)} is a web address, and nothing is fetched; download it "
                f"into {self.root} and give its name"
            )
        given = unquote(name[7:]) if address.startswith("file://") else name
        parts = self._inner(given)
        impossible = "\0" in given or len(given) > _LONGEST or not _encodes(given)
        if impossible or not parts or ".." in parts:
            raise DataError(
                f"the picture's name {brief(name)} is not a path inside {self.root}; expected one "
                "that is relative to that folder, without '..', or an absolute one that leads into "
                "it (--images DIR, or images: in tasks.yaml, names another folder)"
            )
        path = self.root.joinpath(*parts)
        if not given.isascii():
            path = self._as_written(parts)
        if self._entries(path.parent).get(path.name) == _LINK:
            self._inside(path)
        return path

    def _inner(self, name: str) -> list[str]:
        """The parts of a name relative to the root; none if it is an absolute one of elsewhere."""
        if name.startswith("/"):
            whole = PurePosixPath(name)
            roots = map(PurePosixPath, (self.root.absolute(), self._real))
            inside = next((root for root in roots if whole.is_relative_to(root)), None)
            return [] if inside is None else [*whole.relative_to(inside).parts]
        if (":" in name or "\\" in name) and PureWindowsPath(name).anchor:
            return []
        return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]

    def _as_written(self, parts: Sequence[str]) -> Path:
        """Follow a name whose accents may be written in another way than those of the files."""
        path = self.root
        for part in parts:
            there = self._entries(path)
            if part not in there:
                composed = normalize("NFC", part)
                part = next((name for name in there if normalize("NFC", name) == composed), part)
            path /= part
        return path

    def _entries(self, folder: Path) -> dict[str, int]:
        """Names in a folder, each with its kind; nothing where there is no folder."""
        if folder not in self._listed:
            self._inside(folder)
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name: _kind(entry) for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                self._listed[folder] = {}
            except OSError as error:
                raise DataError(f"cannot list {folder}: {error}") from error
        return self._listed[folder]

    def _inside(self, path: Path) -> None:
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links, a name too long
            raise DataError(f"cannot follow {path}: {error}") from error
        if not real.is_relative_to(self._real):
            raise DataError(
                f"{path} is a link that leads out of {self.root}, to {real}; copy or mount what "
                "it points to inside that folder"
            )


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return _LINK
    return _FILE if entry.is_file(follow_symlinks=False) else _OTHER


def _encodes(name: str) -> bool:
    """Tell whether a text can be the name of a file."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _sorted_names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 (names are wanted, not paths)


def _instead(path: Path, names: Any = _sorted_names) -> str:
    """Say what there is in place of a path that does not exist."""
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    while not is_folder(path.parent) and path.parent != path:
        path = path.parent
    try:
        there = names(path.parent)
    except OSError as error:
        return f"; and {path.parent} cannot be listed ({why(error)})"
    name = path.name[:_LONGEST_NAME]
    at = bisect(there, name)
    near = there[max(0, at - 50) : at + 50]  # a folder may hold a hundred thousand pictures
    missing = f"; {name!r} is missing in {path.parent},"
    if not near:
        return f"{missing} which is empty"
    best = process.extractOne(
        name, near, scorer=Indel.normalized_similarity, processor=str.casefold
    )
    return f"{missing} where the nearest name is {best[0]!r}"
