"""What becomes of a probe: which linears need an expert, where it begins, and what is forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from undrift.core.stepping import innermost
from undrift.tuner.pool import PoolLoraLayer


def needed(share: Tensor, slack: float) -> Tensor:
    """Say which linears need an expert.

    Args:
        share: f, of each linear's tokens that went to its probe, (M,).
        slack: a.

    Returns:
        Where f > mean(f) - a * std(f), (M,) bool; everywhere if that is nowhere, since probes that
        are all used alike tell no linear from another.
    """
    needs = share > share.mean() - slack * share.std(correction=0)
    return needs if bool(needs.any()) else torch.ones_like(needs)


@torch.no_grad()
def copy_expert(
    layer: PoolLoraLayer, adapter: str, old: int, perturb: float, generator: torch.Generator
) -> None:
    """Let the newest expert of a linear begin beside an old one.

    Args:
        layer: The linear.
        adapter: The adapter's name.
        old: The index of the past expert.
        perturb: How far from it, relative to its size.
        generator: Says in which direction.
    """
    for new, past in (
        (layer.pool_lora_A[adapter], layer.pool_lora_past_A[adapter][old]),
        (layer.pool_lora_B[adapter], layer.pool_lora_past_B[adapter][old]),
    ):
        aside = torch.randn(past.shape, generator=generator).to(past)
        new.copy_(past + perturb * past.square().mean().sqrt() * aside)
    layer.forget_packed()


def forget_momentum(optimizer: Any, parameters: Iterable[Parameter]) -> None:
    """Drop what an optimiser remembers of parameters whose values were replaced.

    Args:
        optimizer: A torch optimiser, or one that wraps it in `.optimizer`.
        parameters: Which ones; each begins anew with its next step.
    """
    state = innermost(optimizer).state
    for p in parameters:
        state.pop(p, None)
