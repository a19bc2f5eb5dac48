"""Draw the results of studies: where each method ends, order by order, and streams against time.

    python scripts/results_picture.py

docs/results/pocket-orders.svg and pocket-stream.svg, from the JSON files beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from undrift.report.study_table import FRESH, over_steps

RESULTS = Path(__file__).parents[1] / "docs" / "results"
OURS = {"same": "#0072B2", "steadylora": "#56B4E9", "nearlora": "#009E73"}  # Okabe and Ito
OTHER = "#777777"
NEVER = ", never merged"


def main() -> None:
    """Write the pictures."""
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "undrift", "svg.fonttype": "none"})
    orders("pocket-orders")
    streams("pocket-stream")


def orders(study: str) -> None:
    """Draw a line a method: dots for fresh orders, a bar for their mean, rings for the others."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs_of(study):
        found.setdefault(run["label"], {}).setdefault(run["order"], []).append(run["last"])
    means = {
        label: {o: float(np.mean(v)) for o, v in each.items()} for label, each in found.items()
    }
    fresh = {
        label: [value for order, value in each.items() if order.startswith(FRESH)]
        for label, each in means.items()
    }
    ranked = sorted(fresh, key=lambda label: float(np.mean(fresh[label])))
    _, axes = plt.subplots(figsize=(7, 0.4 + 0.27 * len(ranked)), layout="constrained")
    for place, label in enumerate(ranked):
        colour, values = OURS.get(label, OTHER), fresh[label]
        axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=1, alpha=0.5)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4.5, alpha=0.8)
        axes.plot(np.mean(values), place, "|", color=colour, markersize=13, markeredgewidth=2)
        other = [value for order, value in means[label].items() if not order.startswith(FRESH)]
        axes.plot(other, [place] * len(other), "o", color=colour, markersize=4.5, fillstyle="none")
    axes.set_yticks(range(len(ranked)), ranked)
    axes.set(xlim=(40, 100), xlabel="accuracy over ten tasks at the end (%)")
    finish(axes, "x")
    save(study)


def streams(study: str) -> None:
    """Draw a curve a row: the average of the tasks seen so far, against steps."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs_of(study):
        rows.setdefault(run["label"], []).append(run)
    _, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    styles = iter(("-", "--", ":"))
    for label, runs in rows.items():
        curve, parent = over_steps(runs), label.removesuffix(NEVER)
        line = "--" if label.endswith(NEVER) else "-" if parent in OURS else next(styles)
        axes.plot(
            list(curve), list(curve.values()), line, color=OURS.get(parent, OTHER), marker=".",
            label=label,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="tasks seen so far, average (%)", ylim=(0, 100))
    axes.legend(frameon=False, ncols=2, loc="lower right")
    finish(axes, "y")
    save(study)


def runs_of(study: str) -> list[dict[str, Any]]:
    """Read the runs of a study's results."""
    return json.loads((RESULTS / f"{study}.json").read_text(encoding="utf-8"))["runs"]


def finish(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Leave out the frame's upper half; a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)


def save(study: str) -> None:
    """Write the current figure beside its results."""
    plt.gcf().savefig(RESULTS / f"{study}.svg", metadata={"Date": None}, facecolor="white")
    plt.close()


if __name__ == "__main__":
    main()
