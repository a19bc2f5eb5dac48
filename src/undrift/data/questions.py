"""Questions whose answers nobody knows yet: rows of every layout, with their answers or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undrift.data.instructions import Row, read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.row_files import BadRow
from undrift.data.row_layouts import ANSWERS, LAYOUTS, PAIRS, Layout
from undrift.data.types import Example

UNKNOWN = "?"
"""The answer of a question that has none; no model is shown it."""
_TURNS = ("conversations", "messages")
_ASKS = ("human", "user")


def read_questions(
    path: Path, pictures: PictureFolder, bad: list[BadRow] | None = None
) -> tuple[Example, ...]:
    """Read the questions of one file, in any format and layout that training data may have.

    Args:
        path: The file.
        pictures: Where the pictures are.
        bad: Receives the rows that cannot be used; without it, the first one is raised.

    Returns:
        The questions in the order of the file, with the ids that `read_examples` gives them. Their
        answers are not to be used.

    Raises:
        DataError: If the file cannot be read, or if a row cannot be used; the message names both.
    """
    return read_examples(path, pictures, join=unanswered, bad=bad)


def unanswered(row: Row) -> Row:
    """Put `UNKNOWN` in the place of a row's answer, whether it has one or not.

    Args:
        row: A row of any layout; one that is of no layout stays as it is.

    Returns:
        The row; of a conversation that has an answer to every question, itself.
    """
    for key in _TURNS:
        if key in row:
            return {**row, key: _answered(row[key])}
    if isinstance(row.get("prompt"), list):
        return {**row, "completion": UNKNOWN}
    fitting = [each for each in LAYOUTS if not isinstance(each, Layout) and each.fits(row)]
    asked = [pair for pair in PAIRS if pair.question in row]
    if not asked:
        return row
    unknown = {pair.answers[-1]: UNKNOWN for pair in fitting or asked}
    return {key: value for key, value in row.items() if key not in ANSWERS} | unknown


def _answered(turns: Any) -> Any:
    """Put an answer behind the last question, if it has none."""
    last = turns[-1] if isinstance(turns, Sequence) and turns else None
    if not isinstance(last, Mapping):
        return turns
    for role, value in (("role", "content"), ("from", "value")):
        if last.get(role) in _ASKS:
            return [*turns, {role: "assistant", value: UNKNOWN}]
    return turns
