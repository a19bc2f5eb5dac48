"""Heat maps of accuracy matrices as plain SVG that follows the reader's light or dark theme.

A cell is the accent colour at an opacity equal to the accuracy, so one drawing serves both themes.
An SVG is complete in itself: it can stand in a page or be a picture in a README.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

TEMPLATES = Environment(
    loader=PackageLoader("undrift.report", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def heat_map(
    title: str,
    tasks: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
    zero_shot: Sequence[float | None] = (),
) -> str:
    """Draw an accuracy matrix: a row after each task learned, a column for each task asked.

    Args:
        title: What is drawn; becomes the accessible name.
        tasks: Column names, in the order of learning.
        matrix: Scores in percent, None where nothing was measured.
        zero_shot: The scores of the untouched model, drawn as row 0 if any was measured.

    Returns:
        An `<svg>` element.
    """
    one_row = len(matrix) < len(tasks)
    rows = [("end" if one_row else str(t), row) for t, row in enumerate(matrix, 1)]
    if any(score is not None for score in zero_shot):
        rows.insert(0, ("0", zero_shot))
    cells = [
        {
            "x": column,
            "y": y,
            "score": score,
            "tone": "low" if score < 56 else "middle" if score < 76 else "high",
            "learned": name == str(column + 1),
            "when": "at the end" if one_row and name != "0" else f"after task {name}",
            "task": tasks[column],
        }
        for y, (name, row) in enumerate(rows)
        for column, score in enumerate(row)
        if score is not None
    ]
    names = [name for name, _ in rows]
    template = TEMPLATES.get_template("heat_map.svg.j2")
    return template.render(title=title, tasks=tasks, rows=names, cells=cells)
