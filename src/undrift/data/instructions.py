"""Rows of instruction files as examples, whatever their format and their layout.

How files are read stands in `row_files.py`, what their rows say in `row_layouts.py`. Here every key
and every part is accounted for: a picture that would be dropped, or a video, makes a row bad; what
else a row holds goes into `extra`, which the model is never shown.

A conversation of several turns becomes one example a question, with the pictures up to its own.
That is how the model is asked, and it differs from training on the whole conversation as LLaVA
does: a question does not see the questions and answers before it, and a picture is shown once a
question rather than once a row, so that the same data takes more tokens and more examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from undrift.data.picture_folder import PictureFolder
from undrift.data.row_files import BadRow, read_rows, refuse
from undrift.data.row_layouts import (
    IMAGE,
    QUESTIONS,
    AnswerReader,
    ParsedRow,
    check_answer,
    placed,
    read_row,
)
from undrift.data.row_pictures import (
    KEYS,
    find_picture,
    media_in_text,
    names_of,
    other_keys,
    pictures_of,
    unread_media,
)
from undrift.data.subset import hold_out
from undrift.data.types import NOTHING, Example, Task
from undrift.errors import DataError, brief

Row = dict[str, Any]
Join = Callable[[Row], Row]
"""Adds to a row what a second file knows about it; raises DataError where that knows nothing."""

_SYSTEM = {"system", "system_prompt", "system_message", "system_instruction", "sys_prompt", "sys"}
_INLINE = re.compile(  # pictures in a text, as HTML and Markdown have them
    r"<(?:img\b|image[\s:=])[^>]*>|!\[[^\]\n]*\]\([^)\n]+\)", re.IGNORECASE
)
_SOURCE = re.compile(  # and their names in it
    r"""(?<![\w-])(?:src|href)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))|\]\(\s*<?([^\s)>]+)""",
    re.IGNORECASE,
)
_FILLED = ("<ref-object>", "<bbox>")  # ms-swift fills them in from `objects`

Lost = dict[str, str]
"""Tasks whose files cannot be found, with what is missing."""


class ReadRow(NamedTuple):
    """A row that was read: its number in the file, from 1, its id there if any, its examples."""

    number: int
    identity: int | str | None
    examples: list[Example]


@dataclass(frozen=True)
class TaskFiles:
    """The files of one task, and what is known of it without reading them.

    A benchmark's file that offers `sources(root, *, only, lost) -> list[TaskFiles]` beside
    `benchmark` can be looked into by `undrift doctor` row by row.

    Args:
        name: The task's name.
        files: The file of each split: "train", "validation" and "test", those that there are.
        pictures: What the pictures' names are relative to.
        scorer: A name in `undrift.scoring.SCORERS`, or in `undrift.scoring.TASKS` if published.
        max_new_tokens: How long an answer may get.
        rows: Published numbers of rows by split, where they are known.
        annotation: The second file about the test rows, if there is one.
        join: Adds to a test row what that file knows.
        answers: How answers are read.
        test_pictures: As `pictures`, of the test rows, where they lie elsewhere.
    """

    name: str
    files: Mapping[str, Path]
    pictures: PictureFolder
    scorer: str
    max_new_tokens: int
    rows: Mapping[str, int] = field(default_factory=dict)
    annotation: Path | None = None
    join: Join | None = None
    answers: AnswerReader = field(default_factory=AnswerReader)
    test_pictures: PictureFolder | None = None

    def pictures_of(self, split: str) -> PictureFolder:
        """Return what the pictures' names of a split are relative to."""
        elsewhere = self.test_pictures if split == "test" else None
        return elsewhere or self.pictures

    def read(self, split: str, bad: list[BadRow] | None) -> tuple[Example, ...]:
        """Read the examples of a split, none if it has no file; see `read_examples`."""
        if split not in self.files:
            return ()
        return read_examples(
            self.files[split],
            self.pictures_of(split),
            join=self.join if split == "test" else None,
            answers=self.answers,
            number_repeats=split == "train",
            bad=bad,
        )

    def task(
        self, bad: list[BadRow] | None = None, *, held_out: float = 0.1, seed: int = 0
    ) -> Task:
        """Read the task.

        Args:
            bad: Receives the rows that cannot be used; without it, the first one is raised.
            held_out: Which share of the training examples is asked if there is no test file.
            seed: Another seed holds out others.

        Returns:
            The task.

        Raises:
            DataError: If a file or a row cannot be used.
            ConfigError: If `held_out` cannot be.
        """
        splits = ("train", "validation", "test")
        train, validation, test = (self.read(split, bad) for split in splits)
        if "test" not in self.files:
            train, test = hold_out(train, held_out, seed, self.pictures.root)
        return Task(self.name, train, validation, test, self.scorer, self.max_new_tokens)


