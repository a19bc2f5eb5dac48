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


def _scaled(name: str, unit: float) -> Callable[[Entry], float | None]:
    def read(entry: Entry) -> float | None:
        value = entry.get(name)
        return None if value is None else value / unit

    return read


def _resting(entry: Entry) -> float | None:
    return fmean(entry["resting"].values()) if entry.get("resting") else None


_KINDS: Mapping[str, Callable[[Entry], float | None]] = {
    "training, seconds": _scaled("seconds", 1),
    "peak memory, MiB": _scaled("peak_bytes", 2**20),
    "speed, tokens a second": _speed,
    "state, KiB": _scaled("state_bytes", 2**10),
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
        share=False,
    )
    page.stages(max(len(values) for own in found.values() for values in own.values()))
    for panel, (kind, own) in zip(page.axes, found.items(), strict=True):
        for (label, values), look in zip(own.items(), looks, strict=True):
            line(panel, dict(enumerate(values, 1)), look, f"{label}, {kind}")
        panel.set_ylim(bottom=0)
    return page.figure


def _read(runs: Mapping[str, Sequence[Entry]], kind: str) -> dict[str, list[float | None]]:
    return {label: [_KINDS[kind](entry) for entry in run] for label, run in runs.items()}


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)
