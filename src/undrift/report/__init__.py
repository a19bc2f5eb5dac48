"""Reads the files of finished runs, never a model: tables, heat maps, one page.

`load(folder)` reads a run; everything else takes a list of what it returns:
`table` for the terminal, `markdown` for a document, `summary` for programs, `page` for a browser.
"""

from __future__ import annotations

from undrift.report.figures import heat_map
from undrift.report.page import page
from undrift.report.results import DRIFTS, Results, labels, load, summary
from undrift.report.tables import markdown, table

__all__ = [
    "DRIFTS",
    "Results",
    "heat_map",
    "labels",
    "load",
    "markdown",
    "page",
    "summary",
    "table",
]
