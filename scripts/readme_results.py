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


def table(*, whole: bool = False) -> str:
    """Make the table of all methods that were run on all fresh orders; the best mean first.

    Args:
        whole: With what was just learned, the spread over orders, the distance to moelora, and the
            eight orders before.
    """
    rows, before = by_label("pocket-orders", FRESH), by_label("pocket-orders", DRAWN)
    orders = by_order(rows[AGAINST])
    rows |= {k: runs for k, runs in others().items() if by_order(runs).keys() == orders.keys()}
    columns = {name: by_label(study) for name, study in OTHERS.items()}
    return table_of(rows, columns, before=before if whole else None, whole=whole)


def table_of_others() -> str:
    """Make the table of the methods that were run on some fresh orders, on those orders alone."""
    rows = others()
    shared = set.intersection(*(set(by_order(runs)) for runs in rows.values()))
    known = by_label("pocket-orders", FRESH)
    rows |= {name: known[name] for name in (AGAINST, "same", "nearlora")}
    rows = {k: [run for run in runs if run["order"] in shared] for k, runs in rows.items()}
    return table_of(rows, {}, whole=True)


def others() -> dict[str, list[Mapping[str, Any]]]:
    """Gather the runs of the methods that are not among the main ones."""
    return {k: runs for k, runs in by_label("pocket-others", FRESH).items() if k != AGAINST}


def table_of(
    rows: Mapping[str, Runs],
    columns: Mapping[str, Mapping[str, Runs]],
    *,
    before: Mapping[str, Runs] | None = None,
    whole: bool = False,
) -> str:
    """Make a table of rows.

    Args:
        rows: Runs on the same orders, by what they are called.
        columns: Other studies by the heading under which their last average stands.
        before: Runs on the eight orders before, if there is to be a column of them.
        whole: With spread, what was just learned, and the distance to moelora.
    """
    speed = json.loads((RESULTS / "methods-speed.json").read_text(encoding="utf-8"))
    steps = {row["method"]: row["value"] for row in speed["methods"]} | {"finetune": 1.0}
    header = ["method", f"mean of {len(by_order(rows[AGAINST]))} orders", "worst order"]
    header += ["spread", "just learned", f"last − {AGAINST}"] if whole else []
    header += ["eight before: mean, worst"] if before is not None else []
    header += [*columns, "general ability lost, %", "parameters", "step"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for label in sorted(rows, key=lambda label: -fmean(by_order(rows[label]).values())):
        runs = rows[label]
        means = by_order(runs)
        line = [f"`{label}`", f"{fmean(means.values()):.1f}", f"{min(means.values()):.1f}"]
        if whole:
            spread = f"{stdev(means.values()):.1f}"
            line += [spread, mean(runs, "mft"), "" if label == AGAINST else against(runs, rows)]
        if before is not None:
            earlier = by_order(before.get(label, ())).values()
            line += [f"{fmean(earlier):.1f}, {min(earlier):.1f}" if earlier else ""]
        line += [mean(found.get(label, ()), "last") for found in columns.values()]
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
    print(table(), table(whole=True), table_of_others(), sep="\n\n")
