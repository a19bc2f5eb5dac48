"""One seed twice, in two processes that share nothing but the code: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.own import list_tasks, write_task

SMALL = ("method.rank=2", "train.max_steps=4", "train.batch_size=4", "train.log_steps=1")
RESULTS = (
    "matrix.json",
    "run.yaml",
    "eval/*/*",
    "tasks/*/train.jsonl",
    "tasks/*/adapter/**/*.safetensors",
    "tasks/*/adapter/adapter_config.json",
    "tasks/*/adapter/undrift_state.json",
)


def result_of(folder: Path, method: str, seed: str) -> dict[str, bytes]:
    """Run a method in a folder of its own, with data and features of its own."""
    for name in ("colours", "capitals"):
        write_task(folder / "data", name)
    list_tasks(folder / "data")
    words = ["run", "folder", "--data", "data", "--method", method, "--backbone", "pocket"]
    for setting in (*SMALL, "train.learning_rate=0.02"):
        words += ["--set", setting]
    words += ["--out", "here/run", "--quiet"]
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # as many as there are by themselves
    known = {key: value for key, value in os.environ.items() if key not in threads}
    own = {"PYTHONHASHSEED": seed, "UNDRIFT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "undrift", *words]
    subprocess.run(command, cwd=folder, env=known | own, check=True)
    run = folder / "here" / "run"
    files = sorted(path for pattern in RESULTS for path in run.glob(pattern))
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["same", "proglora", "smolora"])
def test_one_seed_twice_is_the_same_to_the_bit(tmp_path, method):
    one, other = tmp_path / "one", tmp_path / "another" / "place"
    first, second = result_of(one, method, "0"), result_of(other, method, "4711")
    assert {"matrix.json", "eval/after-02/on-01.jsonl"} <= first.keys() == second.keys()
    assert sum(name.endswith("adapter_model.safetensors") for name in first) == 2
    assert [name for name in first if first[name] != second[name]] == []
