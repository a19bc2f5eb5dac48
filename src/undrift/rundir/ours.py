"""What a command has written into a folder, told from what was there or came from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from undrift.errors import RunDirError
from undrift.rundir.files import TEMPORARY
from undrift.rundir.record import Record, read_record

_PAGE = b'<meta name="generator" content="undrift"'
_ANSWERS = r"on-\d+\.(jsonl|json|part)"
_ADAPTER = r"([^/]+/)?[^/]+\.(safetensors|json|md)"

OF_RUN: Mapping[str, str] = {
    "data.json": "",
    "manifest.json": "",
    "matrix.json": "",
    "report.html": "",
    "report-figures": r"[^/]+\.(svg|pdf)",
    "skipped.jsonl": "",
    "tasks": rf"\d+-[^/]+/(DONE|train\.jsonl|adapter/{_ADAPTER}|training/.+)",
    "eval": rf"after-\d+/{_ANSWERS}",
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
    "train.jsonl": "",
    "skipped.jsonl": "",
    "training": r".+",
    "adapter": _ADAPTER,
    "eval": r"(before|after)/\d+-[^/]+\.(jsonl|part)",
    "live": r"\d+-[^/]+/.+",
}
"""Likewise of `undrift learn`."""


def refuse_links(root: Path, names: Iterable[str]) -> None:
    """Refuse to write below links, which lead to somewhere else.

    Args:
        root: A folder.
        names: What is written there.

    Raises:
        RunDirError: If a folder of these is a link.
    """
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
    ours = False
    if os.path.lexists(path):
        try:
            read_record(path, kind)
            ours = True
        except RunDirError as error:
            raise _in_the_way(path) from error
    for each in beside:
        if os.path.lexists(each) and not ours:
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
