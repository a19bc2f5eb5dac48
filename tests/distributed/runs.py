"""Tiny runs on so many processes, in float64 or float32, and how two of them are compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.forked import forked
from tests.precision import float32_means_float64
from tests.run.tiny import save_tiny, tiny_benchmark
from undrift.data.types import Benchmark
from undrift.run import task_loop, trainer
from undrift.run.backbone import Backbone
from undrift.run.config import resolve
from undrift.run.progress import Progress
from undrift.run.ranks import joined, of_all
from undrift.run.session import Session, make_method
from undrift.rundir import read_json, read_lines

EXAMPLES = 9  # four a step: one is left for the last, and a second process has none
RATES = {"batch_size": 4, "epochs": 2, "learning_rate": 0.01, "log_steps": 1}


@dataclass(frozen=True)
class Place:
    """A folder with a tiny backbone, and a tiny benchmark of two tasks."""

    folder: Path
    benchmark: Benchmark

    @classmethod
    def made(cls, folder: Path) -> Place:
        """Make both."""
        save_tiny(folder / "backbone")
        made = tiny_benchmark(folder / "data")
        tasks = tuple(replace(task, train=task.train[:EXAMPLES]) for task in made.tasks[:2])
        return cls(folder, replace(made, tasks=tasks, orders={}))

    def config(self, out: Path, method: str = "same", **train: object):
        """What a run does."""
        return resolve(
            {
                "benchmark": "tiny",
                "method": {"name": method, "experts": 2, "rank": 2},
                "backbone": str(self.folder / "backbone"),
                "out": out,
                "train": RATES | train,
                "eval": {"batch_size": 4},
            }
        )

    def run(
        self,
        out: Path,
        processes: int,
        method: str = "same",
        *,
        exact: bool = True,
        **train: object,
    ) -> Path:
        """Make a run, or go on with it; after each task all processes hold the same.

        Args:
            out: Its folder.
            processes: How many make it.
            method: Of undrift.
            exact: In float64. In float32 Adam takes no step where a gradient is nothing but
                rounding: its first steps there would have the rate's length and any direction.
            **train: Settings of the training.
        """
        config = self.config(out, method, **train)

        def work() -> None:
            os.environ["UNDRIFT_CACHE"] = str(out.parent / f"cache-{exact}")
            backbone = Backbone.load_for(config)
            made = partial(trainer.TrainingArguments, adam_epsilon=1e-8 if exact else 1e-5)
            with (
                patch.object(task_loop, "teach", teach_and_compare),
                patch.object(trainer, "TrainingArguments", made),
                float32_means_float64() if exact else nullcontext(),
                joined(),
            ):
                backbone.model.to(torch.float32)  # whatever that means here
                task_loop.Run(config, benchmark=self.benchmark, backbone=backbone).go()

        forked(processes, out.parent / f"{out.name}.meeting", work)
        return out


_teach = task_loop.teach


def teach_and_compare(session: Session, *args, **kwargs):
    """Teach a task, and see that every process has learned the same, to the bit."""
    log = _teach(session, *args, **kwargs)
    held = dict(session.model.named_parameters()) | dict(session.model.named_buffers())
    held |= session.method.state(session.model).tensors or {}
    own = {
        name: hashlib.sha256(value.detach().contiguous().view(-1).view(torch.uint8).numpy())
        for name, value in held.items()
        if value.numel()
    }
    first, *others = of_all([{name: digest.hexdigest() for name, digest in own.items()}])
    for other in others:
        differ = [name for name, digest in first[0].items() if other[0][name] != digest]
        assert not differ, f"the processes differ in {differ}"
    return log


def projector(state: dict[str, Tensor], key: str) -> Tensor:
    """C = V diag(s) V^T, for single eigenvectors have no sign."""
    V, s = state[key].double(), state[key.removesuffix("V") + "s"].double()
    return V * s @ V.mT


def pairs(found: dict[str, Tensor], one: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name what two states hold, as what can be compared."""
    assert found.keys() == one.keys()
    for key, value in one.items():
        if key.endswith("history_V"):
            yield key, projector(found, key), projector(one, key)
        elif value.numel():
            yield key, found[key].double(), value.double()


