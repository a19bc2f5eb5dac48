"""The tasks that an adapter has learned, noted beside it by where their test examples are.

So `undrift learn` can ask about every earlier task, and `undrift eval` about all of them, without
being told again where the data lies. They are looked for where they were, then where they are as
seen from the adapter (all of it may have been moved), then among the questions that were kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from undrift.data.benchmarks import DRAWN
from undrift.data.benchmarks.folder import OwnTask
from undrift.data.instructions import read_examples
from undrift.data.picture_folder import PictureFolder, existing_path
from undrift.data.row_files import BadRow
from undrift.data.row_layouts import AnswerReader
from undrift.data.subset import hold_out
from undrift.data.types import Example, Task
from undrift.errors import DataError, unknown
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig, validated
from undrift.run.kept_tests import kept_at, kept_examples
from undrift.run.load_tasks import cut, read_benchmark, without_bad
from undrift.run.progress import Progress

Note = Mapping[str, Any]
"""What undrift.json says about one task: name, digest of its test examples, and their source."""
_PATHS = ("test", "train", "images", "data")


def from_benchmark(config: RunConfig, tasks: Sequence[Task]) -> list[Note]:
    """Note tasks of a benchmark that a run has learned, cut to what it used."""
    source = {
        "benchmark": config.benchmark,
        "data": None if config.data is None else str(config.data.resolve()),
        "reading": config.reading,
        "skip_bad": config.skip_bad,
        "profile": config.profile.model_dump(),
        "split": config.eval.split,
    }
    return [
        {
            "name": task.name,
            "digest": examples_digest(task.test),
            "examples": _counts(task),
            "max_new_tokens": task.max_new_tokens,
            **source,
        }
        for task in tasks
    ]


def from_files(own: OwnTask, task: Task, held_out: float, seed: int, skip_bad: bool) -> Note:
    """Note a task of the user's own.

    Args:
        own: Its files.
        task: What was read from them.
        held_out: The share of the training file that was held out, if there is no test file.
        seed: Which examples were.
        skip_bad: Whether bad examples were left out.

    Returns:
        The note.
    """
    files = {"test": own.test} if own.test else {"train": own.train}
    return {
        "name": own.name,
        "digest": examples_digest(task.test),
        "examples": _counts(task),
        **{key: str(path.resolve()) for key, path in files.items()},
        **({} if own.test else {"held_out": held_out, "seed": seed}),
        "images": str((own.test_images or own.images).resolve()),
        "scorer": own.scorer,
        "max_new_tokens": own.max_new_tokens,
        **({"booleans": own.booleans} if own.booleans else {}),
        "skip_bad": skip_bad,
    }


def seen_from(notes: Sequence[Note], adapter: Path) -> list[Note]:
    """Note where everything is as seen from an adapter as well, so that all of it can be moved.

    Args:
        notes: The notes of its tasks.
        adapter: The folder that it will have.

    Returns:
        The notes, with `seen_from_here` in each.
    """
    here = adapter.resolve()
    return [
        {
            **note,
            "seen_from_here": {
                key: os.path.relpath(note[key], here) for key in _PATHS if note.get(key)
            },
        }
        for note in notes
    ]


def relocated(
    notes: Sequence[Note], adapter: Path, moved: Mapping[str, Path] = MappingProxyType({})
) -> list[Note]:
    """Point notes to where their files are now.

    Args:
        notes: From an adapter's undrift.json.
        adapter: The adapter's folder.
        moved: By task, a file with its test questions, or of a benchmark's the benchmark's folder.

    Returns:
        The notes. What is not where it was is at its place as seen from the adapter, if there.

    Raises:
        UnknownName: If a task in `moved` is none of these.
        DataError: If there is nothing where it is said to be now.
    """
    names = [note["name"] for note in notes]
    for name in moved:
        if name not in names:
            raise unknown("task", name, names)
    return [
        _moved(note, moved[note["name"]]) if note["name"] in moved else _where_now(note, adapter)
        for note in notes
    ]


def _where_now(note: Note, adapter: Path) -> Note:
    paths = {
        key: str(place)
        for key, seen in note.get("seen_from_here", {}).items()
        if not Path(note[key]).exists() and (place := (adapter / seen).resolve()).exists()
    }
    return {**note, **paths}


def find_again(
    notes: Sequence[Note],
    progress: Progress,
    backbone: str | Backbone | None = None,
    *,
    adapter: Path | None = None,
) -> list[tuple[Task, bool]]:
    """Read the test examples of tasks that were learned earlier.

    Args:
        notes: From an adapter's undrift.json, see `relocated`.
        progress: Told about slow parts.
        backbone: Whose processor said what cannot be used, where bad examples were left out.
        adapter: The adapter's folder; questions may have been kept beside it.

    Returns:
        The tasks in the same order, each with whether its test examples are others than then. Only
        their `test` is to be used.

    Raises:
        DataError: If a file is gone or cannot be used; the message says how to go on without it.
    """
    found = []
    whole: dict[str, Mapping[str, Task]] = {}  # benchmarks, each read once
    for note in notes:
        name = note["name"]
        try:
            if "benchmark" not in note:
                folder = None if adapter is None else kept_at(adapter, name)
                task = _of_files(note, progress, backbone, folder)
            else:
                source = _source(note)
                if source not in whole:
                    names = [other["name"] for other in notes if _source(other) == source]
                    whole[source] = _of_benchmark(note, names, progress, backbone)
                task = whole[source][note["name"]]
        except DataError as error:
            raise DataError(
                f"the earlier task {name!r} cannot be asked: {error}; put its data back, or say "
                f"where its test questions are with --test-of {name}=FILE; `undrift learn` goes "
                f"on without asking it with --without {name}"
            ) from error
        found.append((task, note.get("digest") not in (None, examples_digest(task.test))))
    return found


def _source(note: Note) -> str:
    no_matter = ("name", "digest", "max_new_tokens", "seen_from_here", "examples")
    return json.dumps({key: note[key] for key in note if key not in no_matter})


def _moved(note: Note, place: Path) -> Note:
    """Point a note to test questions that the user names, or to the folder of its benchmark."""
    there = existing_path(place).resolve()
    if "benchmark" in note:
        return {**note, "data": str(there)}
    return {**note, "test": str(there), "images": str(there.parent)}


def _of_benchmark(
    note: Note, names: Sequence[str], progress: Progress, backbone: str | Backbone | None
) -> Mapping[str, Task]:
    """Read a benchmark's tasks as a run had them."""
    kept = ("benchmark", "data", "reading", "skip_bad", "profile")
    if note["benchmark"] in DRAWN:  # it is drawn, the same anywhere; a record says not where
        note = {**note, "data": None}
    own = {"order": tuple(names), "eval": {"split": note["split"]}}
    config = validated(RunConfig, {**{key: note[key] for key in kept}, **own})
    if config.data is not None and not config.data.is_dir() and not config.data.is_file():
        raise DataError(f"{config.data}, which its record names, is not there")
    if note["data"] is not None:
        text = f"reading {note['data']} for {', '.join(names)}"
        progress.event("reading", text, tasks=list(names), file=note["data"])
    made, _ = read_benchmark(config, progress, backbone)
    tasks = made.in_order(config.order)
    return {task.name: cut(task, config.profile, config.eval.split) for task in tasks}


