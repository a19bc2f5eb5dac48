"""One self-contained HTML page: heat maps side by side, the table, the two drifts in a line."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from undrift.report.results import DRIFTS, Results, labels
from undrift.report.tables import METRICS, grid, protocol
from undrift.scoring import FORMULAS

TEMPLATES = Environment(
    loader=PackageLoader("undrift.report", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def page(runs: Sequence[Results]) -> str:
    """Write the comparison as a page that needs no other file and no network.

    Args:
        runs: The runs, one heat map and one column each.

    Returns:
        A whole HTML document.
    """
    from undrift.report.figures import draw, heat_map  # late: they load matplotlib

    maps = []
    for label, run in zip(labels(runs), runs, strict=True):
        figure = heat_map(f"accuracy of {label}", run.tasks, run.matrix, run.zero_shot)
        maps.append((label, Markup(draw(figure).svg)))
    return TEMPLATES.get_template("page.html.j2").render(
        title=" and ".join(labels(runs)),
        maps=maps,
        grid=grid(runs),
        drifts=DRIFTS,
        protocol=protocol(runs),
        formulas={words: FORMULAS[metric] for metric, words in METRICS.items()},
    )
