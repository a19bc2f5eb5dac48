"""Tables for a terminal of any width: turned, then cut between columns, never through a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

Line = Sequence[str]
_FRAME = 3  # what a column takes beside its text: two blanks and a line
_SHORT = 14  # cells up to here, numbers with their spread among them, stay on one line
_LONGEST = 24  # a longer word is broken


@dataclass(frozen=True)
class Piece:
    """A table that fits, or a part of one.

    Args:
        header: Names of its columns.
        rows: Its cells.
        widths: How wide each column is drawn.
    """

    header: Line
    rows: Sequence[Line]
    widths: Sequence[int]


def pieces(header: Line, rows: Sequence[Line], width: int, *, turned: bool = True) -> list[Piece]:
    """Make a table fit into a terminal.

    Args:
        header: Names of the columns.
        rows: The cells.
        width: Of the terminal.
        turned: Whether a table that is too wide is turned, its rows becoming columns.

    Returns:
        The table, or the turned one; or where that is too wide as well several, each with the first
        column and as many others as fit.
    """
    lines = [list(header), *map(list, rows)]
    if turned and _width(_needs(lines)) > width:
        lines = [list(line) for line in zip(*lines, strict=True)]
    found, count = [], len(lines[0])
    start = 1
    while start < count or not found:
        end = start + 1
        while end < count and _width(_needs(_part(lines, start, end + 1))) <= width:
            end += 1
        part = _part(lines, start, end)
        found.append(Piece(part[0], part[1:], _widths(part, width)))
        start = end
    return found


def drawn(piece: Piece, bold: Sequence[str] = ()) -> Table:
    """Draw a piece; the rows that begin with one of `bold` are bold, below a line."""
    made = Table()
    for index, (name, width) in enumerate(zip(piece.header, piece.widths, strict=True)):
        made.add_column(
            escape(name), justify="right" if index else "left", width=width, overflow="fold"
        )
    for row in piece.rows:
        if row[0] in bold:
            made.add_section()
        made.add_row(*map(escape, row), style="bold" if row[0] in bold else None)
    return made


def _part(lines: Sequence[Line], start: int, end: int) -> list[Line]:
    return [[*line[:1], *line[start:end]] for line in lines]


def _needs(lines: Sequence[Line]) -> list[int]:
    """How narrow each column can be."""
    return [max(map(_need, column)) for column in zip(*lines, strict=True)]


def _full(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _need(cell: str) -> int:
    if _full(cell) <= _SHORT:
        return _full(cell)
    return min(max(cell_len(word) for word in cell.split()), _LONGEST)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + _FRAME * len(widths) + 1


def _widths(lines: Sequence[Line], width: int) -> list[int]:
    """Give what is left of the width to the columns whose texts would be broken."""
    widths, full = _needs(lines), [max(map(_full, column)) for column in zip(*lines, strict=True)]
    left = width - _width(widths)
    while left > 0 and (short := [i for i, w in enumerate(widths) if w < full[i]]):
        for i in short[:left]:
            widths[i] += 1
        left -= len(short[:left])
    return widths
