"""A tiny backbone on disk, a tiny benchmark, and a way to run one on the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.run.families import save_family
from tests.run.own import LAYER, write_task
from tests.run.tiny import save_tiny, tiny_benchmark
from undrift.data.benchmarks.folder import OwnTask
from undrift.data.types import Benchmark
from undrift.run.backbone import Backbone
from undrift.run.config import resolve
from undrift.run.learn import Learn, start_from
from undrift.run.task_loop import Run

RUN_OPTIONS = ("overwrite", "force", "progress", "benchmark_", "dry")


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-data")


@pytest.fixture(scope="session")
def tiny(benchmark_root: Path) -> Benchmark:
    return tiny_benchmark(benchmark_root)


@pytest.fixture(scope="session")
def two(tiny: Benchmark) -> Benchmark:
    """Its first two tasks."""
    return replace(tiny, tasks=tiny.tasks[:2], orders={"reversed": ("upper", "lower")})


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the tiny model of a family, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_family(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> None:
    """Hide what was imported from the garbage collector, which every Trainer calls."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def backbone(backbone_folder: Path) -> Backbone:
    return Backbone.load(str(backbone_folder))


@pytest.fixture
def make_run(backbone_folder: Path, two: Benchmark, tmp_path: Path) -> Callable[..., Run]:
    """Make a run of two tasks; keywords are keys of the configuration."""

    def make(name: str = "moelora", out: str = "run", **layers: Any) -> Run:
        small = {
            "benchmark": "tiny",
            "method": {"name": name, "experts": 2, "rank": 2},
            "backbone": str(backbone_folder),
            "out": tmp_path / out,
            "train": {"batch_size": 4, "max_steps": 3, "learning_rate": 0.01, "log_steps": 2},
        }
        given = dict(layers)
        extra = {k: given.pop(k) for k in RUN_OPTIONS if k in given}
        return Run(
            resolve(small, given),
            extra.get("progress"),
            replace=extra.get("overwrite", False),
            force=extra.get("force", False),
            benchmark=extra.get("benchmark_", two),
            dry=extra.get("dry", False),
        )

    return make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("colours", "capitals"):
        write_task(root, name)
    return root


@pytest.fixture
def lesson(data: Path, backbone_folder: Path, tmp_path: Path) -> Callable[..., Learn]:
    """Make a lesson: of the backbone, or of the adapter named."""

    def make(name: str, start: str = "", tested: bool = True, out: str = "", **more: Any) -> Learn:
        begun = start_from(str(tmp_path / start) if start else str(backbone_folder), LAYER)
        test = data / f"{name}-test.jsonl" if tested else None
        own = OwnTask(name, data / f"{name}.jsonl", data, test=test, max_new_tokens=6)
        return Learn(begun, own, tmp_path / (out or name), **more)

    return make
