"""The test questions that `undrift learn` keeps, so that they travel with the folder it leaves.

OUT/tests/01-birds/ holds `questions.jsonl`, rows as docs/data.md shows them, and `pictures/`, each
by a digest of its content and by its name. It lies beside the adapter's folder and not in it:
whoever shares the adapter shares no question.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from undrift.data.instructions import read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.types import Example, Task
from undrift.errors import DataError
from undrift.rundir import atomic_folder, write_lines
from undrift.rundir.files import writing

TESTS, QUESTIONS, _PICTURES = "tests", "questions.jsonl", "pictures"
MEGABYTES = 200
"""How large the questions of one task may be with their pictures, if nobody says otherwise."""


def kept_at(adapter: Path, name: str) -> Path | None:
    """Find the questions of a task that were kept.

    Args:
        adapter: The folder of an adapter.
        name: The task's name.

    Returns:
        Their folder; None if there is none.
    """
    there = adapter.absolute().parent / TESTS
    named = (path for path in there.glob("*") if path.name.partition("-")[2] == name)
    return next((path for path in named if (path / QUESTIONS).is_file()), None)


def keep_test(folder: Path, task: Task, megabytes: float) -> str | None:
    """Copy a task's test questions and their pictures, if they are not there already.

    Args:
        folder: Where to, such as OUT/tests/01-birds.
        task: The task.
        megabytes: What is larger is not copied.

    Returns:
        Why nothing was kept; None if it was.

    Raises:
        RunDirError: If it cannot be written.
    """
    wanted = [_plain(each) for each in task.test]
    if (folder / QUESTIONS).is_file() and list(map(_plain, kept_examples(folder))) == wanted:
        return None
    pictures = {path for example in task.test for path in example.images}
    size = sum(path.stat().st_size for path in pictures) / 1e6
    if size > megabytes:
        return f"its pictures have {size:.0f} MB, and up to {megabytes:g} MB are copied"
    try:
        with atomic_folder(folder) as made, writing(folder):
            places = {path: _copied(path, made) for path in sorted(pictures)}
            write_lines(made / QUESTIONS, [_row(each, places) for each in task.test])
            if list(map(_plain, kept_examples(made))) != wanted:
                raise DataError("a question, written as a row, would be another one")
    except DataError as error:
        return str(error)
    return None


def kept_examples(folder: Path) -> tuple[Example, ...]:
    """Read what `keep_test` has kept.

    Args:
        folder: The folder of the task.

    Returns:
        The examples.

    Raises:
        DataError: If something is missing or cannot be used.
    """
    return read_examples(folder / QUESTIONS, PictureFolder(folder))


def _copied(picture: Path, folder: Path) -> str:
    with picture.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    place = f"{_PICTURES}/{digest}/{picture.name}"
    if not (folder / place).exists():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / place)
    return place


def _row(example: Example, places: Mapping[Path, str]) -> dict[str, object]:
    row: dict[str, object] = {
        "id": example.id,
        "images": [places[path] for path in example.images],
        "question": example.question,
        "answers": list(example.answers),
    }
    return row | ({"system": example.system} if example.system else {})


def _plain(example: Example) -> Sequence[object]:
    names = [path.name for path in example.images]
    return (example.id, example.question, example.answers, example.system, names)
