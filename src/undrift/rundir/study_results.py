"""The JSON file of a study's results: an entry a run, and what the runs were made with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from undrift.rundir.costs import cost
from undrift.rundir.files import FORMAT
from undrift.rundir.paths import RunDir
from undrift.rundir.records import Manifest, Matrix, read_record

METRICS = ("last", "mft", "bwt", "forgetting")
VERSIONS = ("torch", "transformers", "peft", "undrift")


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
