"""What may be written and deleted: paths that a user gives, files that undrift has written."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from undrift.errors import RunDirError
from undrift.rundir.files import TEMPORARY, beside, sweep
from undrift.rundir.records import Record, read_record

_PAGE = b'<meta name="generator" content="undrift"'
_ANSWERS = r"on-\d+\.(jsonl|json|part)"
_REMEMBERED = r"(remembered\.json|history\.safetensors|answers\.jsonl)"
_ADAPTER = r"([^/]+/)?[^/]+\.(safetensors|json|md)"

OF_RUN: Mapping[str, str] = {
    "data.json": "",
    "manifest.json": "",
    "matrix.json": "",
    "general.json": "",
    "general": r"[a-z-]+\.(jsonl|part)",
    "remembered": _REMEMBERED,
    "SHA256SUMS": "",
    "report.html": "",
    "report-figures": r"[^/]+\.(svg|pdf)",
    "skipped.jsonl": "",
    "tasks": rf"\d+-[^/]+/(DONE|train\.jsonl|adapter/{_ADAPTER}|training/.+)",
    "eval": rf"after-\d+/{_ANSWERS}",
    "stream.json": "",
    "stream": rf"at-\d+/{_ANSWERS}",
    "pictures": r"\d+-[^/]+/\d+(-\d+)?\.webp",
    "live": r"\d+-[^/]+/.+",
    "diagnose": rf"([a-z]+\.json|adapters-\d+-\d+/[a-z]+\.json|answers[^/]*/[^/]+/{_ANSWERS})",
}
"""All that `undrift run`, `report` and `diagnose` write into a run's folder, by its name there; of
a folder, what the files in it are called."""

OF_LEARN: Mapping[str, str] = {
    "data.json": "",
    "manifest.json": "",
    "result.json": "",
    "SHA256SUMS": "",
    "remembered": _REMEMBERED,
    "train.jsonl": "",
    "skipped.jsonl": "",
    "training": r".+",
    "adapter": _ADAPTER,
    "eval": r"(before|after)/(\d+|guard)-[^/]+\.(jsonl|part)",
    "tests": r"\d+-[^/]+/(questions\.jsonl|pictures/[0-9a-f]{16}/[^/]+)",
    "live": r"\d+-[^/]+/.+",
    "report.html": "",
    "report-figures": OF_RUN["report-figures"],
    "pictures": r"(\d+|guard)-[^/]+/\d+(-\d+)?\.webp",
    "diagnose": OF_RUN["diagnose"],
}
"""Likewise of `undrift learn`."""


def refuse_links(root: Path, names: Iterable[str]) -> None:
    """Refuse to write `names` below `root` where a folder of them is a link to somewhere else."""
    for path in _below(root, names):
        if path.is_symlink() and path.is_dir():
            raise RunDirError(
                f"{path} is a link to another folder, {path.resolve()}, and only a folder's own "
                "content is written; put that folder itself in the place of the link"
            )


def refuse_strangers(root: Path, contents: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuse to delete what holds something that undrift has not written.

    Args:
        root: A folder.
        contents: What is written there, as in OF_RUN.
        names: Which of it is to be deleted.

    Raises:
        RunDirError: If something else is there; nothing was deleted.
    """
    known = [f"{name}/{inside}" if inside else name for name, inside in contents.items()]
    ours = re.compile("|".join(f"(?:{each})" for each in known))
    for path in _below(root, names):
        place = path.relative_to(root).as_posix()
        folder = path.is_dir() and not path.is_symlink()
        if not (folder or ours.fullmatch(place) or TEMPORARY in place):
            raise RunDirError(
                f"{path} was not written by undrift, so nothing is deleted; move it away, or "
                "choose another folder with --out"
            )


def claim_page(path: Path, figures: Path | None = None) -> None:
    """Refuse to write a page, or figures beside it, over what undrift has not written.

    Args:
        path: The page.
        figures: The folder of its figures, where they are written.

    Raises:
        RunDirError: If something else is there.
    """
    there = os.path.lexists(path)
    ours = path.is_file() and _PAGE in path.read_bytes()[:8192]
    if there and not ours:
        raise _in_the_way(path)
    if figures is not None and os.path.lexists(figures):
        if not there or figures.is_symlink() or not figures.is_dir():
            raise _in_the_way(figures)
        refuse_strangers(figures.parent, {figures.name: OF_RUN["report-figures"]}, [figures.name])


def claim_json(path: Path, kind: type[Record], *beside: Path) -> None:
    """Refuse to write a file of JSON, or files beside it, over what undrift has not written.

    Args:
        path: The file.
        kind: What undrift writes there.
        *beside: Files that are ours if this one is.

    Raises:
        RunDirError: If something else is there.
    """
    if os.path.lexists(path):
        try:
            read_record(path, kind)
        except RunDirError as error:
            raise _in_the_way(path) from error
        return
    for each in beside:
        if os.path.lexists(each):
            raise _in_the_way(each)


def _in_the_way(path: Path) -> RunDirError:
    return RunDirError(
        f"{path} is there, and was not written by undrift; move it away, or choose another place "
        "with --out"
    )


def _below(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Walk through files and folders without following a link."""
    for name in names:
        if os.path.lexists(root / name):
            yield root / name
        if not (root / name).is_symlink():
            for place, folders, files in os.walk(root / name):
                yield from (Path(place, inner) for inner in (*folders, *files))


def missing(path: Path) -> str:
    """Say that a path does not exist, and which name in its folder comes nearest."""
    lost = path
    while not os.path.isdir(lost.parent) and lost.parent != lost:  # noqa: PTH112 (never raises)
        lost = lost.parent
    try:
        names = sorted(os.listdir(lost.parent))  # noqa: PTH208 (names are wanted, not paths)
    except OSError:
        names = []
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(lost.name.casefold(), folded, n=1, cutoff=0.0)
    place = "here" if lost.parent == Path() else f"in {lost.parent}"
    what = "" if lost == path else f": there is no {lost.name!r} {place}"
    return f"{path} does not exist{what}" + (
        f"; the nearest name {place} is {folded[near[0]]!r}" if near else ""
    )


def check_writable(
    path: Path, *, file: bool = False, choose: str = "choose another place with --out"
) -> None:
    """Refuse what cannot be written, before anything is computed for it.

    A few bytes are written beside it and deleted. Nothing stays behind, and no folder is made. What
    killed processes have left in the folder for temporary files is cleared away.

    Args:
        path: What is going to be written; it need not exist.
        file: It is a file, not a folder.
        choose: What to do otherwise, for the message.

    Raises:
        RunDirError: If it cannot be written.
    """
    sweep(Path(tempfile.gettempdir()), deep=False)
    try:
        folder = path.parent if file and path.is_file() else path
        lost = []
        while not os.path.lexists(folder):
            lost.append(folder.name)
            folder = folder.parent
        if folder == path and file:
            raise RunDirError(f"cannot write {path}: it is a folder; {choose}")
        if not folder.is_dir():
            kind = "is a file" if folder.is_file() else "is no folder"
            raise RunDirError(f"cannot write {path}: {folder} {kind}; {choose}")
        for name in lost:  # the system refuses some that there cannot be, such as 300 letters
            with suppress(FileNotFoundError):
                (folder / name).lstat()
        probe = beside(folder / ".undrift", TEMPORARY)
        try:
            with probe.open("wb") as opened:
                opened.write(b"undrift")
                opened.flush()
                os.fsync(opened.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # the second of a name with a zero byte
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise RunDirError(f"cannot write {path}: {said}; {choose}") from error
