"""Reads the files of finished runs, never a model: tables, margins, published rows, heat maps.

`load(folder)` reads a run; everything else takes a list of what it returns: `table` for the
terminal, `sections` for all that there is to say (`as_markdown`, `as_latex`), `as_csv` and
`summary` for programs, `page(tell(runs))` for a browser.
"""

from __future__ import annotations

from undrift.report.against import published_sections
from undrift.report.articles import published, published_benchmarks
from undrift.report.comparison import difference_section, margin_section, sections
from undrift.report.markup import as_latex, as_markdown, print_sections
from undrift.report.noise import grouped
from undrift.report.page import page
from undrift.report.results import DRIFTS, Results, labels, load
from undrift.report.story import Story, check_related, tell
from undrift.report.tables import table
from undrift.report.tidy import as_csv, summary

__all__ = [
    "DRIFTS",
    "Results",
    "Story",
    "as_csv",
    "as_latex",
    "as_markdown",
    "check_related",
    "difference_section",
    "grouped",
    "labels",
    "load",
    "margin_section",
    "page",
    "print_sections",
    "published",
    "published_benchmarks",
    "published_sections",
    "sections",
    "summary",
    "table",
    "tell",
]
