"""Shapes of rows, a shape a file behind one front: what a row says, and what of it was not read.

A shape tells whether a row `fits`, and can `read` it. A new one is one more file here and one more
name in `SHAPES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from undrift.data.shapes import completions, conversations, messages, pairs
from undrift.data.shapes.said import Row, Said, keys_of
from undrift.errors import DataError


class Shape(Protocol):
    """A kind of rows: a module, or an object."""

    @property
    def NAME(self) -> str:  # noqa: N802 (modules have it as a constant)
        """What it is called in messages."""
        ...

    def fits(self, row: Row) -> bool:
        """Tell whether a row is of this shape."""
        ...

    def read(self, row: Row) -> Said:
        """Read a row of this shape; a DataError says what is wrong."""
        ...


SHAPES: tuple[Shape, ...] = (conversations, messages, completions, *pairs.SHAPES)


def read_row(row: Row) -> Said:
    """Read a row of whatever shape is known.

    Args:
        row: The row, without null values.

    Returns:
        What it says.

    Raises:
        DataError: If it is of no shape or of several, or if something in it is wrong.
    """
    fitting = [shape for shape in SHAPES if shape.fits(row)]
    if len(fitting) > 1:
        names = " and as ".join(shape.NAME for shape in fitting)
        raise DataError(f"the row can be read as {names}; leave out the keys that are not meant")
    if fitting:
        return fitting[0].read(row)
    raise DataError(_unknown(row))


def _unknown(row: Row) -> str:
    """Say what a row lacks that is of no shape."""
    question = next((pair.question for pair in pairs.SHAPES if pair.question in row), "")
    answer = next((key for pair in pairs.SHAPES for key in pair.answers if key in row), "")
    said = "no question and no answer"
    if question or answer:
        said = f"no answer beside {question!r}" if question else f"no question beside {answer!r}"
    said += f"; the keys are {keys_of(row)}; expected {', '.join(shape.NAME for shape in SHAPES)}"
    for key, value in row.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            return f"{said}. If {key!r} holds the rows, make a file of that list alone"
    return said
