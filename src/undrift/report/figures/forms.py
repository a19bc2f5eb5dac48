"""How the form of one task's answers went over the sequence, and what its errors look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from undrift.report.figures.sequence import line
from undrift.report.figures.sheet import (
    RULES,
    SERIES,
    SOFT,
    key,
    sheet,
    styles,
    tell,
)

if TYPE_CHECKING:
    from undrift.report.forms import FormCell

_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++")
_CONTENT = "wrong content"
_SCORES = {
    "strict": "strict: as the benchmark counts",
    "lenient": "lenient: the content alone",
    "form": "form: in the form asked for",
}


@RULES
def forms(title: str, cells: Sequence[FormCell], task: int) -> Figure:
    """Draw one task's strict, lenient and form scores over the sequence.

    Args:
        title: What is drawn; becomes the accessible name.
        cells: The cells of a run, of this task and of others.
        task: The task, counted from 1.

    Returns:
        The figure: three lines over the stages.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    own, names = _own(cells, task)
    looks = styles(len(_SCORES))
    page = sheet(
        title,
        names,
        x="after learning task",
        y="share of answers, %",
        legend=key(list(_SCORES.values()), looks),
        across=1,
    )
    (panel,) = page.axes
    page.stages(max(cell.after for cell in own))
    page.percent()
    for (what, words), look in zip(_SCORES.items(), looks, strict=True):
        values = {cell.after: getattr(cell, what) for cell in own}
        line(panel, values, look, words.partition(":")[0])
    return page.figure


@RULES
def errors(title: str, cells: Sequence[FormCell], task: int) -> Figure:
    """Draw one task's wrong answers over the sequence, by kind.

    Args:
        title: What is drawn; becomes the accessible name.
        cells: The cells of a run, of this task and of others.
        task: The task, counted from 1.

    Returns:
        The figure: a stacked bar a stage.

    Raises:
        ConfigError: If there is nothing to draw.
    """
    own, names = _own(cells, task)
    kinds = [_CONTENT, *dict.fromkeys(kind for cell in own for kind in cell.errors)]
    looks = {
        kind: (SERIES[n % len(SERIES) - 1], _HATCHES[n % len(_HATCHES)])
        for n, kind in enumerate(kinds)
    }
    legend = [
        Patch(facecolor=color, hatch=hatch, edgecolor=SOFT, linewidth=0.4, label=kind)
        for kind, (color, hatch) in looks.items()
    ]
    page = sheet(title, names, x="after learning task", y="wrong answers", legend=legend, across=1)
    (panel,) = page.axes
    page.stages(max(cell.after for cell in own))
    panel.grid(visible=False, axis="x")
    panel.set_ylim(0, 1.05 * max(1, *(cell.wrong for cell in own)))
    for cell in own:
        base = 0
        content = cell.wrong - sum(cell.errors.values())
        for kind, count in {_CONTENT: content, **cell.errors}.items():
            color, hatch = looks[kind]
            (bar,) = panel.bar(
                cell.after, count, 0.7, base, color=color, hatch=hatch, edgecolor=SOFT,
                linewidth=0.4,
            )  # fmt: skip
            tell(bar, f"after task {cell.after}, {kind}: {count} of {cell.wrong} wrong answers")
            base += count
    return page.figure


def _own(cells: Sequence[FormCell], task: int) -> tuple[list[FormCell], list[str]]:
    """Pick a task's cells in the order of the stages, and the panel's heading if there are any."""
    own = sorted((cell for cell in cells if cell.task == task), key=lambda cell: cell.after)
    return own, [f"{task} {own[0].name}"] if own else []
