"""Guards of `undrift learn`: questions that are no task, asked before and after.

A guard is a file of test questions (a user's golden ones, or some of a general benchmark), read and
scored like those of a task. It is asked where it is named with --guard, and noted in learn.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from undrift.data.benchmarks.folder import OwnTask
from undrift.data.picture_folder import existing_path
from undrift.data.types import Task
from undrift.errors import ConfigError
from undrift.run.backbone import Backbone
from undrift.run.learned_tasks import Note, read_noted
from undrift.run.progress import Progress


def notes_of(files: Iterable[Path], own: OwnTask, scorer: str | None, skip_bad: bool) -> list[Note]:
    """Note guards as the files of a task are noted, see `undrift.run.learned_tasks`.

    Args:
        files: Files of questions; their pictures' names are relative to the folders they are in.
        own: The task that is learned, whose length of answers and reading of booleans they share.
        scorer: How their answers are scored; as the task's if None.
        skip_bad: Leave out what cannot be used.

    Returns:
        The notes, in their order; a guard is called after its file.

    Raises:
        ConfigError: If two are called alike.
        DataError: If a file is not there.
    """
    notes: list[Note] = []
    for file in map(existing_path, files):
        if file.stem in (note["name"] for note in notes):
            raise ConfigError(f"two guards are called {file.stem!r}; rename one of the files")
        notes.append(
            {
                "name": file.stem,
                "test": str(file.resolve()),
                "images": str(file.resolve().parent),
                "scorer": scorer or own.scorer,
                "max_new_tokens": own.max_new_tokens,
                **({"booleans": own.booleans} if own.booleans else {}),
                "skip_bad": skip_bad,
            }
        )
    return notes


def read_guards(
    notes: Sequence[Note],
    taken: Iterable[str],
    progress: Progress,
    backbone: str | Backbone | None,
) -> list[Task]:
    """Read the questions of guards.

    Args:
        notes: From `notes_of`.
        taken: Names of tasks, which no guard can have.
        progress: Told about slow parts.
        backbone: Whose processor says what cannot be used, where bad examples are left out.

    Returns:
        The guards as tasks of which only `test` is to be used.

    Raises:
        ConfigError: If a guard is called as a task is.
    """
    for name in {str(note["name"]) for note in notes} & {*taken}:
        raise ConfigError(f"the guard {name!r} is called as a task is; rename its file")
    return [read_noted(note, progress, backbone, "guard") for note in notes]
