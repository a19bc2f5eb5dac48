"""One split of one task as its file has it: every row looked at, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from undrift.data.checks.finding import Finding, Item, counted
from undrift.data.files import BadRow, Pictures
from undrift.data.instructions import Read, Row, each_row
from undrift.data.sources import Source
from undrift.data.types import Example, Task
from undrift.errors import DataError


class Asked(NamedTuple):
    """A question, and the row that it stands in."""

    row: int
    example: Example


@dataclass(frozen=True)
class Split:
    """One split of one task.

    Args:
        task: The task's name.
        name: "train", "validation" or "test".
        file: What it was read from; None if only the benchmark's own code knows.
        rows: How many rows there are, bad ones included.
        asked: The questions of the rows that can be read, also where a picture is missing.
        ids: The ids as they are in the file, by row.
        absent: Pictures that are not there, or not in the folder of the pictures.
        unknown: Test rows that the second file knows nothing about.
        max_new_tokens: How long an answer may get.
        scorer: How answers are scored.
    """

    task: str
    name: str
    file: Path | None
    rows: int
    asked: tuple[Asked, ...]
    ids: tuple[tuple[int, int | str], ...] = ()
    absent: frozenset[Path] = frozenset()
    unknown: tuple[Item, ...] = ()
    max_new_tokens: int = 128
    scorer: str = "exact"

    def item(self, asked: Asked, reason: str = "") -> Item:
        """Return the place of a question."""
        return Item(asked.example.id, reason, self.file, asked.row)

    def pictures(self) -> dict[Path, int]:
        """Return each picture that is there, with the first row that shows it."""
        shown: dict[Path, int] = {}
        for row, example in self.asked:
            for path in example.images:
                if path not in self.absent:
                    shown.setdefault(path, row)
        return shown


class SoughtPictures(Pictures):
    """Pictures of which those that cannot be found are noted instead of raised.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.missing: dict[Path, str] = {}
        self.outside: dict[Path, str] = {}

    def forget(self) -> None:
        """Begin with another row."""
        self.missing.clear()
        self.outside.clear()

    def find(self, name: str) -> Path:
        """Return where a picture is or should be.

        Args:
            name: Its name in a row.

        Returns:
            The path; it may lead anywhere if it is in `outside`.
        """
        path = self.root / name
        try:
            path = self.place(name)
        except DataError as error:
            self.outside[path] = str(error)
            return path
        try:
            return super().find(name)
        except DataError as error:
            self.missing[path] = str(error)
            return path


def read_split(source: Source, name: str) -> tuple[Split, list[Finding]]:
    """Read one split as a run does, and find what keeps rows from being used.

    Args:
        source: The task's files.
        name: Which split.

    Returns:
        What can be read of it, and the findings; a damaged file is one, too.
    """
    file, pictures = source.files[name], SoughtPictures(source.pictures.root)
    join = source.join if name == "test" else None
    bad, strangers = list[BadRow](), set[str]()
    read, damaged = list[Read](), ""
    missing, outside = dict[Path, Item](), dict[Path, Item]()

    def joined(row: Row) -> Row:
        pictures.forget()
        try:
            return row if join is None else join(row)
        except DataError as error:
            strangers.add(str(error))
            raise

    try:
        for one in each_row(file, pictures, join=joined, reading=source.reading, bad=bad):
            read.append(one)
            for path, reason in pictures.missing.items():
                missing.setdefault(path, Item(str(path), reason, file, one.number))
            for path, reason in pictures.outside.items():
                outside.setdefault(path, Item(f"row {one.number}", reason, file, one.number))
    except DataError as error:
        damaged = str(error)
    unknown = [Item(row.where, row.reason, file, row.row) for row in bad if row.reason in strangers]
    split = Split(
        source.name,
        name,
        file,
        len(read) + len(bad),
        tuple(Asked(one.number, example) for one in read for example in one.examples),
        tuple((one.number, one.identity) for one in read if one.identity is not None),
        frozenset({*missing, *outside}),
        tuple(unknown),
        source.max_new_tokens,
        source.scorer,
    )
    bad = [row for row in bad if row.reason not in strangers]
    return split, list(_findings(split, damaged, bad, missing.values(), outside.values()))


def split_of(task: Task, name: str) -> Split:
    """Make a split of examples that a benchmark's own code has read.

    Args:
        task: The task.
        name: Which split.

    Returns:
        The split, with the number of the example in the place of the row's.
    """
    examples: tuple[Example, ...] = getattr(task, name)
    asked = tuple(Asked(number, example) for number, example in enumerate(examples, 1))
    length, scorer = task.max_new_tokens, task.scorer
    return Split(task.name, name, None, len(examples), asked, max_new_tokens=length, scorer=scorer)


def _findings(
    split: Split,
    damaged: str,
    bad: list[BadRow],
    missing: Iterable[Item],
    outside: Iterable[Item],
) -> Iterable[Finding]:
    task, name = split.task, split.name
    if damaged:
        yield Finding("file", "error", task, name, damaged)
    elif not split.rows:
        said = f"{split.file} holds no row"
        yield Finding("file", "error", task, name, said, "get the file again")
    if bad:
        items = tuple(Item(row.where, row.reason, row.file, row.row) for row in bad)
        said = f"{counted(len(items), 'row')} that cannot be used"
        advice = "mend them, or leave them out with --skip-bad"
        yield Finding("row", "error", task, name, said, advice, items)
    if items := tuple(missing):
        said = f"{counted(len(items), 'picture')} {'is' if len(items) == 1 else 'are'} not there"
        advice = "get them, or leave their rows out with --skip-bad"
        yield Finding("missing picture", "error", task, name, said, advice, items)
    if items := tuple(outside):
        said = f"{counted(len(items), 'picture')} outside the pictures' folder"
        advice = "write names that are relative to it; nothing outside is ever opened"
        yield Finding("picture outside", "error", task, name, said, advice, items)
