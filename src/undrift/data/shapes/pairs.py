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
from undrift.data.shapes.said import Row, Said, Turn, placed, text_under
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
        there = [key for key in self.answers if key in row]
        key = next((key for key in there if row[key] not in ("", [])), there[0])
        for other in there:
            if other not in (key, *_ANSWERS) and row[other] not in ("", [], row[key]):
                raise DataError(f"{key} and {other} hold different answers; leave one of them out")
        question = text_under(row, self.question)
        used = {self.question, key}
        if self.more and self.more in row:
            used.add(self.more)
            question = "\n".join(filter(None, [question, text_under(row, self.more)]))
        question, places = placed(question)
        turns = [Turn(question, row[key], key, places)]
        if row.get("history"):
            used.add("history")
            turns = [*_earlier(row["history"]), *turns]
        return Said(tuple(turns), frozenset(used))


SHAPES = (
    Pair("text", _ANSWERS),
    Pair("question", (*_ANSWERS[:2], "response", "answer")),
    Pair("query", ("response",)),
    Pair("instruction", ("response", "output"), more="input"),
    Pair("prompt", ("response", "answer", "completion")),
    Pair("problem", ("answer", "solution")),
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
        question, places = placed(pair[0])
        turns.append(Turn(question, pair[1], f"answer {number} of history", places))
    return turns