def read_examples(
    path: Path,
    pictures: PictureFolder,
    *,
    join: Join | None = None,
    answers: AnswerReader | None = None,
    number_repeats: bool = False,
    bad: list[BadRow] | None = None,
) -> tuple[Example, ...]:
    """Read the examples of one file; no picture is opened, but each must be there.

    Args:
        path: The file, or a folder that `datasets` has saved; see `row_files.py`.
        pictures: Where the pictures are.
        join: Applied to each row before it is read.
        answers: How answers are read.
        number_repeats: Tell examples that share an id apart by `~2`, `~3` ... in the order of the
            file. For training, where published files repeat ids and nothing is matched by them;
            otherwise a repeated id makes a row bad.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The examples in the order of the file. Ids are texts, whatever they are in the file; a row
        without one has its number. Those of a row with several questions end in `#1`, `#2` ...

    Raises:
        DataError: If the file cannot be read, or if a row cannot be used; the message names both.
    """
    examples: list[Example] = []
    first: dict[str, int] = {}  # id -> row
    times: dict[str, int] = {}
    for number, _, made in each_row(path, pictures, join=join, answers=answers, bad=bad):
        if number_repeats:
            made = [_numbered(example, times) for example in made]
        if taken := [example.id for example in made if example.id in first]:
            reason = (
                f"the id {taken[0]!r} is that of row {first[taken[0]]} as well; "
                "answers are matched by id, so ids must be unique"
            )
            refuse(BadRow(path, number, reason), bad)
            continue
        first |= {example.id: number for example in made}
        examples += made
    return tuple(examples)


def each_row(
    path: Path,
    pictures: PictureFolder,
    *,
    join: Join | None = None,
    answers: AnswerReader | None = None,
    bad: list[BadRow] | None = None,
) -> Iterator[ReadRow]:
    """Read a file row by row, each that can be used; see `read_examples`. Ids are not compared."""
    for number, row in read_rows(path, bad):
        try:
            identity, _ = _identity(row)
            own = "answers" in row  # those of a second file are what several people say
            row = row if join is None else join(row)
            if own:
                check_answer(row)
            made = examples_of(row, pictures, number=number, answers=answers)
        except DataError as error:
            refuse(BadRow(path, number, str(error)), bad)
        else:
            yield ReadRow(number, identity, made)


def examples_of(
    row: Row, pictures: PictureFolder, *, number: int = 1, answers: AnswerReader | None = None
) -> list[Example]:
    """Read one row.

    The placeholder `<image>` is taken out of the questions: every picture is shown before the
    question, in the order in which they are placed.

    Args:
        row: A row of any layout, without null values.
        pictures: Where its pictures are.
        number: Its number in the file, which is its id if it has none.
        answers: How answers are read.

    Returns:
        One example a question. What the row holds besides goes into `extra`.

    Raises:
        DataError: If something is missing, empty, of the wrong kind, or would be dropped.
    """
    answers = answers or AnswerReader()
    identity, key = _identity(row)
    parsed = read_row(row)
    given = pictures_of(row)
    used = {*parsed.used, *KEYS, "system", *([key] if key else [])}
    kept = {key: value for key, value in row.items() if key not in used} | dict(parsed.unread)
    for held in (*given, *(held for turn in parsed.turns for held in turn.places)):
        for name, value in other_keys(held).items():
            kept.setdefault(f"image.{name}", []).append(value)
    system = _system(row, parsed)
    _check_keys(kept, parsed, system)
    shown, wrong = _pictures_by_turn(parsed, given)
    if wrong := [*unread_media(kept, [one for each in shown for one in each]), *wrong]:
        raise DataError("; ".join(wrong))
    extra = MappingProxyType(kept) if kept else NOTHING
    found: dict[int, Path] = {}  # a picture that several turns see is looked for once
    made = []
    for place, (turn, seen) in enumerate(zip(parsed.turns, shown, strict=True), 1):
        question = turn.question.replace(IMAGE, "").strip()
        if not question:
            raise DataError(f"question {place} is empty")
        for line in map(str.strip, question.split("\n")):
            if " " not in line and media_in_text(line):
                raise DataError(f"question {place} holds {brief(line)}: that belongs under image")
        if unseen := _unseen_inline(question, seen):
            raise DataError(
                f"question {place} holds {brief(unseen)}, and that picture is not shown; put its "
                f"name under image, and {IMAGE} in its place"
            )
        for held in seen:
            if id(held) not in found:
                found[id(held)] = find_picture(held, pictures)
        images = tuple(found[id(held)] for held in seen)
        suffix = f"#{place}" if len(parsed.turns) > 1 else ""
        accepted = answers.texts(turn.answer, turn.key)
        name = f"{identity if key else number}{suffix}"
        made.append(Example(name, question, accepted, images, extra, system))
    return made


