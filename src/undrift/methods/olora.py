"""A LoRA for every task, whose A is pushed to be orthogonal to those of all earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.step_hook import StepTransform
from undrift.methods import base
from undrift.methods.shared import pool
from undrift.methods.shared.added_loss import loss_scale
from undrift.tuner.distributed import full_tensor


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`, and those of the push.

    Attributes:
        strength: lambda_1, the weight of the entries of |A_t A_i^T|. What it means depends on
            `reduction`.
        reduction: Whether lambda_1 weighs the "mean" of these entries over all linears and pairs
            of rows, so that one value serves any model, rank and number of tasks; or their "sum".
        row_normalise: Take the rows of A at length 1, so that the push turns them and cannot be
            met by making them short.
        shrink: lambda_2, the weight of the Euclidean norms of A_t and B_t, one a matrix.
        train_with: Which experts the task's own is trained with: "all" of them, as they answer; or
            the "newest" alone, as later public code does, so that training and test differ.
    """

    strength: float = base.option(1.0, base.NOT_NEGATIVE)
    reduction: Literal["mean", "sum"] = "mean"
    row_normalise: bool = False
    shrink: float = base.option(0.0, base.NOT_NEGATIVE)
    train_with: Literal["all", "newest"] = "all"


class OLora(pool.PoolMethod[pool.Gate]):
    """A LoRA for every task, kept orthogonal to the earlier ones, which stay in the sum.

        y = W0 x + s sum_{i<t} B_i A_i x + s B_t A_t x                    in training and at test
        L = L_LM + lambda_1 sum_{i<t} |A_t A_i^T|_1 + lambda_2 (||A_t|| + ||B_t||)

    Both penalties are functions of the parameters alone, so their gradient is added once per
    optimiser step, after clipping, and they are not part of the reported loss. The setting
    "paper" has the paper's lambda_1 = 0.5 on the sum, which was tuned for the query and value
    linears of T5 and grows with the model, the square of the rank and the number of tasks. On the
    mean, 1 is where the push is as long as the gradient of L_LM on the pocket backbone.
    """

    name: ClassVar[str] = "olora"
    paper: ClassVar[str] = "O-LoRA, Wang et al., EMNLP 2023 Findings, arXiv:2310.14152"
    parts: ClassVar[base.Parts] = "experts"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[base.Settings] = {"paper": {"strength": 0.5, "reduction": "sum"}}
    reads_prompts: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    cut_off: ClassVar[base.CutOff] = "go on"
    config: Config

    def in_adapter(self, model: nn.Module) -> int | None:
        """Count the experts: the pool is all that there is to know."""
        return self.past(model) + 1

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Make ready, and leave the past experts out where the option says so."""
        super().task_resume(model, task_index, steps_total)
        self._context.set_gates(self.config.train_with)

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Add the gradients of both penalties."""
        config, adapter, layers = self.config, self._adapter, self._layers.values()
        scale = loss_scale(self._optimizer)
        shrink, unit = config.shrink * scale, config.row_normalise
        turns: dict[Parameter, StepTransform] = {}
        for layer in layers:
            A, B = layer.pool_lora_A[adapter], layer.pool_lora_B[adapter]
            past = layer.pool_lora_past_A[adapter].detach().flatten(0, 1)
            weight = config.strength * scale
            if config.reduction == "mean":
                weight /= max(1, len(layers) * A.shape[0] * A.shape[1] * len(past))
            turns[A] = partial(_pushed, p=A, past=past, weight=weight, shrink=shrink, unit=unit)
            if shrink:
                turns[B] = partial(_shrunk, p=B, weight=shrink)
        return turns


def overlap_gradient(A: Tensor, past: Tensor, *, unit: bool = False) -> Tensor:
    """The gradient of the sum of all entries of |A A_past^T| with respect to A.

    Args:
        A: Rows, (r, d).
        past: The rows that they are to be orthogonal to, (R, d).
        unit: Take all rows at length 1.

    Returns:
        (r, d).
    """
    if not unit:
        return (A @ past.mT).sign() @ past
    length = A.norm(dim=1, keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)
    rows, past = A / length, torch.nn.functional.normalize(past, dim=1)
    pull = (rows @ past.mT).sign() @ past
    return (pull - rows * (rows * pull).sum(1, keepdim=True)) / length


def _pushed(
    gradient: Tensor, p: Parameter, past: Tensor, weight: float, shrink: float, *, unit: bool
) -> Tensor:
    A = full_tensor(p.detach()).flatten(0, 1)
    added = weight * overlap_gradient(A, past, unit=unit)
    return _shrunk(gradient + added.view_as(gradient), p, shrink)


def _shrunk(gradient: Tensor, p: Parameter, weight: float) -> Tensor:
    """Add the gradient of weight * ||p||, which at 0 is 0."""
    if not weight:
        return gradient
    value = full_tensor(p.detach())
    return gradient + weight * value / value.norm().clamp_min(torch.finfo(p.dtype).tiny)


METHOD = OLora
