"""Messages, as OpenAI's API, TRL's trainers and Qwen's scripts write them.

{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]},
              {"role": "assistant", "content": "B"}],
 "images": ["a/1.jpg"]}

Content is a text or a list of parts. A part may hold its own picture (`image`, `url`, `path`,
`base64` or OpenAI's `image_url`); one that does not stands for the next of `images`.
"""

from __future__ import annotations

from undrift.data.shapes.dialogue import read_turns
from undrift.data.shapes.said import Row, Said

NAME = "messages"


def fits(row: Row) -> bool:
    """Tell whether a row is of this shape."""
    return "messages" in row


def read(row: Row) -> Said:
    """Read a row of this shape; a DataError says what is wrong."""
    return read_turns(row["messages"], "messages", frozenset({"messages"}))
