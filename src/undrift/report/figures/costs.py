"""What training cost, task by task: seconds, memory, speed, state, experts at rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from undrift.errors import ConfigError
from undrift.report.figures.sequence import line
from undrift.report.figures.sheet import RULES, key, sheet, styles

Entry = Mapping[str, Any]


def _speed(entry: Entry) -> float | None:
    tokens, seconds = entry.get("tokens"), entry.get("seconds")
    return tokens / seconds if tokens is not None and seconds else None


def _entry(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.get(name)


def _resting(entry: Entry) -> float | None:
    return fmean(entry["resting"].values()) if entry.get("resting") else None


_KINDS: Mapping[str, Callable[[Entry], float | None]] = {
    "training, seconds": _entry("seconds"),
    "peak memory, bytes": _entry("peak_bytes"),
    "speed, tokens a second": _speed,
    "state, bytes": _entry("state_bytes"),
    "experts at rest, mean": _resting,
}


@RULES
def costs(title: str, runs: Mapping[str, Sequence[Entry]]) -> Figure:
    """Draw what training each task cost.

    Args:
        title: What is drawn; becomes the accessible name.
        runs: The entries of "budget" in each run's `manifest.json`, one a task.

    Returns:
        The figure: a panel for each cost that any run has recorded, a line a run.

    Raises:
        ConfigError: If no run has recorded any cost.
    """
    read = {kind: _read(runs, kind) for kind in _KINDS}
    found = {kind: own for kind, own in read.items() if any(map(_known, own.values()))}
    if not found:
        raise ConfigError(
            f"nothing to draw for {title!r}: no run has recorded what it cost; leave it out"
        )
    looks = styles(len(runs))
    page = sheet(
        title,
        list(found),
        x="task",
        y="",
        left=0.4,
        below=0.2,
        legend=key(list(runs), looks),
        across=min(3, len(found)),
        share=False,
    )
    page.stages(max(len(values) for own in found.values() for values in own.values()))
    for panel, (kind, own) in zip(page.axes, found.items(), strict=True):
        for (label, values), look in zip(own.items(), looks, strict=True):
            line(panel, dict(enumerate(values, 1)), look, f"{label}, {kind}")
        known = [value for values in own.values() for value in values if value is not None]
        panel.yaxis.set_major_formatter(_thousands)
        panel.set_ylim(0, 1.08 * max(known) or 1)
    return page.figure


def _read(runs: Mapping[str, Sequence[Entry]], kind: str) -> dict[str, list[float | None]]:
    return {label: [_KINDS[kind](entry) for entry in run] for label, run in runs.items()}


def _thousands(value: float, _: object) -> str:
    """Write 1500000 as "1.5M"."""
    for sign, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:g}{sign}"
    return f"{value:g}"


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)
