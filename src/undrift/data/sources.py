"""Where a task's files are, known before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from undrift.data.files import Pictures
from undrift.data.instructions import Join
from undrift.data.shapes.said import Reading

Lost = dict[str, str]
"""Tasks whose files cannot be found, with what is missing."""


@dataclass(frozen=True)
class Source:
    """The files of one task, and what is known of it without reading them.

    A benchmark's file that offers `sources(root, *, only, lost)` beside `benchmark` can be looked
    into by `undrift doctor` row by row.

    Args:
        name: The task's name.
        files: The file of each split: "train", "validation" and "test", those that there are.
        pictures: What the pictures' names are relative to.
        scorer: A name in `undrift.scoring.SCORERS`, or in `undrift.scoring.TASKS` if published.
        max_new_tokens: How long an answer may get.
        rows: Published numbers of rows by split, where they are known.
        annotation: The second file about the test rows, if there is one.
        join: Adds to a test row what that file knows.
        reading: How answers are read.
    """

    name: str
    files: Mapping[str, Path]
    pictures: Pictures
    scorer: str
    max_new_tokens: int
    rows: Mapping[str, int] = field(default_factory=dict)
    annotation: Path | None = None
    join: Join | None = None
    reading: Reading = field(default_factory=Reading)