def _pictures_by_turn(parsed: ParsedRow, given: Sequence[Any]) -> tuple[list[list[Any]], list[str]]:
    """Deal pictures to the turns that see them; also say where places and pictures differ.

    A turn sees the pictures up to its own. Where no place is marked, all are the first turn's.
    """
    places = [[*turn.places] for turn in parsed.turns]
    own = [held for turn in places for held in turn if held is not None and type(held) is not int]
    open_places = sum(map(len, places)) - len(own)
    wrong = []
    if own and not open_places and given:
        if own != given:
            wrong.append("parts hold pictures of their own, and image or images hold others")
        given = []
    if open_places not in (0, len(given)):
        wrong.append(
            f"{open_places} times {IMAGE} for {len(given)} pictures; expected one for each picture "
            "or none at all, and a part of type image is one if it holds no picture itself"
        )
        return [[*own, *given] for _ in places], wrong
    numbers = [held for turn in places for held in turn if type(held) is int]
    if any(not 0 <= number < len(given) for number in numbers) or len({*numbers}) < len(numbers):
        what = f"parts name pictures {numbers} of {len(given)}; name each once, from 0"
        return [[*own, *given] for _ in places], [what]
    waiting = (held for number, held in enumerate(given) if number not in numbers)
    dealt = [
        [next(waiting) if one is None else given[one] if type(one) is int else one for one in turn]
        for turn in places
    ]
    before = [] if open_places else [*given]
    return [*accumulate(dealt, initial=before)][1:], wrong


def _check_keys(kept: Mapping[str, Any], parsed: ParsedRow, system: str) -> None:
    """Refuse keys that are meant for the model, and that nothing reads."""
    if not kept:
        return
    asked = "\n".join([*(turn.question for turn in parsed.turns), system]).replace(IMAGE, "")
    for key, value in kept.items():
        if key.strip().lower() in _SYSTEM and value:
            raise DataError(f"the key {key!r} is not read; call it system")
        if key == "history" and value:
            raise DataError("history is not read beside turns; put what it holds before them")
        if key in QUESTIONS and value and not _is_asked(str(value), asked):
            raise DataError(
                f"{key} is not read here; put it into what is asked or into system, or leave it out"
            )
    texts = [text for turn in parsed.turns for text in (turn.question, str(turn.answer))]
    if "objects" in kept and any(mark in text for mark in _FILLED for text in texts):
        raise DataError(
            f"objects are not filled in; write them in the place of {' and '.join(_FILLED)}"
        )


def _is_asked(text: str, asked: str) -> bool:
    """Tell whether a text stands in what is asked, or that line by line in it: Alpaca's `text`."""
    lines = {line.strip() for line in text.splitlines()}
    whole = all(line.strip() in lines for line in asked.splitlines() if line.strip())
    return whole or text.replace(IMAGE, "").strip() in asked


def _unseen_inline(question: str, shown: Sequence[Any]) -> str:
    """Return the first picture in HTML or Markdown that is not among those shown; "" if none."""
    for mark in _INLINE.finditer(question):
        found = _SOURCE.search(mark[0])
        if found is None or found[found.lastindex or 0] not in names_of(shown):
            return mark[0]
    return ""


def _system(row: Row, parsed: ParsedRow) -> str:
    """Return the system turn, from the row or from its first turn."""
    given = row.get("system", "")
    if not isinstance(given, str):
        raise DataError(f"system should be a text, found {brief(given)}")
    if given.strip() and parsed.system.strip() and given.strip() != parsed.system.strip():
        raise DataError("system and the first turn hold different system turns; leave one out")
    system = given if given.strip() else parsed.system
    if placed(system)[1]:
        raise DataError(f"the system's turn holds {IMAGE}; pictures belong to questions")
    return system if system.strip() else ""


def _identity(row: Row) -> tuple[int | str | None, str]:
    """Return a row's id as the file has it, and its key; (None, "") if it has none.

    It is `id` of a conversation, `question_id` of an evaluation row, or else the other.
    """
    own = ("id", "question_id") if "conversations" in row else ("question_id", "id")
    key = next((key for key in own if row.get(key) is not None), "")
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not key:
        return None, ""
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DataError(
            f"expected a text or a whole number as id or question_id, found {brief(value)}"
        )
    return value, key


def _numbered(example: Example, times: dict[str, int]) -> Example:
    count = times[example.id] = times.get(example.id, 0) + 1
    return example if count == 1 else replace(example, id=f"{example.id}~{count}")
