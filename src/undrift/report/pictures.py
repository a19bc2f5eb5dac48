"""The thumbnails that a run keeps, put into a page as far as there is room for them.

`RUN/pictures/01-digits/0001.webp` is the picture of the task's first line of predictions,
`0001-2.webp` a second one of the same line.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import quote

from undrift.rundir import RunDir

ROOM = 12_000_000  # characters of a page, by which ten runs of the pocket stay far below 20 MB

Key = tuple[str, str]
"""A task's name and an example's id."""


class Pictures:
    """Pictures of examples; the first run that has those of an example gives them.

    Args:
        page: Where the page will lie, if that is known.
        room: How many characters the embedded pictures may take together.
    """

    def __init__(self, page: Path | None = None, room: int = ROOM) -> None:
        self._page, self._room = page, room
        self._files: dict[Key, tuple[int, list[Path]]] = {}
        self._folders: dict[Path, dict[int, list[Path]]] = {}

    def offer(self, key: Key, run: Path, task: int, name: str, line: int) -> None:
        """Take the pictures of one line of a run, unless an earlier run had them.

        Args:
            key: The example.
            run: The run's folder.
            task: The task's number in this run.
            name: Its name.
            line: The line's number, from 1.
        """
        if key in self._files:
            return
        files = self._listed(RunDir(run).pictures(task, name)).get(line)
        if files:
            self._files[key] = line, files

    def addresses(self) -> dict[Key, list[str | None]]:
        """Embed what there is room for, the first lines of every task before the later ones.

        Returns:
            For each example that has pictures: data URLs; addresses relative to the page of those
            that there is no room for, if the run lies beside the page or below it; else None.
        """
        found: dict[Key, list[str | None]] = {}
        left = self._room
        for key, (_, files) in sorted(self._files.items(), key=lambda item: item[1][0]):
            found[key] = []
            for file in files:
                url = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
                left -= len(url)
                found[key].append(url if left >= 0 else self._reference(file))
        return {key: found[key] for key in self._files}

    def _reference(self, file: Path) -> str | None:
        if self._page is None:
            return None
        beside, file = self._page.resolve().parent, file.resolve()
        return quote(os.fspath(file.relative_to(beside))) if beside in file.parents else None

    def _listed(self, folder: Path) -> dict[int, list[Path]]:
        """List the pictures of a task by their lines, each folder once."""
        if folder not in self._folders:
            lines: dict[int, list[Path]] = {}
            for file in sorted(folder.glob("*.webp"), key=_place):
                lines.setdefault(_place(file)[0], []).append(file)
            self._folders[folder] = lines
        return self._folders[folder]


def _place(file: Path) -> tuple[int, int]:
    """Read line and number off a name such as 0001-2.webp."""
    line, _, number = file.stem.partition("-")
    return int(line), int(number or 1)
