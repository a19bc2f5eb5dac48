"""The Markdown table of a study: a line a row and rate, what every row costs, and its statistics.

Means over orders give one value a seed. The interval of one order is bootstrap over seeds; that of
several has a part of the orders and one of the seeds. Differences are paired by seed and order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from undrift.report.comparison import short_number, student
from undrift.report.export import markdown_table
from undrift.report.paired import spread_of
from undrift.report.results import GENERAL, GENERAL_LOST
from undrift.scoring.over_time import seen_average

RESAMPLES = 10_000
DRAWN = "report-"
"""Begins the names of orders that were drawn for reporting."""
FRESH = "fresh-"
"""Begins the names of orders that were drawn after the defaults had been frozen."""
COSTS = ("stored", "active", "state", "ms/step")

Run = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Pairs:
    """One row against another.

    Args:
        mean: The mean difference in `last`.
        interval: Its 95 % interval, see `interval`; None where there is one cell only.
        wins: In how many pairs the row is better.
        count: How many pairs there are.
    """

    mean: float
    interval: Interval | None
    wins: int
    count: int


def bootstrap(values: Sequence[float]) -> Interval:
    """Estimate the 95 % interval of a mean: the percentile bootstrap over one value a seed.

    The drawing has a seed, so that the interval is the same every time.
    """
    return _bootstrap(tuple(values))


def interval(cells: Mapping[tuple[str, int], float]) -> Interval | None:
    """Estimate the 95 % interval of a mean over cells, a value by order and seed.

    Of one order it is the bootstrap over seeds. Of several, orders and seeds are separate sources,
    see `undrift.report.paired`, and it is Student's. None for one cell.
    """
    if len(cells) < 2:
        return None
    if len({order for order, _ in cells}) == 1:
        return bootstrap(list(cells.values()))
    found = spread_of(cells)
    if found.error is None:
        return None
    half = student(int(found.freedom)) * found.error
    return found.mean - half, found.mean + half


def by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Average a metric over orders, so that each seed gives one value; None is left out."""
    known = [run for run in runs if run.get(metric) is not None]
    seeds = dict.fromkeys(run["seed"] for run in known)
    return {seed: fmean(r[metric] for r in known if r["seed"] == seed) for seed in seeds}


def pairs(runs: Sequence[Run], against: Sequence[Run]) -> Pairs | None:
    """Compare two rows in `last`, each run with the one of the same seed and order.

    Args:
        runs: The runs of a row. What is not trained has one seed, which stands for all.
        against: The runs of the row it is compared with.

    Returns:
        The comparison, or None if no two runs have seed and order in common.
    """
    ours, theirs = (
        {(run["seed"], _order(run["order"])): run["last"] for run in group}
        for group in (runs, against)
    )
    if all(run["learning_rate"] is None for run in runs):
        ours = {(s, o): last for s, _ in theirs for (_, o), last in ours.items()}
    common = {key: ours[key] - theirs[key] for key in theirs if key in ours}
    if not common:
        return None
    return Pairs(
        fmean(common.values()),
        interval({(order, seed): value for (seed, order), value in common.items()}),
        sum(value > 0 for value in common.values()),
        len(common),
    )


def groups(runs: Iterable[Run]) -> dict[tuple[str, float | None], list[Run]]:
    """Gather the runs by label and rate, in the order in which they come."""
    out: dict[tuple[str, float | None], list[Run]] = {}
    for run in runs:
        out.setdefault((run["label"], run["learning_rate"]), []).append(run)
    return out


