"""The keys of a pool of increments, and how much of it each past task has picked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from undrift.methods.parts.pool import Gate

_TASKS = 64  # the weights of earlier tasks have room for so many, then for twice as many


class Keys(Gate):
    """What picks the increments, and what finished tasks have picked.

    Args:
        experts: N.
        width: d, of the embeddings.

    Attributes:
        keys: k, zero until the first instructions are seen, (N, d).
        weights: w, of each finished task, (64,) or longer.
        picked: v, the mean share of every increment in each finished task, (T, N).
        mean: The same of the task that ended last, (N,).
        sums: Of the shares in the task at hand, and in the last place how many, (N + 1,).
    """

    keys: Parameter
    picked: Tensor
    mean: Tensor

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.keys = Parameter(torch.zeros(experts, width))
        self.weights = Parameter(torch.zeros(_TASKS))
        self.register_buffer("picked", torch.zeros(0, experts))
        self.register_buffer("mean", torch.zeros(experts))
        self.sums = torch.zeros(experts + 1, dtype=torch.float64)

    def grow(self, past: int) -> None:
        """Let the shares of the last task be those of a finished one."""
        self.picked = torch.cat([self.picked, self.mean[None]])
        self._widen(past)

    def make_room(self, past: int) -> None:
        """Bring what is kept of finished tasks to its size."""
        self.picked = self.picked.new_zeros(past, self.picked.shape[1])
        self._widen(past)

    def _widen(self, past: int) -> None:
        if past > len(self.weights):
            self.weights = Parameter(F.pad(self.weights.detach(), (0, len(self.weights))))

    def running(self) -> dict[str, Tensor]:
        """Name the sums that are summed over processes."""
        return {"sums": self.sums}

    def context(self) -> Tensor:
        """Return what each increment of each finished task counts for, (T N,)."""
        return (self.weights[: len(self.picked), None] * self.picked).flatten()
