"""Finished runs as tables, figures and one page: reads their files, never a model.

`load(folder)` reads a run; everything else takes a list of what it returns: `print_table` for the
terminal, `sections` for all that there is to say (`as_markdown`, `as_latex`), `as_csv` and
`summary` for programs. What draws is imported by its module, since matplotlib takes most of a
second to import: `page.page(page_content.page_content(runs))` for a browser.
"""

from __future__ import annotations

from undrift.report.chain import load, load_all
from undrift.report.comparison import (
    check_related,
    difference_section,
    grouped,
    margin_section,
    sections,
    time_section,
)
from undrift.report.export import (
    as_csv,
    as_latex,
    as_markdown,
    print_sections,
    print_table,
    summary,
    table,
)
from undrift.report.published_numbers import (
    Published,
    published,
    published_benchmarks,
    published_sections,
)
from undrift.report.results import DRIFTS, Results, labels

__all__ = [
    "DRIFTS",
    "Published",
    "Results",
    "as_csv",
    "as_latex",
    "as_markdown",
    "check_related",
    "difference_section",
    "grouped",
    "labels",
    "load",
    "load_all",
    "margin_section",
    "print_sections",
    "print_table",
    "published",
    "published_benchmarks",
    "published_sections",
    "sections",
    "summary",
    "table",
    "time_section",
]