def _of_files(
    note: Note, progress: Progress, backbone: str | Backbone | None, kept: Path | None
) -> Task:
    """Read the test questions of a task of the user's own, or those that were kept of it."""
    try:
        return read_noted(note, progress, backbone)
    except DataError as error:
        if kept is None:
            raise
        test = kept_examples(kept)
        text = f"asking the questions of {note['name']} that were kept in {kept}, since {error}"
        progress.event("kept", text, task=note["name"], folder=str(kept))
        return Task(note["name"], test, (), test, note["scorer"], note["max_new_tokens"])


def read_noted(
    note: Note, progress: Progress, backbone: str | Backbone | None, what: str = "task"
) -> Task:
    """Read what is asked of files of the user's own; with a test file no training file is needed.

    Args:
        note: Its note, see `from_files`.
        progress: Told about slow parts.
        backbone: As for `find_again`.
        what: What it is, for the message.

    Returns:
        The task, of which only `test` is to be used.
    """
    source = note["test" if note.get("test") else "train"]
    text = f"reading {source} for the {what} {note['name']}, its pictures from {note['images']}"
    progress.event("reading", text, task=note["name"], file=source, images=note["images"])
    pictures = PictureFolder(Path(note["images"]))
    bad: list[BadRow] | None = [] if note["skip_bad"] else None
    answers = AnswerReader(note["scorer"], note.get("booleans", ""))
    if note.get("test"):
        test = read_examples(Path(note["test"]), pictures, answers=answers, bad=bad)
    else:
        rows = read_examples(
            Path(note["train"]), pictures, answers=answers, number_repeats=True, bad=bad
        )
        _, test = hold_out(rows, note["held_out"], note["seed"], pictures.root)
    task = Task(note["name"], test, (), test, note["scorer"], note["max_new_tokens"])
    return without_bad([task], progress, backbone)[0][0] if note["skip_bad"] else task


def _counts(task: Task) -> dict[str, int]:
    return {"train": len(task.train), "test": len(task.test)}


def examples_digest(examples: Sequence[Example]) -> str:
    """Digest the texts of examples and the names of their pictures, not the folders."""
    digest, before = hashlib.sha256(b"["), b""
    for e in examples:  # as one list of all rows would be written
        row = [e.id, e.question, e.answers, [path.name for path in e.images]]
        digest.update(before + json.dumps([*row, e.system] if e.system else row).encode())
        before = b", "
    digest.update(b"]")
    return digest.hexdigest()[:16]
