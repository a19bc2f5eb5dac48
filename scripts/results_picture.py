"""Draw docs/results/pocket-orders.svg: where each method ends, order by order."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from undrift.report.study_table import DRAWN

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "pocket-orders.json"
OURS = {"same": "#0072B2", "steadylora": "#56B4E9", "nearlora": "#009E73"}  # Okabe and Ito
OTHER = "#777777"


def main() -> None:
    """Write the picture."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]:
        found.setdefault(run["label"], {}).setdefault(run["order"], []).append(run["last"])
    orders = {
        label: {o: float(np.mean(v)) for o, v in each.items()} for label, each in found.items()
    }
    drawn = {
        label: [value for order, value in each.items() if order.startswith(DRAWN)]
        for label, each in orders.items()
    }
    ranked = sorted(drawn, key=lambda label: float(np.mean(drawn[label])))
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "undrift", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(7, 0.4 + 0.27 * len(ranked)), layout="constrained")
    for place, label in enumerate(ranked):
        colour, values = OURS.get(label, OTHER), drawn[label]
        axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=1, alpha=0.5)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4.5, alpha=0.8)
        axes.plot(np.mean(values), place, "|", color=colour, markersize=13, markeredgewidth=2)
        named = [value for order, value in orders[label].items() if not order.startswith(DRAWN)]
        axes.plot(named, [place] * len(named), "o", color=colour, markersize=4.5, fillstyle="none")
    axes.set_yticks(range(len(ranked)), ranked)
    axes.set(xlim=(40, 100), xlabel="accuracy over ten tasks at the end (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
