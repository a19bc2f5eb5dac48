"""Print the tables of methods in README (a few) and docs/methods.md (all), from committed results.

    python scripts/readme_results.py

Accuracies come from docs/results/pocket-all.json, the time of a step from
docs/results/methods-speed.json (`python -m benchmarks.methods --json FILE`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from undrift.report.comparison import short_number
from undrift.report.study_table import bootstrap, by_seed, groups, pairs

RESULTS = Path(__file__).parents[1] / "docs" / "results"
HEADER = (
    "method",
    "last",
    "just learned",
    "BWT",
    "last − same",
    "runs",
    "parameters",
    "state",
    "step",
)


SHORT = (
    "joint",
    "disco",
    "same",
    "steadylora",
    "replay",
    "same-paper",
    "ewc",
    "moelora",
    "finetune",
)


def table(labels: Sequence[str] = ()) -> str:
    """Make the table of some methods, or of all; best last average first."""
    study = json.loads((RESULTS / "pocket-all.json").read_text(encoding="utf-8"))
    speed = json.loads((RESULTS / "methods-speed.json").read_text(encoding="utf-8"))
    steps = {row["method"]: row["value"] for row in speed["methods"]} | {"finetune": 1.0}
    steps["proglora-dynamic"] = steps["proglora"]
    rows = {label: runs for (label, _), runs in groups(study["runs"]).items()}
    order = sorted(labels or rows, key=lambda label: -fmean(by_seed(rows[label], "last").values()))
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)]]
    for label in order:
        runs = rows[label]
        method, costs = runs[0]["method"], [run["cost"] for run in runs if run.get("cost")]
        against = "" if label == "same" else _difference(runs, rows["same"])
        sizes = [short_number(fmean(c[key] for c in costs)) if costs else ""
                 for key in ("stored", "state_bytes")]  # fmt: skip
        step = f"{steps[method]:.2f}" if method in steps else ""
        lines.append([f"`{label}`", _mean(runs, "last", spread=True), _mean(runs, "mft"),
                      _mean(runs, "bwt"), against, str(len(runs)), *sizes, step])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(runs: list[Any], metric: str, *, spread: bool = False) -> str:
    values = list(by_seed(runs, metric).values())
    if not values:
        return ""
    low, high = bootstrap(values)
    return f"{fmean(values):z.1f}" + (
        f" [{low:.1f}, {high:.1f}]" if spread and len(values) > 1 else ""
    )


def _difference(runs: list[Any], same: list[Any]) -> str:
    found = pairs(runs, same)
    return "" if found is None else f"{found.mean:+z.1f}"


if __name__ == "__main__":
    print(table(SHORT), table(), sep="\n\n")