def assert_close(found: dict[str, Tensor], one: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor differs by a share of its own size at most, in the norm.

    Adam's first steps of an entry have the rate's length even where the gradient is nothing but
    rounding, so single entries say nothing in float32.
    """
    for key, a, b in pairs(found, one):
        error, size = float((a - b).norm()), float(b.norm())
        assert error <= tolerance * max(size, 1e-3), f"{key}: {error:.2e} of {size:.2e}"


def assert_same_run(found: Path, one: Path, tolerance: float = 1e-9) -> None:
    """Two runs in float64 have the same adapters but for rounding, and the same answers."""
    files = sorted(path.relative_to(one) for path in one.rglob("adapter/*.safetensors"))
    assert files == sorted(path.relative_to(found) for path in found.rglob("adapter/*.safetensors"))
    assert files or not (one / "tasks").exists()
    for file in files:
        assert_close(load_file(found / file), load_file(one / file), tolerance)
    assert_same_answers(found, one)


def answers(run: Path) -> list[Path]:
    """Name the files with answers."""
    return sorted(path.relative_to(run) for path in run.rglob("on-*.jsonl"))


def assert_same_answers(found: Path, one: Path) -> None:
    """Answers, matrix and counts are the same, and nothing half done is left."""
    assert answers(one) == answers(found)
    for file in answers(one):
        assert read_lines(found / file) == read_lines(one / file)
    assert read_json(found / "matrix.json") == read_json(one / "matrix.json")
    assert_same_counts(found, one)


def assert_same_counts(found: Path, one: Path) -> None:
    """Steps and tokens are the same, and nothing half done is left."""
    counted = [
        [(task["steps"], task["tokens"]) for task in read_json(run / "manifest.json")["budget"]]
        for run in (found, one)
    ]
    assert counted[0] == counted[1]
    assert not [*found.rglob("*.writing"), *found.rglob("*.part")]


def losses(run: Path) -> list[float]:
    """What every step of both tasks has lost."""
    logs = sorted(run.glob("tasks/*/train.jsonl"))
    return [row["loss"] for log in logs for row in read_lines(log) if "loss" in row]


def other_answers(place: Place, found: Path, one: Path, gap: float) -> int:
    """Count the answers that differ, each of which must hang on a hair.

    Args:
        place: Where backbone and benchmark are.
        found: A run in float32.
        one: The same run on another number of processes.
        gap: How far apart the two best tokens may be at most, as a share of the largest logit,
            where the second answer leaves the first.

    Returns:
        How many differ.
    """
    differ = 0
    for file in answers(one):
        rows = zip(read_lines(one / file), read_lines(found / file), strict=True)
        wrong = [row["id"] for row, other in rows if row["prediction"] != other["prediction"]]
        differ += len(wrong)
        for least in _gaps(place, one, file, wrong) if wrong else ():
            assert least <= gap, f"{file}: two tokens are {least:.1e} apart, and the answers differ"
    return differ


def _gaps(place: Place, run: Path, file: Path, ids: list[str]) -> list[float]:
    """The least distance of an answer's two best tokens, as a share of the largest logit."""
    after, on = (int(part.split("-")[1]) for part in (file.parent.name, file.stem))
    config = place.config(run)
    session = Session.open(
        config,
        make_method(config.method.name, config.method.options),
        Backbone.load_for(config),
        Progress(),
        announce=False,
    )
    if after:
        session.method.load_state(session.model, next(run.glob(f"tasks/{after:02d}-*/adapter")))
    session.model.eval()
    task = place.benchmark.tasks[on - 1]
    said = {row["id"]: row["prediction"] for row in read_lines(run / file)}
    found = []
    for example in (each for each in task.test if each.id in ids):
        answered = replace(example, answers=(said[example.id],))
        batch = session.collator.collate(session.collator.encode([answered], answered=True))
        asked = batch["labels"][0, 1:] != -100
        with torch.no_grad(), session.backbone.reading(batch) as inputs:
            logits = session.model(**inputs).logits[0, :-1][asked]
        best = logits.topk(2).values
        found.append(float((best[:, 0] - best[:, 1]).min() / logits.abs().max()))
    return found
