"""One self-contained HTML page: heat maps side by side, the table, the two drifts in a line."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from undrift.report.figures import TEMPLATES, heat_map
from undrift.report.results import DRIFTS, Results, labels
from undrift.report.tables import METRICS, grid, protocol
from undrift.scoring import FORMULAS


def page(runs: Sequence[Results]) -> str:
    """Write the comparison as a page that needs no other file and no network.

    Args:
        runs: The runs, one heat map and one column each.

    Returns:
        A whole HTML document.
    """
    maps = [
        (label, Markup(heat_map(f"accuracy of {label}", run.tasks, run.matrix, run.zero_shot)))
        for label, run in zip(labels(runs), runs, strict=True)
    ]
    return TEMPLATES.get_template("page.html.j2").render(
        title=" and ".join(labels(runs)),
        maps=maps,
        grid=grid(runs),
        drifts=DRIFTS,
        protocol=protocol(runs),
        formulas={words: FORMULAS[metric] for metric, words in METRICS.items()},
    )
