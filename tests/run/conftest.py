"""A tiny backbone on disk, a tiny benchmark, and a way to run one on the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from undrift.data.types import Benchmark
from undrift.run.backbone import Backbone
from undrift.run.layers import resolve
from undrift.run.loop import Run

from tests.run.tiny import save_tiny, tiny_benchmark


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-data")


@pytest.fixture(scope="session")
def tiny(benchmark_root: Path) -> Benchmark:
    return tiny_benchmark(benchmark_root)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def backbone(backbone_folder: Path) -> Backbone:
    return Backbone.load(str(backbone_folder))


@pytest.fixture
def make_run(backbone_folder: Path, tiny: Benchmark, tmp_path: Path) -> Callable[..., Run]:
    """Make a run with small settings; keywords are layers of the configuration."""

    def make(method: str = "moelora", out: str = "run", **layers: Any) -> Run:
        small = {
            "benchmark": "tiny",
            "method": {"name": method, "experts": 2, "rank": 2},
            "backbone": str(backbone_folder),
            "out": tmp_path / out,
            "train": {"batch_size": 4, "max_steps": 6, "learning_rate": 0.01, "log_steps": 2},
        }
        given = dict(layers)
        extra = {k: given.pop(k) for k in ("replace", "progress", "benchmark_") if k in given}
        return Run(
            resolve(small, given),
            extra.get("progress"),
            replace=extra.get("replace", False),
            benchmark=extra.get("benchmark_", tiny),
        )

    return make
