"""Snapshots inside a task, so that a killed run goes on exactly where it was.

A snapshot holds what the method saves (adapter and statistics), the optimiser's state, the
schedule, the random state and the trainer's own counters: safetensors and JSON, nothing pickled.
It appears whole or not at all; only the latest is kept.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from undrift.methods.base import Method
from undrift.rundir import atomic_folder, read_json, write_json
from undrift.tuner.upstream import TRAINER_STATE_NAME

_PREFIX = "checkpoint-"


def latest(folder: Path) -> Path | None:
    """Return the newest snapshot in a folder, or None."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].isdigit()]
    return max(found, key=lambda path: int(path.name[len(_PREFIX) :]), default=None)


class Snapshots(TrainerCallback):
    """Restores a snapshot when training resumes; to be the first of the trainer's callbacks.

    Args:
        folder: Where snapshots are.
    """

    def __init__(self, folder: Path) -> None:
        self.source = latest(folder)
        self._random_is_due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore optimiser and schedule if the trainer resumes (state.global_step > 0)."""
        if self.source is not None and state.global_step:
            load_optimizer(kwargs["optimizer"], self.source)
            kwargs["lr_scheduler"].load_state_dict(read_json(self.source / "schedule.json"))
            self._random_is_due = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random state once, after the trainer has skipped the batches seen."""
        if self.source is not None and self._random_is_due:
            load_random(self.source)
            self._random_is_due = False


class SnapshotWriter(TrainerCallback):
    """Writes a snapshot every so many steps; to be the last of the trainer's callbacks.

    It writes when the next step begins: by then the step before is finished and logged, so that a
    resumed task has the whole log.

    Args:
        folder: Where snapshots go.
        method: Whose `save_state` is called.
        every: Steps between two snapshots; 0 for none.
    """

    def __init__(self, folder: Path, method: Method, every: int) -> None:
        self.folder = folder
        self.method = method
        self.every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the loss logged before a snapshot, so that a resumed mean begins after it."""
        if self.every and state.global_step % self.every == 0:
            control.should_log = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a snapshot of what the last step left, if it is time."""
        step = state.global_step
        target = self.folder / f"{_PREFIX}{step}"
        if not self.every or not step or step % self.every or target.is_dir():
            return
        with atomic_folder(target) as folder:
            self.method.before_save(kwargs["model"])
            self.method.save_state(kwargs["model"], folder)
            save_optimizer(kwargs["optimizer"], folder)
            write_json(folder / "schedule.json", kwargs["lr_scheduler"].state_dict())
            save_random(folder)
            state.save_to_json(str(folder / TRAINER_STATE_NAME))
        for old in self.folder.glob(f"{_PREFIX}*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)


def save_optimizer(optimizer: Any, folder: Path) -> None:
    """Write an optimiser's state as safetensors (tensors) and JSON (the rest)."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in saved["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().clone().contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    save_file(tensors, folder / "optimizer.safetensors")
    groups = {"groups": saved["param_groups"], "numbers": numbers}
    write_json(folder / "optimizer.json", groups)


def load_optimizer(optimizer: Any, folder: Path) -> None:
    """Read what `save_optimizer` wrote."""
    rest = read_json(folder / "optimizer.json")
    state: dict[int, dict[str, Any]] = {int(i): values for i, values in rest["numbers"].items()}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})


def save_random(folder: Path) -> None:
    """Write the state of Python's, NumPy's and torch's random numbers."""
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, folder / "random.safetensors")
    numbers = {
        "numpy": [int(place), int(has_gauss), float(gauss)],
        "python": [version, list(words), next_gauss],
    }
    write_json(folder / "random.json", numbers)


def load_random(folder: Path) -> None:
    """Read what `save_random` wrote."""
    tensors, numbers = load_file(folder / "random.safetensors"), read_json(folder / "random.json")
    torch.set_rng_state(tensors["torch"])
    cuda = [tensors[name] for name in sorted(tensors) if name.startswith("cuda.")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    place, has_gauss, gauss = numbers["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, place, has_gauss, gauss))
    version, words, next_gauss = numbers["python"]
    random.setstate((version, tuple(words), next_gauss))


@contextmanager
def random_kept() -> Iterator[None]:
    """Leave the state of Python's, NumPy's and torch's random numbers as it was.

    Yields:
        Nothing.
    """
    words, numpy_words = random.getstate(), np.random.get_state(legacy=True)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(words)
        np.random.set_state(numpy_words)