@cache  # the table is written after every cell, and most rows have not changed
def _bootstrap(values: tuple[float, ...]) -> Interval:
    draw, count = random.Random(0), len(values)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(RESAMPLES))
    return _percentile(means, 0.025), _percentile(means, 0.975)


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


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
    general = any(GENERAL in run for run in results["runs"])
    streams = any("stream" in run for run in results["runs"])
    own = ("anytime", "forgetting") if streams else ("just learned", "BWT")
    header = ["row", "last", *own, *[GENERAL_LOST] * general, "rate", "runs"]
    header += [f"last − {against}", "wins"] if against else []
    shown = {(line["label"], line["learning_rate"]): line for line in results.get("paired", ())}
    header += ["could show"] * bool(shown)
    priced = _priced(results)
    header += COSTS if priced else ()
    lines: list[list[str]] = []
    for (label, rate), runs in rows.items():
        best = rate is not None and chosen.get(label) == rate
        mark = " (chosen)" if best else ""
        if best and rate is not None and _at_edge(results, label, rate):
            mark = " (chosen, at the edge)"
        line = [f"**{label}**" if best else label]
        line += [_mean(runs, "last", bracketed=True)]
        if streams:
            line += [_of_streams(runs, metric) for metric in own]
        else:
            line += [_mean(runs, "mft"), _mean(runs, "bwt")]
        line += [_mean(runs, GENERAL)] if general else []
        line += ["" if rate is None else f"{rate:g}{mark}", str(len(runs))]
        if against:
            line += _compared(pairs(runs, base) if label != against else None)
        if shown:
            least = shown.get((label, rate), {}).get("detectable")
            line.append("" if least is None else f"{least:.1f}")
        if priced:
            line += _costs(runs)
        lines.append(line)
    parts = [
        markdown_table(header, lines),
        *_by_order(rows, base, against),
        *([_against_time(rows)] if streams else []),
        _notes(results),
        f"Made by `{results['command']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _by_order(
    rows: Mapping[tuple[str, float | None], list[Run]], base: Sequence[Run], against: str | None
) -> list[str]:
    """Write a table of orders, where there are several: last, and what a row is above another.

    Those drawn for reporting have a mean, the worst one and the spread (a standard deviation), and
    so have the fresh ones.
    """
    names = list(dict.fromkeys(_order(r["order"]) for runs in rows.values() for r in runs))
    if len(names) < 2:
        return []
    drawn = [[name for name in names if name.startswith(prefix)] for prefix in (DRAWN, FRESH)]
    groups = {own[0].partition("-")[0]: own for own in drawn if len(own) > 1}
    lines = []
    for (label, rate), runs in rows.items():
        own = {n: [r for r in runs if _order(r["order"]) == n] for n in names}
        means = {n: fmean(r["last"] for r in found) for n, found in own.items() if found}
        line = [label, "" if rate is None else f"{rate:g}"]
        for group in groups.values():
            known = [means[n] for n in group if n in means]
            line += [f"{v:.1f}" for v in (fmean(known), min(known))] if known else ["", ""]
            line += [f"{stdev(known):.1f}"] if len(known) > 1 else [""]
        for n in names:
            found = pairs(own[n], base) if against and label != against else None
            apart = "" if found is None else f" ({found.mean:+z.1f})"
            line.append(f"{means[n]:.1f}{apart}" if n in means else "")
        lines.append(line)
    header = ["last, by order", "rate"]
    for name in groups:
        header += [f"mean of {name} orders", "worst", "spread"]
    return [markdown_table([*header, *names], lines)]


def _against_time(rows: Mapping[tuple[str, float | None], list[Run]]) -> str:
    """Write a table of points: the average of the tasks that a stream has shown until then."""
    found = {label: over_steps(runs) for (label, _), runs in rows.items()}
    steps = sorted({step for means in found.values() for step in means})
    lines = [
        [label, *(f"{means[step]:.1f}" if step in means else "" for step in steps)]
        for label, means in found.items()
    ]
    return markdown_table(["seen so far, at step", *map(str, steps)], lines)


