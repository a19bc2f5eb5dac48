"""Write docs/results/pocket-drift.json and its three pictures from diagnosed runs.

    python scripts/drift_results.py RUN...

where each RUN was made and diagnosed by the `commands` below, and of each kind the one with seed 0
by `undrift diagnose RUN --reroute charts`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from undrift.report import Results, grouped, load
from undrift.report.drawing import export
from undrift.report.figures import reroute, route_drift, shares
from undrift.report.forgetting import explain_all, verdict
from undrift.rundir import read_json

RESULTS = Path(__file__).parents[1] / "docs" / "results"
RUN = "undrift run pocket --method NAME --seed S"


def main(folders: Sequence[Path]) -> None:
    """Write the files."""
    runs = [load(folder) for folder in folders]
    losses = explain_all(runs)
    found = {
        "commands": [
            f"{RUN} --out RUN",
            f"{RUN} --set train.learning_rate=1.5e-3 --out RUN",
            "undrift diagnose RUN",
        ],
        "verdict": verdict(losses),
        "methods": {
            loss.label: {
                "seeds": [run.seed for run in group.runs],
                **{part: round_(getattr(loss, part)) for part in PARTS},
                "tasks": {
                    task.name: {part: round_(getattr(task, part)) for part in ("learned", *PARTS)}
                    for task in loss.tasks
                },
                **drifts(group.runs),
            }
            for loss, group in zip(losses, grouped(runs), strict=True)
        },
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (RESULTS / "pocket-drift.json").write_text(text + "\n", encoding="utf-8")
    first = {short(group.label): group.runs[0].folder / "diagnose" for group in grouped(runs)}
    routes = {name: read_json(folder / "routes.json")["cells"] for name, folder in first.items()}
    rerouted = {name: read_json(folder / "reroute.json") for name, folder in first.items()}
    named = [replace(loss, label=short(loss.label)) for loss in losses]
    draw(shares("What was forgotten, and why", named), "pocket-drift")
    draw(route_drift("Where each task's inputs go", routes), "pocket-drift-routes")
    draw(reroute("What a new router gets out of the experts", rerouted), "pocket-drift-reroute")


def short(label: str) -> str:
    """Shorten the name of a group: "moelora (3 seeds, learning rate 0.001)" to "moelora 0.001"."""
    return re.sub(r" \(3 seeds(?:, learning rate( .*))?\)", r"\1", label)


def draw(figure: Any, stem: str) -> None:
    """Keep the SVG of a figure."""
    export(figure, RESULTS, stem)
    (RESULTS / f"{stem}.pdf").unlink()


PARTS = ("lost", "router", "expert", "form")


def table(found: dict[str, Any]) -> str:
    """Print the table of docs/drift.md.

    Args:
        found: What pocket-drift.json holds.

    Returns:
        Markdown.
    """
    methods = found["methods"].values()
    end = "all tasks, at the end"
    rows = [
        ["", *map(short, found["methods"])],
        ["---", *["---:"] * len(found["methods"])],
        ["points lost since learned, mean over tasks", *(f"{m['lost']:.1f}" for m in methods)],
        ["of these by router / experts / form",
         *(f"{m['router']:.1f} / {m['expert']:.1f} / {m['form']:.1f}" for m in methods)],
        ["overlap of routes with their own snapshot, at the end, %",
         *(f"{m['overlap'][end]:.1f}" for m in methods)],
        ["tokens that keep their first expert, %", *(f"{m['top1'][end]:.1f}" for m in methods)],
        ["movement of the experts, squared, relative to what they said",
         *(f"{m['moved'][end]:.2f}" for m in methods)],
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def drifts(runs: Sequence[Results]) -> dict[str, Any]:
    """Average over seeds how far routers and experts have moved, stage by stage and at the end."""
    routes, experts = (
        [read_json(run.folder / "diagnose" / f"{name}.json")["cells"] for run in runs]
        for name in ("routes", "experts")
    )
    last = len(runs[0].tasks)
    found: dict[str, Any] = {}
    for name, key, seeds in (
        ("overlap", "overlap", routes),
        ("top1", "top1", routes),
        ("moved", "moved", experts),
    ):
        found[name] = {
            "task 1, by stage": [
                mean(cell[key] for cells in seeds for cell in cells
                     if cell["task"] == 1 and cell["after"] == stage)
                for stage in range(1, last + 1)
            ],
            "all tasks, at the end": mean(
                cell[key] for cells in seeds for cell in cells if cell["after"] == last
            ),
        }  # fmt: skip
    alone = [cell["alone"]["overlap"] for cells in routes for cell in cells]
    ends = [cell["after"] == last for cells in routes for cell in cells]
    found["overlap"]["router alone, all tasks, at the end"] = mean(
        value for value, end in zip(alone, ends, strict=True) if end
    )
    files = [run.folder / "diagnose" / "reroute.json" for run in runs]
    found["reroute"] = [read_json(file) for file in files if file.is_file()]
    return found


def mean(values: Any) -> float:
    """Average."""
    return round(fmean(values), 6)


def round_(value: float | None) -> float | None:
    """Round so far that a table's one decimal is not rounded twice."""
    return None if value is None else round(value, 6)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
