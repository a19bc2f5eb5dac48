"""Measure the pocket: python scripts/pocket_study.py tune|main [--work DIR] [--jobs 2].

`tune` tries learning rates on seed 100, the second order and the validation split, and writes
docs/results/pocket-tuning.json. `main` runs seeds 0 to 2 in the default order at the rates of the
preset, and writes docs/results/pocket-seeds.json and the table docs/results/pocket-seeds.md. Runs
are kept in --work; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
METHODS = ("joint", "finetune", "moelora", "same", "same-paper", "steadylora")
RATES = {
    "joint": (3e-3, 6e-3),
    "finetune": (3.75e-4, 7.5e-4, 1.5e-3, 3e-3),
    "moelora": (3.75e-4, 7.5e-4, 1.5e-3, 3e-3),
    "same": (3e-3, 6e-3, 1.2e-2),
    "same-paper": (7.5e-4, 1.5e-3, 3e-3),
    "steadylora": (3e-3, 6e-3, 1.2e-2),
}
SEEDS = (0, 1, 2)


def run(out: Path, method: str, *options: str) -> dict[str, Any]:
    """Run one cell on one thread, or find it done, and return its matrix.json."""
    command = [
        "undrift",
        "run",
        "pocket",
        "--method",
        method,
        "--out",
        str(out),
        "--quiet",
        *options,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "undrift.cli", *command[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    print(f"done: {' '.join(command)}", flush=True)
    return json.loads((out / "matrix.json").read_text(encoding="utf-8"))


def tune(work: Path, jobs: int) -> None:
    """Try every rate of every method; seed, order and split are not the reported ones."""
    cells = [(method, rate) for method in METHODS for rate in RATES[method]]

    def one(cell: tuple[str, float]) -> dict[str, Any]:
        method, rate = cell
        found = run(
            work / f"tune-{method}-{rate:g}", method, "--seed", "100", "--order", "second",
            "--set", "profile.cells=ends", "--set", "eval.split=validation",
            "--set", f"train.learning_rate={rate}",
        )  # fmt: skip
        return {"method": method, "learning_rate": rate, **found["metrics"]}

    rows = _spread(one, cells, jobs)
    _write("pocket-tuning", {"seed": 100, "order": "second", "split": "validation"}, rows)
    for method in METHODS:
        tried = [row for row in rows if row["method"] == method]
        print(method, {row["learning_rate"]: round(row["last"], 1) for row in tried})


def seeds(work: Path, jobs: int) -> None:
    """Run every method at the preset's rate on every seed."""
    cells = [(method, seed) for seed in SEEDS for method in ("zeroshot", *METHODS)]
    cells = [cell for cell in cells if cell[0] != "zeroshot" or cell[1] == SEEDS[0]]

    def one(cell: tuple[str, int]) -> dict[str, Any]:
        method, seed = cell
        folder = work / f"main-{method}-{seed}"
        found = run(folder, method, "--seed", str(seed))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        kept = {name: found["metrics"][name] for name in ("last", "mft", "bwt", "forgetting")}
        return {
            "method": method, "seed": seed, "order": "default", **kept, "tasks": found["tasks"],
            "matrix": found["matrix"], "zero_shot": found["zero_shot"],
            "learning_rate": manifest["settings"]["learning_rate"],
            "seconds": manifest["seconds"],
        }  # fmt: skip

    rows = _spread(one, cells, jobs)
    _write("pocket-seeds", {"seeds": SEEDS, "order": "default"}, rows)
    (RESULTS / "pocket-seeds.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the runs in Markdown: means over seeds, and joint task by task."""
    lines = [
        "| method | last | each seed | just learned | BWT | rate |",
        "|---|---|---|---|---|---|",
    ]

    def average(key: str, own: Sequence[dict[str, Any]]) -> str:
        values = [row[key] for row in own if row[key] is not None]
        return f"{mean(values):.1f}" if values else ""

    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        each = ", ".join(f"{row['last']:.1f}" for row in own)
        rate = "" if method == "zeroshot" else f"{own[0]['learning_rate']:g}"
        last, mft, bwt = (average(key, own) for key in ("last", "mft", "bwt"))
        lines.append(f"| {method} | {last} | {each} | {mft} | {bwt} | {rate} |")
    return "\n".join(lines) + "\n"


def _spread(one: Any, cells: Sequence[Any], jobs: int) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(one, cells))


def _write(name: str, protocol: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    content = {
        "command": " ".join(["python", "scripts/pocket_study.py", sys.argv[1]]),
        "commit": commit.strip(),
        "hardware": f"{platform.machine()} CPU, one thread a run",
        **protocol,
        "runs": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is asked."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("what", choices=("tune", "main"))
    arguments.add_argument("--work", type=Path, default=ROOT / "runs" / "study")
    arguments.add_argument("--jobs", type=int, default=2)
    options = arguments.parse_args()
    {"tune": tune, "main": seeds}[options.what](options.work, options.jobs)


if __name__ == "__main__":
    main()
