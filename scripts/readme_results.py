"""Print the tables of methods in README (short) and docs/methods.md (whole) from the results.

    python scripts/readme_results.py

Accuracies, general ability, sizes: docs/results/pocket-orders.json (the eight fresh
orders, drawn after the defaults had been frozen), pocket-shared.json and desk.json; of the methods
that are not in them pocket-others.json. The time of a step: methods-speed.json
(`python -m benchmarks.methods --json FILE`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from undrift.report.comparison import short_number
from undrift.report.study_table import DRAWN, FRESH, pairs

RESULTS = Path(__file__).parents[1] / "docs" / "results"
AGAINST = "moelora"
OTHERS = {"shared questions": "pocket-shared", "desk": "desk"}
"""Column -> the study whose last average it shows."""

Runs = Sequence[Mapping[str, Any]]


def table(study: str = "pocket-orders", *, whole: bool = False) -> str:
    """Make the table of a study's methods on the fresh orders; the best mean first.

    Args:
        study: Which; what the same methods have on other studies stands beside it.
        whole: With what was just learned, the spread over orders, the distance to moelora, and the
            eight orders before.
    """
    rows, before = by_label(study, FRESH), by_label(study, DRAWN) if whole else {}
    orders = {run["order"] for runs in rows.values() for run in runs}
    others = {name: by_label(each) for name, each in OTHERS.items()}
    others = {name: found for name, found in others.items() if (rows.keys() & found) - {AGAINST}}
    speed = json.loads((RESULTS / "methods-speed.json").read_text(encoding="utf-8"))
    steps = {row["method"]: row["value"] for row in speed["methods"]} | {"finetune": 1.0}
    more = ["spread", "just learned", f"last − {AGAINST}"] if whole else []
    more += ["eight before: mean, worst"] if before else []
    header = ["method", f"mean of {len(orders)} orders", "worst order", *more]
    header += [*others, "general ability lost, %", "parameters", "step"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for label in sorted(rows, key=lambda label: -fmean(by_order(rows[label]).values())):
        runs = rows[label]
        means = by_order(runs)
        line = [f"`{label}`", f"{fmean(means.values()):.1f}", f"{min(means.values()):.1f}"]
        if whole:
            spread = f"{stdev(means.values()):.1f}"
            line += [spread, mean(runs, "mft"), "" if label == AGAINST else against(runs, rows)]
        if before:
            earlier = by_order(before.get(label, ())).values()
            line += [f"{fmean(earlier):.1f}, {min(earlier):.1f}" if earlier else ""]
        line += [mean(found.get(label, ()), "last") for found in others.values()]
        stored = [run["cost"]["stored"] for run in runs if run.get("cost")]
        method = runs[0]["method"]
        line += [mean(runs, "general_loss"), short_number(fmean(stored)) if stored else ""]
        line += [f"{steps[method]:.2f}" if method in steps else ""]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_label(study: str, orders: str = "") -> dict[str, list[Mapping[str, Any]]]:
    """Gather a study's runs by row, those whose order begins so."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in json.loads((RESULTS / f"{study}.json").read_text(encoding="utf-8"))["runs"]:
        if run["order"].startswith(orders):
            found.setdefault(run["label"], []).append(run)
    return found


def by_order(runs: Runs) -> dict[str, float]:
    """Average the last accuracy of each order over its seeds."""
    orders = dict.fromkeys(run["order"] for run in runs)
    return {o: fmean(run["last"] for run in runs if run["order"] == o) for o in orders}


def mean(runs: Runs, metric: str) -> str:
    """Average a metric over runs; empty where none has it."""
    known = [run[metric] for run in runs if run.get(metric) is not None]
    return f"{fmean(known):z.1f}" if known else ""


def against(runs: Runs, rows: Mapping[str, Runs]) -> str:
    """Say how far a row is above the one it is compared with, in pairs, with its interval."""
    found = pairs(runs, rows[AGAINST])
    if found is None:
        return ""
    around = f" [{found.interval[0]:+z.1f}, {found.interval[1]:+z.1f}]" if found.interval else ""
    return f"{found.mean:+z.1f}{around}"


if __name__ == "__main__":
    print(table(), table(whole=True), table("pocket-others", whole=True), sep="\n\n")
