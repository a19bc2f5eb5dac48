"""Draw docs/results/pocket-main.svg.

What is still known while one task follows another: the mean over seeds, and their range.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "pocket-main.json"
COLOURS = {  # Okabe and Ito
    "finetune": "#999999",
    "moelora": "#D55E00",
    "same-paper": "#E69F00",
    "steadylora": "#56B4E9",
    "same": "#0072B2",
}


def main() -> None:
    """Write the picture."""
    runs = json.loads(RESULTS.read_text())["runs"]
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "undrift", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    ends: list[tuple[float, str]] = []
    for method, colour in COLOURS.items():
        curves = np.array([known(run["matrix"]) for run in runs if run["method"] == method])
        x = np.arange(1, curves.shape[1] + 1)
        axes.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, curves.mean(0), color=colour, linewidth=2 if method == "same" else 1.4)
        ends.append((curves.mean(0)[-1], method))
    joint = float(np.mean([run["last"] for run in runs if run["method"] == "joint"]))
    axes.plot([1, 10], [joint, joint], color="black", linewidth=1, linestyle=(0, (4, 3)))
    ends.append((joint, "joint"))
    last = -np.inf
    for value, method in sorted(ends):  # labels at the lines' ends, pushed apart
        last = max(value, last + 3)
        colour = COLOURS.get(method, "black")
        axes.text(10.15, last, f"{method} {value:.1f}", color=colour, va="center")
    axes.set(xlim=(1, 11.8), ylim=(45, 100), xlabel="tasks learned", xticks=range(1, 11))
    axes.set_ylabel("accuracy over these tasks (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None}, facecolor="white")


def known(matrix: list[list[float]]) -> list[float]:
    """The mean accuracy over the tasks learned so far, after each task."""
    return [float(np.mean(row[: t + 1])) for t, row in enumerate(matrix)]


if __name__ == "__main__":
    main()
