"""The test questions of a task, most often a published one, to score answers by.

No picture is looked for. `coin/REC` is the task as the benchmark calls it, `coin/Grounding` as
`undrift.scoring.TASKS` does; both are understood. The training file need not be there.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from undrift.data.files import Pictures, existing, read_json
from undrift.data.instructions import Join, read_examples
from undrift.data.published import PublishedTask
from undrift.data.types import Example
from undrift.errors import DataError, unknown
from undrift.registry import BENCHMARKS
from undrift.untrusted import is_folder, is_regular, strange_kind

INSTRUCTIONS = ("Instructions_Original", "instructions", "domain", "")
"""Where in a benchmark's folder the tasks' folders are; `""` is the folder itself."""

_PICTURES = ("cl_dataset", "datasets", "", "..")  # where the pictures' folders are


class Unseen(Pictures):
    """Pictures that nobody opens: any name is taken."""

    def find(self, name: str) -> Path:
        """Return where the picture would be."""
        return self.root / name


def find_published(name: str) -> PublishedTask:
    """Return a published task.

    Args:
        name: Such as `coin/ScienceQA`.

    Returns:
        The task.

    Raises:
        UnknownName: If there is no such benchmark or task; the message offers the nearest.
    """
    benchmark = name.partition("/")[0]
    module = importlib.import_module(BENCHMARKS.load(benchmark).__module__)
    tasks = [t for t in getattr(module, "TASKS", ()) if isinstance(t, PublishedTask)]
    by_name = {f"{benchmark}/{task.name}": task for task in tasks}
    known = {task.scorer: task for task in tasks} | by_name
    if name not in known:
        raise unknown("published task", name, by_name)
    return known[name]


def questions_in(task: PublishedTask, root: Path) -> tuple[Example, ...]:
    """Read a task's test questions from where its benchmark lies.

    Args:
        task: From `find_published`.
        root: The benchmark's folder; or the folder of instructions in it, such as
            `Instructions_Diverse`, where a wording other than the original is wanted.

    Returns:
        The examples, with what the task's second file knows about them.

    Raises:
        DataError: If a file is missing, or a row cannot be used.
    """
    folders = task.folders or (task.name,)
    places = [root / inner for inner in INSTRUCTIONS]
    there = [place for place in places if any(is_folder(place / name) for name in folders)]
    folder = existing(there[0] if there else root, folders)
    beside = [folder, *(root / inner / folder.name for inner in _PICTURES)]
    return questions_of(task, existing(folder, task.test), beside)


def questions_of(
    task: PublishedTask, file: Path, beside: Sequence[Path] = ()
) -> tuple[Example, ...]:
    """Read a task's test questions from one file.

    Args:
        task: From `find_published`.
        file: The test file, as it was published.
        beside: Folders where the task's second file may be; the test file's own if empty.

    Returns:
        The examples.

    Raises:
        DataError: If a file is missing, or a row cannot be used.
    """
    folders = beside or (file.parent,)
    return read_examples(file, Unseen(file.parent), join=_second_file(task, folders))


def questions_in_file(file: Path) -> tuple[Example, ...]:
    """Read the test questions of one's own data.

    Args:
        file: The test file, in any format that `undrift run folder` reads.

    Returns:
        The examples.

    Raises:
        DataError: If it is missing, or a row cannot be used.
    """
    return read_examples(file, Unseen(file.parent))


def _second_file(task: PublishedTask, folders: Sequence[Path]) -> Join | None:
    if task.annotation is None:
        return task.add
    for path in (folder / name for folder in folders for name in task.annotation.files):
        if is_regular(path) or strange_kind(path):  # the latter is refused by its reader
            content = read_json(path)
            try:
                return task.annotation.join(content)
            except (LookupError, TypeError, ValueError, AttributeError, DataError) as error:
                raise DataError(
                    f"{path} cannot be the second file of {task.name} ({type(error).__name__}: "
                    f"{error}); put the published file there"
                ) from error
    if not task.annotation.required:
        return None
    raise DataError(
        f"task {task.name!r} is scored by {task.annotation.files[0]}, which is in none of "
        f"{', '.join(map(str, dict.fromkeys(folders)))}; put the published file there"
    )
