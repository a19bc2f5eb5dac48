"""What a run's method costs, by its manifest: parameters, bytes of state, time, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SIZES = ("trainable", "active", "stored", "state_bytes")


def cost(manifest: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Say what a method costs after its last task, and what learning took on all the way.

    Args:
        manifest: The content of manifest.json.

    Returns:
        The names in SIZES; `step_cpu_ms` and `tokens_per_second`, which are None where no task was
        timed as a whole; and `peak_bytes`, the most memory that the learning of a task took, None
        where that is not known. None where nothing was trained, or an older undrift did not say.
    """
    tasks = manifest.get("budget", ())
    if not tasks:
        return None
    step = _ratio(tasks, "cpu_seconds", "steps")
    rate = _ratio(tasks, "tokens", "seconds")
    peaks = [task["peak_bytes"] for task in tasks if task.get("peak_bytes")]
    return {
        **{key: tasks[-1][key] for key in SIZES},
        "step_cpu_ms": None if step is None else round(1000 * step, 1),
        "tokens_per_second": None if rate is None else round(rate, 1),
        "peak_bytes": max(peaks, default=None),
    }


def _ratio(tasks: Iterable[Mapping[str, Any]], above: str, below: str) -> float | None:
    """Divide two sums over those tasks of which both are known."""
    known = [task for task in tasks if task.get(above) and task.get(below)]
    if not known:
        return None
    return sum(task[above] for task in known) / sum(task[below] for task in known)
