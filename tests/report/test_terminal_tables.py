"""Tables at any width of a terminal: turned or in parts, every number whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from undrift.report import print_sections, published, published_benchmarks, published_sections
from undrift.report.terminal_tables import drawn, pieces

HEADER = ["method", *(f"task {i}" for i in range(12))]
ROWS = [[f"m{j}", *(f"{10 * j + i}.{i:02} ± 0.{j}" for i in range(12))] for j in range(4)]


def shown(parts, width):
    out = io.StringIO()
    console = Console(file=out, width=width)
    for part in parts:
        console.print(drawn(part))
    return out.getvalue()


def test_a_table_that_fits_stays_as_it_is():
    (part,) = pieces(HEADER, ROWS, 300)
    assert (part.header, [*part.rows]) == (HEADER, ROWS)


def test_a_wide_table_is_turned():
    (part,) = pieces(HEADER, ROWS, 80)
    assert part.header == ["method", "m0", "m1", "m2", "m3"]
    assert part.rows[3] == ["task 3", "3.03 ± 0.0", "13.03 ± 0.1", "23.03 ± 0.2", "33.03 ± 0.3"]


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("width", [30, 45, 60])
def test_a_narrow_terminal_gets_parts_with_every_cell_whole(width, turned):
    parts = pieces(HEADER, ROWS, width, turned=turned)
    text = shown(parts, width)
    assert len(parts) > 1 and {len(part.rows) for part in parts} == {12 if turned else 4}
    assert max(map(len, text.splitlines())) <= width
    for row in ROWS:
        assert all(cell in text for cell in row)


@pytest.mark.parametrize("width", [40, 100])
@pytest.mark.parametrize("name", published_benchmarks())
def test_published_numbers_are_never_cut(name, width):
    articles, out = published(name), io.StringIO()
    print_sections(Console(file=out, width=width), published_sections([], articles))
    words = out.getvalue().split()
    numbers = [v for t in articles.tables for row in t.rows for v in row.values.values() if v]
    assert all(f"{value:.2f}" in words for value in numbers)
    assert "these runs" not in out.getvalue()
