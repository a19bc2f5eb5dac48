"""The commands under torchrun: what one process does, and one of them talks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.runs import assert_same_answers

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
ROOT = Path(__file__).parents[2]
COIN = ROOT / "tests/fixtures/coin"


def command(place: Path, processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of undrift in a folder."""
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    line = [sys.executable, *(start if processes > 1 else []), "-m", "undrift", *map(str, words)]
    extra = {"OMP_NUM_THREADS": "1", "UNDRIFT_CACHE": str(place / "cache"), "COLUMNS": "100"}
    return subprocess.run(line, cwd=place, env=os.environ | extra, capture_output=True, text=True)


def test_coin_is_learned_asked_and_diagnosed_by_two_as_by_one(tmp_path):
    run = ("run", "coin", "--data", COIN, "--backbone", "pocket", "--set", "train.max_steps=2")
    said = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = command(tmp_path, processes, *run, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        assert (out / "report.html").is_file()
        assert sum(line.startswith('{"out"') for line in done.stdout.splitlines()) == 1
        asked = command(tmp_path, processes, "eval", out, "--task", "VizWiz", "--json")
        assert asked.returncode == 0, asked.stderr
        causes = command(tmp_path, processes, "diagnose", out, "--limit", "2", "--data", COIN,
                         "--json")  # fmt: skip
        assert causes.returncode == 0, causes.stderr
        said[processes] = [json.loads(each.stdout) for each in (asked, causes)]
    assert_same_answers(tmp_path / "2", tmp_path / "1")
    assert said[1][0]["scores"] == said[2][0]["scores"]
    corners = [[cell["corners"] for cell in said[n][1]["causes"]["cells"]] for n in (1, 2)]
    assert corners[0] == corners[1]


def test_what_takes_one_process_is_not_done_twice(tmp_path):
    done = command(tmp_path, 2, "list", "methods")
    assert done.returncode != 0
    assert done.stderr.count("error: undrift list works in one process") == 1


def test_a_mistake_is_told_once_in_one_line(tmp_path):
    done = command(tmp_path, 2, "run", "coin", "--data", COIN, "--backbone", "pocket",
                   "--set", "train.global_batch=3")  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: train.global_batch is 3 examples a step") == 1
    assert "stopped" not in done.stderr
