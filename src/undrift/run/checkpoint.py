"""Snapshots inside a task, so that a killed run goes on exactly where it was.

A snapshot holds what the method saves (adapter and statistics), the optimiser's state, the
schedule, the random state and the trainer's own counters: safetensors and JSON, nothing pickled.
It appears whole or not at all; only the latest is kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undrift.methods.base import Method
from undrift.methods.shared.tensor_files import load_tensors, save_tensors
from undrift.rundir import atomic_folder, damaged, read_record, write_json
from undrift.rundir.files import SNAPSHOT, remove
from undrift.rundir.records import TRAINER_STATE, Optimizer, Random, Schedule, check_trainer_state

_PREFIX = "checkpoint-"


def latest(folder: Path) -> Path | None:
    """Find the newest snapshot.

    Args:
        folder: Where snapshots are.

    Returns:
        Its folder; None if there is none.

    Raises:
        RunDirError: If the trainer's counters in it are damaged.
    """
    found = {int(n[1]): each for each in folder.glob("*") if (n := SNAPSHOT.fullmatch(each.name))}
    if not found:
        return None
    check_trainer_state(found[max(found)])
    return found[max(found)]


def save_snapshot(trainer: Any, method: Method, folder: Path) -> None:
    """Write a snapshot of what the last step left, and remove the one before it.

    Args:
        trainer: The Trainer; its step is finished and logged.
        method: Whose `save_state` is called.
        folder: Where snapshots go.
    """
    target = folder / f"{_PREFIX}{trainer.state.global_step}"
    with atomic_folder(target) as made:
        method.before_save(trainer.model)
        method.save_state(trainer.model, made)
        save_optimizer(trainer.optimizer, made)
        write_json(made / "schedule.json", trainer.lr_scheduler.state_dict())
        save_random(made)
        trainer.state.save_to_json(str(made / TRAINER_STATE))
    for old in folder.glob(f"{_PREFIX}*"):
        if old != target and SNAPSHOT.fullmatch(old.name):
            remove(old)


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
    save_tensors(tensors, folder / "optimizer.safetensors")
    groups = {"groups": saved["param_groups"], "numbers": numbers}
    write_json(folder / "optimizer.json", groups)


def load_optimizer(optimizer: Any, folder: Path) -> None:
    """Read what `save_optimizer` wrote.

    Args:
        optimizer: The trainer's.
        folder: The snapshot.

    Raises:
        RunDirError: If it is damaged, or of another optimiser.
    """
    file, tensors = folder / "optimizer.json", folder / "optimizer.safetensors"
    rest, own = read_record(file, Optimizer), optimizer.param_groups
    if not (len(rest["groups"]) == len(own) and all(map(_alike, own, rest["groups"]))):
        raise damaged(file, "groups: they are not those of the optimiser that is used now")
    shapes = [p.shape for group in own for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, values in rest["numbers"].items():
        state[_place(file, index, len(shapes))] = values
    for name, tensor in load_tensors(tensors).items():
        index, _, key = name.partition(".")
        place = _place(tensors, index, len(shapes))
        if tensor.dim() and tensor.shape != shapes[place]:
            raise damaged(tensors, f"{name} is {tuple(tensor.shape)}, not {tuple(shapes[place])}")
        state.setdefault(place, {})[key] = tensor
    try:
        optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise damaged(file, str(error)) from error


def load_schedule(schedule: Any, folder: Path) -> None:
    """Read where the learning rate had come to.

    Args:
        schedule: The trainer's.
        folder: The snapshot.

    Raises:
        RunDirError: If it is damaged, or of another schedule.
    """
    file, own = folder / "schedule.json", schedule.state_dict()
    saved = read_record(file, Schedule)
    known = {key: value for key, value in saved.items() if key in own}
    if not _alike({key: own[key] for key in known}, known):
        raise damaged(file, "it is of another schedule than is used now")
    schedule.load_state_dict(own | known)


def _place(file: Path, index: str, count: int) -> int:
    """Return which parameter is meant."""
    if not (index.isdecimal() and len(index) < 10 and int(index) < count):
        raise damaged(file, f"there is no parameter {index!r}")
    return int(index)


def _alike(own: Any, saved: Any) -> bool:
    """Tell whether two settings are of one kind, so that one can take the other's place."""
    if own is None or saved is None:
        return own is saved or isinstance(saved if own is None else own, bool)
    if isinstance(own, dict):
        keys = own.keys() - {"params"}
        there = isinstance(saved, dict) and keys <= saved.keys()
        return there and all(_alike(own[key], saved[key]) for key in keys)
    if isinstance(own, list | tuple):
        there = isinstance(saved, list | tuple) and len(own) == len(saved)
        return there and all(map(_alike, own, saved))
    if isinstance(own, bool) or isinstance(saved, bool):
        return type(own) is type(saved)
    numbers = int, float, Tensor
    return isinstance(saved, numbers if isinstance(own, numbers) else type(own))


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
    save_tensors(tensors, folder / "random.safetensors", whole=True)
    numbers = {
        "numpy": [int(place), int(has_gauss), float(gauss)],
        "python": [version, list(words), next_gauss],
    }
    write_json(folder / "random.json", numbers)


def load_random(folder: Path) -> None:
    """Read what `save_random` wrote.

    Args:
        folder: The snapshot.

    Raises:
        RunDirError: If it is damaged.
    """
    file = folder / "random.json"
    tensors = load_tensors(folder / "random.safetensors", whole=True)
    numbers = read_record(file, Random)
    place, has_gauss, gauss = numbers["numpy"]
    version, words, next_gauss = numbers["python"]
    try:
        torch.set_rng_state(tensors["torch"])
        cuda = [tensors[name] for name in sorted(tensors) if name.startswith("cuda.")]
        if cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(cuda)
        keys = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, place, has_gauss, gauss))
        random.setstate((version, tuple(words), next_gauss))
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise damaged(file, f"no state of random numbers ({error})") from error


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
