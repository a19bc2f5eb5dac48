"""A run over every published benchmark, on files that follow their formats, with a tiny model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from undrift.run.config import RunConfig
from undrift.run.load_tasks import read_benchmark
from undrift.run.progress import Progress
from undrift.run.task_loop import Run
from undrift.rundir import read_json, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ucit"])  # the test below runs all four
def test_all_tasks_are_learned_asked_and_scored(name, backbone, tmp_path: Path):
    config = RunConfig.model_validate(
        {
            "benchmark": name,
            "data": FIXTURES / name,
            "out": tmp_path / "run",
            "method": {"name": "same", "experts": 2, "rank": 1},
            "profile": {"name": "short", "cells": "ends"},
            "train": {"max_steps": 1, "batch_size": 4},
            "eval": {"scoring": "hide"},
        }
    )
    made, _ = read_benchmark(config, Progress())
    short = tuple(replace(task, max_new_tokens=4) for task in made.tasks)  # it babbles to the end
    result = Run(config, backbone=backbone, benchmark=replace(made, tasks=short)).go()
    tasks = result["tasks"]
    assert len(tasks) == {"coin": 8, "ucit": 6, "trigap": 10, "mllm_dcl": 5}[name]
    assert all(score is not None for score in result["matrix"][-1])
    protocol = read_json(tmp_path / "run" / "manifest.json")["protocol"]
    assert protocol["scoring"] == "hide"
    for number, task in enumerate(protocol["tasks"], 1):
        lines = read_lines(tmp_path / "run" / f"eval/after-{len(tasks):02}/on-{number:02}.jsonl")
        assert len(lines) == task["test"]
        assert all("form" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coin", "ucit", "trigap", "mllm_dcl"])
def test_the_command_runs_them_on_the_pocket_s_backbone(name, tmp_path: Path):
    data = ("--data", FIXTURES / name, "--backbone", "pocket", "--out", tmp_path / "run")
    words = [sys.executable, "-m", "undrift.cli", "run", name, *map(str, data), "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "matrix.json")["metrics"]["last"] is not None
    assert (tmp_path / "run" / "report.html").is_file()
