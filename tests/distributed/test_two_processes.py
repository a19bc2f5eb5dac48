"""Two processes give the history, the freezing decision, the adapter and the prototypes of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.precision import TRAINED, assert_same

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def launch(directory: Path, processes: int, module: str, *options: str) -> None:
    """Run a program of this folder on so many processes."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        "-m",
        f"tests.distributed.{module}",
        str(directory),
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def learned(
    directory: Path, processes: int, module: str = "two_tasks"
) -> list[dict[str, torch.Tensor]]:
    """What each rank has in the end."""
    launch(directory, processes, module)
    return [load_file(directory / f"rank{rank}.safetensors") for rank in range(processes)]


def projector(state: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """C = V diag(s) V^T, for single eigenvectors have no sign."""
    V, s = state[key].double(), state[key.removesuffix("V") + "s"]
    return V * s @ V.mT


def test_two_processes_equal_one(tmp_path):
    (one,) = learned(tmp_path / "one", 1)
    first, second = learned(tmp_path / "two", 2)
    assert one.keys() == first.keys() == second.keys()
    assert sum(key.endswith("history_V") for key in one) == 2 * 2 * 2
    for key in one:
        assert torch.equal(first[key], second[key]), f"ranks differ in {key}"
    for task in ("task1", "task2"):
        assert torch.equal(one[f"{task}.active"], first[f"{task}.active"])
    assert one["task1.active"].all()
    frozen = ~one["task2.active"]
    assert frozen[-1].any() and not frozen[0].any()
    for key, value in one.items():
        if key.endswith("history_V"):
            want, got = projector(one, key), projector(first, key)
        else:
            want, got = value.double(), first[key].double()
        if want.numel():
            error, scale = float((want - got).abs().max()), float(want.abs().max())
            assert error <= 1e-5 * scale, f"{key}: {error:.2e} of {scale:.2e}"


def test_two_processes_that_share_the_examples_give_the_prototypes_of_one(tmp_path):
    (one,) = learned(tmp_path / "one", 1, "prototypes")
    first, second = learned(tmp_path / "two", 2, "prototypes")
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"ranks differ in {key}"
        if key.endswith(".counts"):
            assert torch.equal(first[key], value) and bool((value > 0).all())
        assert_same(first[key], value, TRAINED, dtype=torch.float64, what=key)
