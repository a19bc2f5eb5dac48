r"""Conversations, as LLaVA and ShareGPT write them.

{"id": 17, "image": "a/1.jpg", "conversations": [{"from": "human", "value": "<image>\n..."},
                                                 {"from": "gpt", "value": "B"}, ...]}
"""

from __future__ import annotations

from undrift.data.shapes.dialogue import read_turns
from undrift.data.shapes.said import Row, Said

NAME = "conversations"


def fits(row: Row) -> bool:
    """Tell whether a row is of this shape."""
    return "conversations" in row


def read(row: Row) -> Said:
    """Read a row of this shape; a DataError says what is wrong."""
    return read_turns(row["conversations"], "conversations", frozenset({"conversations"}))
