"""What a run's method costs, as its manifest has it: parameters, bytes of state, time of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = ("trainable", "active", "stored", "state_bytes")


def cost(manifest: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Say what a method costs after its last task, and what a step took on all the way.

    Args:
        manifest: The content of manifest.json.

    Returns:
        The names in SIZES, and `step_cpu_ms`, which is None where no task was timed as a whole;
        None where nothing was trained, or an older undrift did not say.
    """
    tasks = manifest.get("budget", ())
    if not tasks:
        return None
    timed = [task for task in tasks if task.get("cpu_seconds") and task.get("steps")]
    steps, seconds = (sum(task[key] for task in timed) for key in ("steps", "cpu_seconds"))
    sizes = {key: tasks[-1][key] for key in SIZES}
    return {**sizes, "step_cpu_ms": round(1000 * seconds / steps, 1) if steps else None}


def thousands(number: float) -> str:
    """Write 112345 as "112k"."""
    return f"{number / 1000:.0f}k"
