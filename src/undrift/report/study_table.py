"""The Markdown table of a study: a line a row and rate, and what every row costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from undrift.report.study import Interval, Pairs, Run, bootstrap, by_seed, groups, pairs, words
from undrift.report.tables import thousands

COSTS = ("stored", "active", "state", "ms/step")


def study_markdown(results: Mapping[str, Any]) -> str:
    """Write the table of a study.

    Args:
        results: The content of its JSON file.

    Returns:
        Markdown, ending in a newline.
    """
    rows, against = groups(results["runs"]), results.get("against")
    chosen: Mapping[str, float] = results.get("chosen", {})
    base = [run for run in results["runs"] if run["label"] == against]
    header = ["row", "last", "just learned", "BWT", "rate", "runs"]
    header += [f"last − {against}", "wins"] if against else []
    priced = _priced(results)
    header += COSTS if priced else ()
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for (label, rate), runs in rows.items():
        best = rate is not None and chosen.get(label) == rate
        mark = " (chosen)" if best else ""
        if best and rate is not None and _at_edge(results, label, rate):
            mark = " (chosen, at the edge)"
        line = [f"**{label}**" if best else label]
        line += [_mean(runs, "last", interval=True), _mean(runs, "mft"), _mean(runs, "bwt")]
        line += ["" if rate is None else f"{rate:g}{mark}", str(len(runs))]
        if against:
            line += _compared(pairs(runs, base) if label != against else None)
        if priced:
            line += _costs(runs)
        lines.append(line)
    text = "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
    return "\n\n".join([text, _notes(results), f"Made by `{results['command']}`."]) + "\n"


def _priced(results: Mapping[str, Any]) -> bool:
    """Tell whether the table says what rows cost: not where it compares their rates."""
    return "chosen" not in results and any(run.get("cost") for run in results["runs"])


def _notes(results: Mapping[str, Any]) -> str:
    orders = list(dict.fromkeys(words(run["order"]) for run in results["runs"]))
    seeds = sorted({run["seed"] for run in results["runs"]})
    where = f"seeds {', '.join(map(str, seeds))}; order {' and '.join(orders)}"
    said = f"Percent, means over seeds ({where}); in brackets the 95 % interval, bootstrap over "
    said += "seeds."
    if results.get("against"):
        said += " Differences and wins are between runs of the same seed and order."
    if _priced(results):
        said += " After the last task: parameters stored, parameters that a token is multiplied "
        said += "with, bytes of all that answering and learning on need. ms/step: CPU time of a "
        said += "training step, mean over all tasks."
    failed = [_failed(failure) for failure in results.get("failed", ())]
    return said + (f" Failed: {'; '.join(failed)}." if failed else "")


def _at_edge(results: Mapping[str, Any], label: str, rate: float) -> bool:
    """Tell whether a rate is the smallest or the largest of several that a row has tried."""
    every = [*results["runs"], *results.get("failed", ())]
    tried = {run["learning_rate"] for run in every if run["label"] == label}
    return len(tried) > 1 and rate in (min(tried), max(tried))


def _failed(failure: Mapping[str, Any]) -> str:
    rate = failure["learning_rate"]
    at = "" if rate is None else f", rate {rate:g}"
    return f"{failure['label']} (seed {failure['seed']}, order {words(failure['order'])}{at})"


def _mean(runs: Sequence[Run], metric: str, *, interval: bool = False) -> str:
    values = list(by_seed(runs, metric).values())
    if not values:
        return ""
    spread = f" {_brackets(bootstrap(values))}" if interval and len(values) > 1 else ""
    return f"{fmean(values):z.1f}{spread}"


def _compared(found: Pairs | None) -> list[str]:
    if found is None:
        return ["", ""]
    spread = f" {_brackets(found.interval, '+')}" if found.interval else ""
    return [f"{found.mean:+z.1f}{spread}", f"{found.wins} of {found.count}"]


def _costs(runs: Sequence[Run]) -> list[str]:
    costs = [run["cost"] for run in runs if run.get("cost")]
    if not costs:
        return ["", "", "", ""]
    sizes = [fmean(cost[key] for cost in costs) for key in ("stored", "active", "state_bytes")]
    times = [cost["step_cpu_ms"] for cost in costs if cost["step_cpu_ms"] is not None]
    return [*map(thousands, sizes), f"{fmean(times):.0f}" if times else ""]


def _brackets(interval: Interval, sign: str = "") -> str:
    return "[" + ", ".join(f"{bound:{sign}z.1f}" for bound in interval) + "]"
