"""A question and its answer under two keys; each pair of keys is a shape of its own.

{"question_id": "17", "image": "a/1.jpg", "text": "...", "answer": "B"}    LLaVA's evaluation rows
{"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."]]}      Alpaca

`answers` (several accepted ones) wins over `answer_bbox`, and that over `answer`, which then stays
in `extra`. `history` holds earlier questions with their answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undrift.data.formats.wording import brief
from undrift.data.shapes.dialogue import read_turns
from undrift.data.shapes.said import IMAGE, Row, Said, Turn, places_in, text_under
from undrift.errors import DataError

_ANSWERS = ("answers", "answer_bbox", "answer")


@dataclass(frozen=True)
class Pair:
    """Rows with a question under one key and its answer under another.

    Args:
        question: The question's key.
        answers: The answer's, the most wanted first.
        more: Where the question may go on.
    """

    question: str
    answers: tuple[str, ...]
    more: str = ""

    @property
    def NAME(self) -> str:  # noqa: N802 (as the modules of other shapes)
        """What the shape is called."""
        return f"{self.question} and {self.answers[-1]}"

    def fits(self, row: Row) -> bool:
        """Tell whether a row is of this shape."""
        question = row.get(self.question)
        return (
            question is not None
            and any(key in row for key in self.answers)
            and not isinstance(question, list)
        )

    def read(self, row: Row) -> Said:
        """Read a row of this shape; a DataError says what is wrong."""
        key = next(key for key in self.answers if key in row)
        question = text_under(row, self.question)
        used = {self.question, key}
        if self.more and self.more in row:
            used.add(self.more)
            question = "\n".join(filter(None, [question, text_under(row, self.more)]))
        if isinstance(row[key], str) and IMAGE in row[key]:
            raise DataError(f"{key} holds {IMAGE}; pictures belong to questions")
        turns = [Turn(question, row[key], key, places_in(question))]
        if "history" in row:
            used.add("history")
            turns = [*_earlier(row["history"]), *turns]
        return Said(tuple(turns), frozenset(used))


SHAPES = (
    Pair("text", _ANSWERS),
    Pair("question", _ANSWERS),
    Pair("query", ("response",)),
    Pair("instruction", ("response", "output"), more="input"),
    Pair("prompt", ("response", "completion")),
    Pair("problem", ("solution",)),
)


def _earlier(history: Any) -> list[Turn]:
    if isinstance(history, list) and history and all(isinstance(h, Mapping) for h in history):
        said = read_turns(history, "history", frozenset())
        if said.system or said.unread:
            raise DataError("history should hold questions and answers alone")
        return list(said.turns)
    turns = []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        whole = isinstance(pair, list) and len(pair) == 2
        if not whole or not all(isinstance(text, str) and text.strip() for text in pair):
            raise DataError(f"history should be a list of [question, answer], found {brief(pair)}")
        turns.append(Turn(pair[0], pair[1], f"answer {number} of history", places_in(pair[0])))
    return turns
