"""What files of finished runs say: what a run cost, its entry in a study's results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from undrift.rundir.files import FORMAT
from undrift.rundir.paths import RunDir
from undrift.rundir.records import General, Manifest, Matrix, Stream, read_record

METRICS = ("last", "mft", "bwt", "forgetting")
SIZES = ("trainable", "active", "stored", "state_bytes")
VERSIONS = ("torch", "transformers", "peft", "undrift")


def run_entry(
    folder: Path,
    label: str,
    setting: str | None,
    options: Mapping[str, Any],
    command: str,
    trained: bool,
) -> dict[str, Any]:
    """Read what the results say about one finished run.

    Args:
        folder: The run's folder.
        label: Of its row in the study, which the run does not know, as all that follows.
        setting: Which named setting the method has, if any.
        options: What its row changes.
        command: The command of the run.
        trained: Whether the method learns anything.

    Returns:
        The entry in `runs`, accuracies in percent.
    """
    files = RunDir.existing(folder)
    manifest = read_record(files.manifest_file, Manifest)
    saved = read_record(files.matrix_file, Matrix)
    rate = manifest["settings"]["learning_rate"] if trained else None
    return {
        "label": label,
        "method": manifest["method"],
        "setting": setting,
        "seed": manifest["seed"],
        "order": manifest["order"],
        **{name: _rounded(saved["metrics"][name]) for name in METRICS},
        "learning_rate": rate,
        **_general(files),
        **_stream(files),
        "options": options,
        "tasks": saved["tasks"],
        "matrix": [_rounded(row) for row in saved["matrix"]],
        "zero_shot": _rounded(saved["zero_shot"]),
        "seconds": {phase: round(value, 1) for phase, value in manifest["seconds"].items()},
        "cost": cost(manifest),
        "command": command,
        "commit": manifest.get("commit"),
    }


def _general(files: RunDir) -> dict[str, Any]:
    """Read what became of general ability, where the run has measured it to the end."""
    kept = general_of(files)
    if kept is None:
        return {}
    parts = {stage: {name: _rounded(value) for name, value in kept[stage].items()}
             for stage in ("before", "after")}  # fmt: skip
    return {"general_loss": _rounded(kept["loss"]), "general": parts}


def _stream(files: RunDir) -> dict[str, Any]:
    """Read how a stream's tasks went against time; nothing of a run with boundaries."""
    if not files.stream_file.is_file():
        return {}
    kept = read_record(files.stream_file, Stream)
    points = [{"step": p["step"], "scores": _rounded(p["scores"])} for p in kept["points"]]
    metrics = {name: _rounded(value) for name, value in kept["metrics"].items()}
    return {"stream": {"metrics": metrics, "points": points}}


def general_of(files: RunDir) -> dict[str, Any] | None:
    """Return the content of a run's general.json, None unless both stages are measured."""
    if not files.general_file.is_file():
        return None
    kept = read_record(files.general_file, General)
    return kept if kept.get("after") and kept["before"] else None


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


def both(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Join what two groups of runs were made with.

    Args:
        old: Results, of which all that `surroundings` does not give is left out.
        new: What `surroundings` gives.

    Returns:
        As `surroundings` of both, the old ones first.
    """
    found: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping):
            found[key] = both(before or {}, value)
        elif key == "commit":
            parts = (part for text in (before, value) if text for part in text.split(", "))
            found[key] = _every(parts)
        else:  # of other things one value may have commas in it
            known = f", {value}," in f", {before},"
            found[key] = before if known else _every((before, value))
    return found


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
