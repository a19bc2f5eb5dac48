"""What every shape of rows is read as: turns of question and answer, and what was not read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from undrift.data.formats.wording import brief
from undrift.errors import ConfigError, DataError

Row = Mapping[str, Any]
IMAGE = "<image>"
"""Where a picture stands in a text; the collator puts its own token there."""

BOOLEANS = ("yes-no",)
_BOX = "box"  # the scorer whose answers are four numbers
_REFUSED = ("<video>", "<audio>")
_INSIDE = re.compile(r"<img>([^<>]+)</img>")  # Qwen-VL's own way to write a picture's name
_STRANGE = re.compile(
    r"<\|?/?(?:image|img|video|audio|speech)(?:[ _-]?(?:\d+|here|placeholder|pad|start|end))?\s*"
    r"/?\|?>",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reading:
    """How a task's answers are to be read.

    Args:
        scorer: The task's: where it is `box`, a list of four numbers is one answer.
        booleans: "yes-no" to read true and false as Yes and No; they are refused otherwise.

    Raises:
        ConfigError: If `booleans` is something else.
    """

    scorer: str = "exact"
    booleans: str = ""

    def __post_init__(self) -> None:
        if self.booleans not in ("", *BOOLEANS):
            raise ConfigError(f"booleans is {self.booleans!r}; expected yes-no, or nothing at all")

    def answers(self, value: Any, key: str) -> tuple[str, ...]:
        """Return accepted answers as texts.

        Args:
            value: What the row holds: a text or number, a list of them, or of VQA's objects, each
                with an `answer`.
            key: Its key, for messages.

        Returns:
            The texts.

        Raises:
            DataError: If it is something else, or can be meant in two ways.
        """
        if not isinstance(value, list):
            return (self._text(value, key),)
        if value and all(map(_is_number, value)):
            return (self._box(value, key),)
        inner = [one.get("answer") if isinstance(one, Mapping) else one for one in value]
        return tuple(
            self._box(one, key)
            if isinstance(one, list) and one and all(map(_is_number, one))
            else self._text(one, key)
            for one in inner
        )

    def _box(self, numbers: list[Any], key: str) -> str:
        text = f"[{', '.join(self._text(one, key) for one in numbers)}]"
        if self.scorer == _BOX and len(numbers) == 4:
            return text
        if self.scorer == _BOX:
            raise DataError(f"{key} is {brief(text)}; a box has four numbers")
        raise DataError(
            f"{key} is the list of numbers {brief(text)}; for a box say scorer: box (--scorer "
            "box), for several accepted answers write them as texts"
        )

    def _text(self, value: Any, key: str) -> str:
        if isinstance(value, bool):
            if self.booleans:
                return "Yes" if value else "No"
            raise DataError(
                f"{key} is the truth value {str(value).lower()}; write the text that is meant, or "
                "say booleans: yes-no (--booleans yes-no)"
            )
        if isinstance(value, float) and math.isfinite(value):
            whole = value.is_integer() and abs(value) < 2**53  # 1.0 is how tables write a 1
            return str(int(value) if whole else value)
        if isinstance(value, float) or not isinstance(value, str | int):
            raise DataError(f"{key} should be a text or a number, found {brief(value)}")
        if isinstance(value, str) and IMAGE in value:
            raise DataError(f"{key} holds {IMAGE}; pictures belong to questions")
        return str(value)


class Turn(NamedTuple):
    """A question and its answer.

    Args:
        question: The text, `<image>` included.
        answer: Accepted answers as the row has them.
        key: Where the answer stands, for messages.
        places: A picture of its own for each place of one; None where the row's next is meant, and
            a whole number where the row's picture of that number is, from 0.
    """

    question: str
    answer: Any
    key: str
    places: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Said:
    """What a shape makes of a row.

    Args:
        turns: At least one.
        used: The keys of the row that were read.
        system: The system turn; empty if there is none.
        unread: What turns and parts hold besides, by where it stands.
    """

    turns: tuple[Turn, ...]
    used: frozenset[str]
    system: str = ""
    unread: Mapping[str, Any] = field(default_factory=dict)


def text_under(row: Row, key: str) -> str:
    """Return a text of a row.

    Args:
        row: The row, or a turn.
        key: Its key.

    Returns:
        The text.

    Raises:
        DataError: If there is none.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(
            f"expected a text under {key!r}, found {brief(value)}; the keys are {keys_of(row)}"
        )
    return value


def keys_of(row: Iterable[Any]) -> str:
    """Name the keys of a row, the first twenty."""
    named = [brief(key) for key in islice(row, 21)]
    return ", ".join(named[:20]) + (", ..." if len(named) > 20 else "") if named else "none"


def placed(text: str) -> tuple[str, tuple[str | None, ...]]:
    """Find the places of pictures in a text.

    Args:
        text: What is said.

    Returns:
        The text with `<image>` in every place, and for each the picture's name if it stands there.

    Raises:
        DataError: If it places videos or sound, or a picture in a way that is not known.
    """
    for mark in _REFUSED:
        if mark in text:
            raise DataError(f"the text holds {mark}; videos and sound are not supported")
    marks = re.finditer(f"{_INSIDE.pattern}|{IMAGE}", text)
    places = tuple(mark[1].strip() if mark[1] else None for mark in marks)
    text = _INSIDE.sub(IMAGE, text)
    if strange := _STRANGE.search(text.replace(IMAGE, "")):
        raise DataError(
            f"the text holds {strange[0]}; the place of a picture is {IMAGE}, and its name stands "
            "under image or images"
        )
    return text, places


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
