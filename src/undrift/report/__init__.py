"""Finished runs as tables, figures and one page: reads their files, never a model.

`load(folder)` reads a run; everything else takes a list of what it returns: `table` for the
terminal, `sections` for all that there is to say (`as_markdown`, `as_latex`), `as_csv` and
`summary` for programs, `page(page_content(runs))` for a browser.
"""

from __future__ import annotations

from undrift.report.comparison import grouped
from undrift.report.export import as_csv, as_latex, as_markdown, print_sections, summary, table
from undrift.report.page import page
from undrift.report.page_content import PageContent, check_related, page_content
from undrift.report.published_numbers import published, published_benchmarks, published_sections
from undrift.report.results import DRIFTS, Results, labels, load
from undrift.report.tables import difference_section, margin_section, sections

__all__ = [
    "DRIFTS",
    "PageContent",
    "Results",
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
    "page_content",
    "print_sections",
    "published",
    "published_benchmarks",
    "published_sections",
    "sections",
    "summary",
    "table",
]
