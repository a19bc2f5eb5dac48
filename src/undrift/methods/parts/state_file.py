"""A method's own tensors in a file beside the adapter, and in a trainer's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from undrift.errors import AdapterMismatch, RunDirError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors.

    Args:
        tensors: By name.
        path: The file.
    """
    save_file({name: each.detach().clone().contiguous() for name, each in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote.

    Args:
        path: The file.

    Returns:
        By name, on the CPU.

    Raises:
        RunDirError: If there is no such file.
    """
    if not path.is_file():
        raise RunDirError(
            f"{path} is missing; without it the adapter can be used but not go on learning. It is "
            "written by save_state"
        )
    return load_file(path)


def restore_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Overwrite tensors with those of a file that must hold the same ones.

    Args:
        tensors: By name.
        path: The file.

    Raises:
        AdapterMismatch: If a tensor is missing, left over or of another shape.
    """
    saved = load_tensors(path)
    astray = sorted(saved.keys() ^ tensors.keys())
    if astray:
        side = "lacks" if astray[0] in tensors else "has"
        raise AdapterMismatch(f"{path} is of another adapter: it {side} {astray[0]}")
    for name, own in tensors.items():
        if saved[name].shape != own.shape:
            raise AdapterMismatch(
                f"{path} is of another adapter: {name} is {tuple(saved[name].shape)} there and "
                f"{tuple(own.shape)} here"
            )
        own.copy_(saved[name])


def checkpoint_folder(args: Any, state: Any) -> Path:
    """The folder of a trainer's checkpoint after the current step.

    Args:
        args: The trainer's arguments.
        state: The trainer's state.

    Returns:
        Where it resumes from, or where it has just saved.
    """
    name = f"checkpoint-{state.global_step}"
    given = args.resume_from_checkpoint
    if isinstance(given, str) and Path(given).name == name:
        return Path(given)
    return Path(args.output_dir) / name
