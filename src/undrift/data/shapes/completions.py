"""Prompts and completions that are lists of messages, as TRL has them.

{"prompt": [{"role": "user", "content": "..."}],
 "completion": [{"role": "assistant", "content": "B"}]}
"""

from __future__ import annotations

from undrift.data.shapes.dialogue import read_turns
from undrift.data.shapes.said import Row, Said

NAME = "prompt and completion"


def fits(row: Row) -> bool:
    """Tell whether a row is of this shape."""
    return isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list | str)


def read(row: Row) -> Said:
    """Read a row of this shape; a DataError says what is wrong."""
    used, answer = frozenset({"prompt", "completion"}), row["completion"]
    said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return read_turns([*row["prompt"], *said], "prompt and completion", used)
