"""A study's runs as one value for JSON; means, bootstrap intervals and paired differences."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from undrift.report.cost import cost
from undrift.rundir import RunDir, read_record
from undrift.rundir.files import FORMAT
from undrift.rundir.records import Manifest, Matrix

RESAMPLES = 10_000
METRICS = ("last", "mft", "bwt", "forgetting")
VERSIONS = ("torch", "transformers", "peft", "undrift")

Run = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Pairs:
    """One row against another.

    Args:
        mean: The mean difference in `last`.
        interval: Its 95 % interval over seeds; None where there is one seed only.
        wins: In how many pairs the row is better.
        count: How many pairs there are.
    """

    mean: float
    interval: Interval | None
    wins: int
    count: int


def run_entry(folder: Path, **known: Any) -> dict[str, Any]:
    """Read what the results say about one finished run.

    Args:
        folder: The run's folder.
        **known: What the run does not know itself: label, setting, options, command, and
            whether it is `trained`.

    Returns:
        The entry in `runs`, accuracies in percent.
    """
    files = RunDir.existing(folder)
    manifest = read_record(files.manifest_file, Manifest)
    saved = read_record(files.matrix_file, Matrix)
    rate = manifest["settings"]["learning_rate"] if known["trained"] else None
    return {
        "label": known["label"],
        "method": manifest["method"],
        "setting": known["setting"],
        "seed": manifest["seed"],
        "order": manifest["order"],
        **{name: _rounded(saved["metrics"][name]) for name in METRICS},
        "learning_rate": rate,
        "options": known["options"],
        "tasks": saved["tasks"],
        "matrix": [_rounded(row) for row in saved["matrix"]],
        "zero_shot": _rounded(saved["zero_shot"]),
        "seconds": {phase: round(value, 1) for phase, value in manifest["seconds"].items()},
        "cost": cost(manifest),
        "command": known["command"],
        "commit": manifest.get("commit"),
    }


def surroundings(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say what the runs were made with; where they differ, every value is named.

    Args:
        manifests: The runs' manifests.

    Returns:
        The keys commit, hardware, versions, benchmark and backbone of the results.
    """
    hardware = [m["hardware"] for m in manifests]
    return {
        "commit": _every(m.get("commit") for m in manifests),
        "hardware": _every(_machine(h) for h in hardware),
        "versions": {v: _every(m["versions"].get(v) for m in manifests) for v in VERSIONS},
        "benchmark": {
            "name": _every(m["benchmark"] for m in manifests),
            "version": _every(m["data"]["version"] for m in manifests),
            "fingerprint": _every(m["data"]["fingerprint"] for m in manifests),
        },
        "backbone": {
            "name": _every(m["backbone"] for m in manifests),
            "fingerprint": _every(m["weights"]["fingerprint"] for m in manifests),
        },
    }


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Estimate the 95 % interval of a mean: the percentile bootstrap.

    Args:
        values: One per seed.
        resamples: How often as many values are drawn with replacement.
        seed: Of the drawing, so that the interval is the same every time.

    Returns:
        The 2.5th and the 97.5th percentile of the means.
    """
    return _bootstrap(tuple(values), resamples, seed)


def by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Average a metric over orders, so that each seed gives one value; None is left out."""
    seeds = dict.fromkeys(run["seed"] for run in runs if run[metric] is not None)
    return {
        seed: fmean(r[metric] for r in runs if r["seed"] == seed and r[metric] is not None)
        for seed in seeds
    }


def pairs(runs: Sequence[Run], against: Sequence[Run]) -> Pairs | None:
    """Compare two rows in `last`, each run with the one of the same seed and order.

    Args:
        runs: The runs of a row. What is not trained has one seed, which stands for all.
        against: The runs of the row it is compared with.

    Returns:
        The comparison, or None if no two runs have seed and order in common.
    """
    ours, theirs = ({_pair(run): run["last"] for run in group} for group in (runs, against))
    if all(run["learning_rate"] is None for run in runs):
        ours = {(s, o): last for s, _ in theirs for (_, o), last in ours.items()}
    common = {key: ours[key] - theirs[key] for key in theirs if key in ours}
    if not common:
        return None
    seeds = dict.fromkeys(seed for seed, _ in common)
    values = [fmean(v for key, v in common.items() if key[0] == seed) for seed in seeds]
    return Pairs(
        fmean(common.values()),
        bootstrap(values) if len(values) > 1 else None,
        sum(value > 0 for value in common.values()),
        len(common),
    )


def groups(runs: Iterable[Run]) -> dict[tuple[str, float | None], list[Run]]:
    """Gather the runs by label and rate, in the order in which they come."""
    out: dict[tuple[str, float | None], list[Run]] = {}
    for run in runs:
        out.setdefault((run["label"], run["learning_rate"]), []).append(run)
    return out


def compact(results: Mapping[str, Any]) -> str:
    """Write the results as JSON that reads and diffs well: a list of numbers is one line.

    Args:
        results: The results.

    Returns:
        JSON, ending in a newline.
    """
    whole = {"format": FORMAT, **results}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    flat = re.compile(r"\[\n([^\[\]{}]*?)\n\s*\]")  # a list without lists; texts hold no newline
    return flat.sub(lambda m: "[" + re.sub(r"\n\s*", " ", m[1].strip()) + "]", text) + "\n"


@cache  # the table is written after every cell, and most rows have not changed
def _bootstrap(values: tuple[float, ...], resamples: int, seed: int) -> Interval:
    draw, count = random.Random(seed), len(values)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(resamples))
    return _percentile(means, 0.025), _percentile(means, 0.975)


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _pair(run: Run) -> tuple[int, str]:
    return run["seed"], words(run["order"])


def words(order: str | Sequence[str]) -> str:
    """Write an order as one text."""
    return order if isinstance(order, str) else ", ".join(order)


def _machine(hardware: Mapping[str, Any]) -> str:
    device = "" if hardware["device"] == "cpu" else f"{hardware['device']}, "
    threads = "one thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return f"{device}{hardware['cpu']}, {hardware['system']}, {threads} a run"


def _every(values: Iterable[str | None]) -> str | None:
    found = list(dict.fromkeys(value for value in values if value is not None))
    return ", ".join(found) if found else None


def _rounded(value: Any) -> Any:
    if isinstance(value, Sequence):
        return [_rounded(inner) for inner in value]
    return value if value is None else round(value, 4)
