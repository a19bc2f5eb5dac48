"""Thumbnails of what is asked, kept in a run's folder for its report."""

from __future__ import annotations

import io
from pathlib import Path

from undrift.data.picture_decoding import open_picture
from undrift.data.types import Task
from undrift.rundir import atomic_folder
from undrift.rundir.paths import thumbnail

SIDE = 160  # pixels of the longest side
AT_MOST = 2000  # test examples a task that keep their pictures, the first ones
_QUALITY = 70


def keep_pictures(folder: Path, task: Task) -> None:
    """Write the thumbnails of a task's test examples, unless they are there already.

    Args:
        folder: Where they go, see `RunDir.pictures`.
        task: The task; its `test` is what is asked, in the order of the predictions.

    Raises:
        DataError: If a picture cannot be read.
    """
    asked = task.test[:AT_MOST]
    if folder.is_dir() or not any(example.images for example in asked):
        return
    made: dict[Path, bytes] = {}  # of pictures that several questions are about
    with atomic_folder(folder) as target:
        for line, example in enumerate(asked, 1):
            for k, path in enumerate(example.images, 1):
                if path not in made:
                    made[path] = _webp(path)
                thumbnail(target, line, k).write_bytes(made[path])


def _webp(path: Path) -> bytes:
    written = io.BytesIO()
    open_picture(path, SIDE).save(written, "WEBP", quality=_QUALITY, method=2)
    return written.getvalue()
