"""Thumbnails of what is asked, kept in a run's folder for its report."""

from __future__ import annotations

import io
from pathlib import Path

from undrift.data.picture_decoding import open_picture
from undrift.data.types import Task
from undrift.rundir import RunDir, atomic_folder

SIDE = 160  # pixels of the longest side
AT_MOST = 2000  # test examples a task that keep their pictures, the first ones
_QUALITY = 70


def keep_pictures(files: RunDir, index: int, task: Task) -> None:
    """Write the thumbnails of a task's test examples, unless they are there already.

    Args:
        files: The run.
        index: The task's number in the run's order, from 1.
        task: The task; its `test` is what is asked, in the order of the predictions.

    Raises:
        DataError: If a picture cannot be read.
    """
    target = files.pictures(index, task.name)
    asked = task.test[:AT_MOST]
    if target.is_dir() or not any(example.images for example in asked):
        return
    made: dict[Path, bytes] = {}  # of pictures that several questions are about
    with atomic_folder(target) as folder:
        for line, example in enumerate(asked, 1):
            for k, path in enumerate(example.images, 1):
                if path not in made:
                    made[path] = _webp(path)
                name = files.picture(index, task.name, line, k).name
                (folder / name).write_bytes(made[path])


def _webp(path: Path) -> bytes:
    written = io.BytesIO()
    open_picture(path, SIDE).save(written, "WEBP", quality=_QUALITY, method=2)
    return written.getvalue()