def over_steps(runs: Sequence[Run]) -> dict[int, float]:
    """Average, at each point of a stream, the tasks that were seen until then, then the runs.

    Args:
        runs: The runs of a row.

    Returns:
        The averages in percent by step; empty where no run was a stream.
    """
    found: dict[int, list[float]] = {}
    for run in runs:
        points = run.get("stream", {}).get("points", ())
        averages = seen_average([point["scores"] for point in points])
        for point, average in zip(points, averages, strict=True):
            if average is not None:
                found.setdefault(point["step"], []).append(average)
    return {step: fmean(values) for step, values in found.items()}


def _of_streams(runs: Sequence[Run], metric: str) -> str:
    values = [run["stream"]["metrics"][metric] for run in runs if "stream" in run]
    known = [value for value in values if value is not None]
    return f"{fmean(known):z.1f}" if known else ""


def _priced(results: Mapping[str, Any]) -> bool:
    """Tell whether the table says what rows cost: not where it compares their rates."""
    return "chosen" not in results and any(run.get("cost") for run in results["runs"])


def _notes(results: Mapping[str, Any]) -> str:
    orders = list(dict.fromkeys(_order(run["order"]) for run in results["runs"]))
    seeds = sorted({run["seed"] for run in results["runs"]})
    where = f"seeds {', '.join(map(str, seeds))}; order {' and '.join(orders)}"
    text = f"Percent, means over seeds ({where}); in brackets the 95 % interval, "
    text += (
        "bootstrap over seeds."
        if len(orders) == 1
        else "of which orders and seeds are separate sources (Student's t)."
    )
    if results.get("against"):
        text += " Differences and wins are between runs of the same seed and order."
    if results.get("paired"):
        text += " Could show: the least true difference that is told from none in 80 of 100 such "
        text += "studies, by the noise of questions (clustered by picture), seeds and orders; "
        text += "`paired` in the JSON has every seed and order by itself."
    if any(GENERAL in run for run in results["runs"]):
        text += " General ability is what the base could do before (`general` in the JSON)."
    if _priced(results):
        text += " After the last task: parameters stored, parameters that a token is multiplied "
        text += "with, bytes of all that answering and learning on need. ms/step: CPU time of a "
        text += "training step, mean over all tasks."
    if (drop := results.get("drop")) is not None:
        text += f" A rate more than {drop:g} points below its row's best with the first seed was "
        text += "run with that seed only."
    if any("stream" in run for run in results["runs"]):
        text += " Without boundaries: anytime is the mean over the points of the average of the "
        text += (
            "tasks seen until then; forgetting, how far each is below its best point at the end."
        )
    failed = [_failed(failure) for failure in results.get("failed", ())]
    return text + (f" Failed: {'; '.join(failed)}." if failed else "")


def _at_edge(results: Mapping[str, Any], label: str, rate: float) -> bool:
    """Tell whether a rate is the smallest or the largest of several that a row has tried."""
    every = [*results["runs"], *results.get("failed", ())]
    tried = {run["learning_rate"] for run in every if run["label"] == label}
    return len(tried) > 1 and rate in (min(tried), max(tried))


def _failed(failure: Mapping[str, Any]) -> str:
    rate = failure["learning_rate"]
    at = "" if rate is None else f", rate {rate:g}"
    return f"{failure['label']} (seed {failure['seed']}, order {_order(failure['order'])}{at})"


def _mean(runs: Sequence[Run], metric: str, *, bracketed: bool = False) -> str:
    values = list(by_seed(runs, metric).values())
    if not values:
        return ""
    known = {(_order(r["order"]), r["seed"]): r[metric] for r in runs if r[metric] is not None}
    found = interval(known) if bracketed else None
    return f"{fmean(values):z.1f}{f' {_brackets(found)}' if found else ''}"


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
    return [*map(short_number, sizes), f"{fmean(times):.0f}" if times else ""]


def _brackets(interval: Interval, sign: str = "") -> str:
    return "[" + ", ".join(f"{bound:{sign}z.1f}" for bound in interval) + "]"


def _order(order: str | Sequence[str]) -> str:
    return order if isinstance(order, str) else ", ".join(order)
