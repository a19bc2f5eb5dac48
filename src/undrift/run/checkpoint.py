"""Snapshots inside a task, so that a killed run goes on exactly where it was.

A snapshot holds what the method saves (adapter and statistics), the optimiser's state, the
schedule, the random state and the trainer's own counters: safetensors and JSON, nothing pickled.
It appears whole or not at all; only the latest is kept.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from undrift.methods.base import Method
from undrift.rundir import atomic_folder, read_json, write_json

_PREFIX = "checkpoint-"


def latest(folder: Path) -> Path | None:
    """Return the newest snapshot in a folder, or None."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].isdigit()]
    return max(found, key=lambda path: int(path.name[len(_PREFIX) :]), default=None)


class Snapshots(TrainerCallback):
    """Writes a snapshot every so many steps, and restores one when training resumes.

    Must come before the method among the trainer's callbacks for restoring, and is told to write
    by `write` after the method's own `on_step_end`; `SnapshotWriter` does that.

    Args:
        folder: Where snapshots go.
        method: Whose `save_state` is called.
        every: Steps between two snapshots; 0 for none.
    """

    def __init__(self, folder: Path, method: Method, every: int) -> None:
        self.folder = folder
        self.method = method
        self.every = every
        self._restore_random: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore optimiser and schedule if the trainer resumes (state.global_step > 0)."""
        source = latest(self.folder)
        if not state.global_step or source is None:
            return
        load_optimizer(kwargs["optimizer"], source)
        kwargs["lr_scheduler"].load_state_dict(read_json(source / "schedule.json"))
        self._restore_random = source

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random state once, after the trainer has skipped the batches seen."""
        if self._restore_random is not None:
            load_random(self._restore_random)
            self._restore_random = None

    def write(self, model: Any, optimizer: Any, schedule: Any, state: Any) -> None:
        """Write a snapshot and delete older ones."""
        target = self.folder / f"{_PREFIX}{state.global_step}"
        with atomic_folder(target) as folder:
            self.method.before_save(model)
            self.method.save_state(model, folder)
            save_optimizer(optimizer, folder)
            write_json(folder / "schedule.json", schedule.state_dict())
            save_random(folder)
            state.save_to_json(str(folder / TRAINER_STATE_NAME))
        for old in self.folder.glob(f"{_PREFIX}*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)


class SnapshotWriter(TrainerCallback):
    """Calls `Snapshots.write`; to be the last of the trainer's callbacks.

    Args:
        snapshots: What to call.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a snapshot if it is time and the task is not over anyway."""
        every, step = self.snapshots.every, state.global_step
        if every and step % every == 0 and step < state.max_steps:
            self.snapshots.write(
                kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"], state
            )


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
