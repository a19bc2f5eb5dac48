"""Tensors in files: every safetensors file that undrift writes or reads goes through here.

Weights and sums are finite floating-point numbers, counts and choices whole numbers, known by the
last part of their names. Anything else is refused, when it is written and when it is read.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from undrift.errors import RunDirError, TrainingDiverged
from undrift.rundir import atomic_file, check_format, check_regular, damaged
from undrift.rundir.files import FORMAT

_WHOLE = {"active", "counts", "digests", "history_k", "open", "running", "running_count", "tasks"}
"""What the last part of a name must be for a tensor of whole numbers or of yes and no."""

_NUMBER = re.compile(r"os error (\d+)")
_FORMAT = "undrift_format"  # in the metadata, where `format` is "pt" and belongs to others


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, whole: bool = False) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        tensors: By name.
        path: The file.
        whole: All are whole numbers, whatever their names.

    Raises:
        TrainingDiverged: If one of them is not finite; the file that was there stays.
        RunDirError: If the file cannot be written.
    """
    check_finite(tensors, path)
    for name, each in tensors.items():
        if why := _wrong_kind(name, each.dtype, whole=whole):
            raise RunDirError(f"cannot write {path}: {name} {why}")
    kept = {name: each.detach().clone().contiguous() for name, each in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(kept, temporary, metadata={"format": "pt", _FORMAT: str(FORMAT)})
        except SafetensorError as error:  # what the system said of a full disk is inside
            raise _of_system(error) from error
        _in_order(temporary)


def _in_order(file: Path) -> None:
    """Put the words of the metadata, whose order is left to chance, into one.

    So equal tensors are equal bytes.
    """
    first, second = b'"format":"pt"', f'"{_FORMAT}":"{FORMAT}"'.encode()
    with file.open("r+b") as opened:
        opened.seek(8)
        start = b'{"__metadata__":{'
        if opened.read(len(start + second)) == start + second:
            opened.seek(8)
            opened.write(start + first + b"," + second)


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse to save what training has spoilt.

    Args:
        tensors: By name.
        path: Where they were to go, for the message.

    Raises:
        TrainingDiverged: If one holds something that is not finite.
    """
    for name, each in tensors.items():
        if not _finite(each):
            raise TrainingDiverged(
                f"{name} is not finite any more, so {path} was not written and what was saved "
                "before stays; lower train.learning_rate and run the same command again"
            )


def load_tensors(path: Path, *, whole: bool = False) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, or what another program wrote of an adapter.

    Args:
        path: The file.
        whole: All are whole numbers, whatever their names.

    Returns:
        By name, on the CPU.

    Raises:
        RunDirError: If there is no such file, if it is damaged, or a tensor in it is of a kind that
            does not belong there or not finite.
    """
    if not path.exists():
        raise RunDirError(
            f"{path} is missing; without it the adapter can be used but not go on learning. It is "
            "written by save_state"
        )
    with _opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, each in found.items():
        if why := _wrong_kind(name, each.dtype, whole=whole):
            raise damaged(path, f"{name} {why}")
        if not _finite(each):
            raise damaged(path, f"{name} is not finite")
    return found


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a file, and no numbers.

    Args:
        path: The file.

    Returns:
        By name.

    Raises:
        RunDirError: If it is damaged.
    """
    with _opened(path) as file:
        names = list(file.keys())
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors; whatever goes wrong inside, the file is damaged."""
    check_regular(path)
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(_FORMAT, "1")
            check_format(path, int(said) if said.isdecimal() and len(said) < 10 else said)
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise damaged(path, f"no safetensors ({' '.join(str(error).split())[:200]})") from error


def _wrong_kind(name: str, kind: torch.dtype, *, whole: bool) -> str:
    """Say what is wrong with a tensor's kind; empty if nothing is."""
    counts = whole or name.replace(":", ".").rpartition(".")[2] in _WHOLE
    if kind.is_floating_point != counts and not kind.is_complex:
        return ""
    expected = "whole numbers" if counts else "floating-point numbers"
    return f"is {str(kind).removeprefix('torch.')}, expected {expected}"


def _finite(each: Tensor) -> bool:
    if not each.dtype.is_floating_point:
        return True
    known = each if each.dtype.itemsize > 1 else each.float()  # 8 bits have no test of their own
    return bool(torch.isfinite(known).all())


def _of_system(error: Exception) -> OSError:
    """Make of a library's error what the system said."""
    text = " ".join(str(error).split())
    found = _NUMBER.search(text)
    number = int(found[1]) if found else errno.ENOSPC if "StorageFull" in text else None
    return OSError(number, text[:200] if number is None else os.strerror(number))
