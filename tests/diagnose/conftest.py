"""Finished runs with two tasks, whose saved adapters a test may change by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.run.conftest import (  # noqa: F401  # fixtures
    _own_cache,
    backbone_folder,
    benchmark_root,
    make_run,
    tiny,
    two,
)
from undrift.data.types import Benchmark
from undrift.diagnose import AdapterSeries
from undrift.run.config import resolve
from undrift.run.task_loop import Run

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def opened(two: Benchmark) -> Callable[..., AdapterSeries]:  # noqa: F811
    return partial(AdapterSeries, benchmark=two)


@pytest.fixture(scope="session")
def finished(backbone_folder, two, tmp_path_factory) -> Path:  # noqa: F811
    """A run of moelora that has learned two tasks."""
    config = {
        "benchmark": "tiny",
        "method": {"name": "moelora", "experts": 2, "rank": 2},
        "backbone": str(backbone_folder),
        "out": tmp_path_factory.mktemp("finished"),
        "train": {"batch_size": 4, "max_steps": 3, "learning_rate": 0.01},
    }
    made = Run(resolve(config), benchmark=two)
    made.go()
    return made.files.root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def plant(run: Path, change: Change) -> None:
    """Make the second adapter of a run the first one, changed by hand."""
    first, second = sorted(run.glob("tasks/*/adapter"))
    tensors = change(load_file(first / WEIGHTS))
    save_file({n: t.contiguous() for n, t in tensors.items()}, second / WEIGHTS, {"format": "pt"})


def renamed(tensors: dict[str, Tensor], part: str, change: Callable[[Tensor], Tensor]):
    """Change the tensors whose name has this part."""
    return {name: change(t) if part in name else t for name, t in tensors.items()}
