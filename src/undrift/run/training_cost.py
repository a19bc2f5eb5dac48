"""What learning a task costs: seconds, tokens, peak memory, experts that rested."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainerCallback

from undrift.methods.base import Method

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Meter(TrainerCallback):
    """Measures one task's training: a context around it, and one of its trainer's callbacks.

    Of a task that was stopped and resumed, time and memory are not known.

    Args:
        method: Tells which experts rested.
        device: Where the model is.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        self._method, self._device = method, device
        self._wall = self._cpu = 0.0
        self._whole = self._reset = False
        self._steps, self._tokens = 0, 0
        self._peak: int | None = None
        self._resting: dict[str, int] | None = None

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._wall = time.perf_counter() - self._wall
        self._cpu = time.process_time() - self._cpu
        self._peak = peak(self._device) if self._whole and self._reset else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of what is done in this context out.

        Yields:
            Nothing.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the peak of memory until now."""
        self._whole = not state.global_step
        self._reset = forget_peak(self._device)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Read what the method forgets when it ends the task, which it does after this."""
        self._steps, self._tokens = state.global_step, state.num_input_tokens_seen
        self._resting = self._method.resting(model)

    def effort(self) -> dict[str, Any]:
        """Return the part of the manifest's budget that is measured while training.

        Returns:
            steps; seconds and cpu_seconds; tokens of prompts and answers, padding left out;
            peak_bytes; and resting, how many experts of each linear rested. None if not known.
        """
        return {
            "steps": self._steps,
            "seconds": round(self._wall, 3) if self._whole else None,
            "cpu_seconds": round(self._cpu, 3) if self._whole else None,
            "tokens": self._tokens,
            "peak_bytes": self._peak,
            "resting": self._resting,
        }


def forget_peak(device: torch.device) -> bool:
    """Let the peak of memory be what is used now.

    Args:
        device: A CUDA device, or a CPU for this process's resident set, on Linux.

    Returns:
        Whether there is a peak to speak of.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu":
        return False
    try:
        _CLEAR.write_text("5")
    except OSError:  # no Linux, or a container that does not allow it
        return False
    return True


def peak(device: torch.device) -> int:
    """Return the peak of memory since `forget_peak`, where that was possible.

    Args:
        device: The same.

    Returns:
        Bytes: what tensors took on a CUDA device, else the largest resident set.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (line,) = (s for s in _STATUS.read_text().splitlines() if s.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
