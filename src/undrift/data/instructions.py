r"""Rows of instruction files to examples: the conversations of LLaVA, and their evaluation rows.

Two shapes are known, and a file may hold either (a third, of messages, is in messages.py)::

    {"id": 17, "image": "a/1.jpg", "conversations": [{"from": "human", "value": "<image>\n..."},
                                                     {"from": "gpt", "value": "B"}, ...]}
    {"question_id": "17", "image": "a/1.jpg", "text": "...", "answer": "B"}

A conversation of several turns becomes one example a question, each with the row's pictures. That
is how the model is asked, and it differs from training on the whole conversation as LLaVA does: a
question does not see the questions and answers before it, and the picture is shown once a question
rather than once a row, so that the same data takes more tokens and more examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from undrift.data.files import BadRow, Pictures, read_rows, refuse
from undrift.data.messages import as_conversation, dataset_rows, is_dataset, kept_picture
from undrift.data.row_files import brief
from undrift.data.types import Example
from undrift.errors import DataError
from undrift.untrusted import Refused

IMAGE = "<image>"  # where a picture stands in a text; the collator puts its own token there

Row = dict[str, Any]
Join = Callable[[Row], Row]
"""Adds to a row what a second file knows about it; raises DataError where that knows nothing."""

_USED = {"id", "question_id", "image", "conversations", "text", "answers"}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def read_examples(
    path: Path,
    pictures: Pictures,
    *,
    join: Join | None = None,
    number_repeats: bool = False,
    bad: list[BadRow] | None = None,
) -> tuple[Example, ...]:
    """Read the examples of one file; no picture is opened, but each must be there.

    Args:
        path: The file: .json, .jsonl or .parquet; or a folder that `datasets` has saved.
        pictures: Where the pictures are.
        join: Applied to each row before it is read.
        number_repeats: Tell examples that share an id apart by `~2`, `~3` ... in the order of the
            file. For training, where published files repeat ids and nothing is matched by them;
            otherwise a repeated id makes a row bad.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The examples in the order of the file. Ids are texts, whatever they are in the file; those
        of a row with several questions end in `#1`, `#2` ...

    Raises:
        DataError: If the file cannot be read, or if a row cannot be used; the message names both.
    """
    examples: list[Example] = []
    first: dict[str, int] = {}  # id -> row
    times: dict[str, int] = {}
    for number, row in rows_of(path, bad):
        try:
            made = examples_of(row if join is None else join(row), pictures)
            if number_repeats:
                made = [_numbered(example, times) for example in made]
            for example in made:
                if example.id in first:
                    raise DataError(
                        f"the id {example.id!r} is that of row {first[example.id]} as well; "
                        "answers are matched by id, so ids must be unique"
                    )
            first |= {example.id: number for example in made}
            examples += made
        except DataError as error:
            refuse(BadRow(path, number, str(error)), bad)
    return tuple(examples)


def rows_of(path: Path, bad: list[BadRow] | None = None) -> Iterator[tuple[int, Row]]:
    """Read rows of any kind that is known: those of messages come as conversations.

    Args:
        path: A file, or a folder that `datasets` has saved.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Yields:
        The number of the row, from 1, and the row, without null values.

    Raises:
        DataError: If the file cannot be read, or a row cannot be used.
    """
    for number, row in dataset_rows(path) if is_dataset(path) else read_rows(path, bad):
        if isinstance(row, Refused):
            refuse(BadRow(path, number, row.reason), bad)
            continue
        try:
            yield number, as_conversation(row, number)
        except DataError as error:
            refuse(BadRow(path, number, str(error)), bad)


def examples_of(row: Row, pictures: Pictures) -> list[Example]:
    """Read one row.

    The placeholder `<image>` is taken out of the questions: every picture is shown before the
    question, in the order of `image`, even where a text had placed it further behind.

    Args:
        row: A row of either shape, without null values.
        pictures: Where its pictures are.

    Returns:
        One example a question. What the row holds besides goes into `extra`.

    Raises:
        DataError: If something is missing, empty or of the wrong kind.
    """
    identity = identity_of(row)
    if "conversations" in row:
        asked = [(question, (answer,)) for question, answer in _turns(row["conversations"])]
        used = _USED
    else:
        answers, key = _answers(row)
        asked = [(_text(row, "text"), answers)]
        used = _USED | {key}
    names = _names(row)
    placed = sum(question.count(IMAGE) for question, _ in asked)
    if placed not in (0, len(names)):
        raise DataError(
            f"{placed} times {IMAGE} for {len(names)} pictures; expected one for each picture, "
            "or none at all"
        )
    images = tuple(
        pictures.find(name) if isinstance(name, str) else kept_picture(name) for name in names
    )
    kept = {key: value for key, value in row.items() if key not in used}
    extra = MappingProxyType(kept) if kept else _NOTHING
    made = []
    for turn, (question, answers) in enumerate(asked, 1):
        question = question.replace(IMAGE, "").strip()
        if not question:
            raise DataError(f"question {turn} is empty")
        suffix = f"#{turn}" if len(asked) > 1 else ""
        made.append(Example(f"{identity}{suffix}", question, answers, images, extra))
    return made


def identity_of(row: Row) -> int | str:
    """Return the id of a row of either shape, as the file has it.

    Args:
        row: The row.

    Returns:
        The id: `id` of a conversation, `question_id` of an evaluation row, or else the other.

    Raises:
        DataError: If it has none.
    """
    own, other = ("id", "question_id") if "conversations" in row else ("question_id", "id")
    value = row.get(own, row.get(other))
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DataError(
            f"expected a text or a whole number as id or question_id, found {brief(value)}"
        )
    return value


def _names(row: Row) -> list[str | Mapping[str, Any]]:
    """The pictures of a row: their names, or what stands for them inside a dataset."""
    value = row.get("image", [])
    names = value if isinstance(value, list) else [value]
    known = [isinstance(n, Mapping) or (isinstance(n, str) and bool(n.strip())) for n in names]
    if "image" in row and not (names and all(known)):
        raise DataError(
            f"image is {str(value)[:60]!r}; expected the name of a picture or a list of names, and "
            "no such key where there is no picture"
        )
    return names


def _turns(value: Any) -> list[tuple[str, str]]:
    """Questions and answers of a conversation."""
    whole = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    roles = [turn.get("from") for turn in value] if whole else []
    if not roles or len(roles) % 2 or roles != ["human", "gpt"] * (len(roles) // 2):
        said = roles[:6] if whole else str(value)[:60]
        raise DataError(f"expected turns from human, gpt, human, gpt ..., found {said!r}")
    texts = [_text(turn, "value") for turn in value]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    for turn, (_, answer) in enumerate(pairs, 1):
        if not answer.strip():
            raise DataError(f"answer {turn} is empty")
        if IMAGE in answer:
            raise DataError(f"answer {turn} holds {IMAGE}; pictures belong to questions")
    return pairs


def _answers(row: Row) -> tuple[tuple[str, ...], str]:
    """Accepted answers of an evaluation row, and the key that gave them.

    `answers` wins over `answer_bbox`, and that over `answer`, which then stays in `extra`.
    """
    for key in ("answers", "answer_bbox", "answer"):
        if key in row:
            value = row[key]
            if isinstance(value, list) and key != "answer_bbox":
                return tuple(_plain(one, key) for one in value), key
            return (_plain(value, key),), key
    raise DataError(f"no answer and no conversations; the keys are {_keys(row)}")


def _plain(value: Any, key: str) -> str:
    known = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not known or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{key} should be a text or a number, found {str(value)[:60]!r}")
    return str(value)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(
            f"expected a text under {key!r}, found {brief(value)}; the keys are {_keys(row)}"
        )
    return value


def _keys(row: Mapping[str, Any]) -> str:
    """Name the keys of a row, the first twenty."""
    more = ", ..." if len(row) > 20 else ""
    return ", ".join(map(brief, islice(row, 20))) + more if row else "none"


def _numbered(example: Example, times: dict[str, int]) -> Example:
    count = times[example.id] = times.get(example.id, 0) + 1
    if count == 1:
        return example
    return Example(
        f"{example.id}~{count}", example.question, example.answers, example.images, example.extra
    )
