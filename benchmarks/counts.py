"""Bars that are exact: saved bytes, dispatched operations, synchronisations, counted tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from benchmarks import accuracy
from benchmarks.meter import Bar
from benchmarks.table import Table
from benchmarks.variants import (
    BATCH,
    FFN,
    TOKENS,
    UP,
    Block,
    Linear,
    N,
    R,
    batch,
    experts,
    saved_bytes,
    training_step,
)
from undrift.tuner import layers, statistics
from undrift.tuner.token_mask import Tokens

SMALL = 64
# Whatever makes the host wait for a device: reading a value, or a size that depends on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher and is more than another view of the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in ("detach", "_unsafe_view", "alias"):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class DeviceTokens(Tokens):
    """Chooses tokens the way it is done on an accelerator."""

    def _choose(self, count: int, fraction: float, seed: int, device: torch.device) -> Any:
        return self.fixed_size(count, fraction, seed, device)


def saved_bar() -> Bar:
    """Elements kept for the backward pass beyond x, over T (N r + N)."""
    model, x = experts(Linear(), UP), batch()
    bound = TOKENS * (N * R + N) * 4
    return Bar("layer: saved bytes beyond x / 4 T (N r + N)", saved_bytes(model, x) / bound, 1.25)


def operation_bars() -> list[Bar]:
    """Operations of one linear without and with statistics, and reads of the device."""
    bars = []
    x = batch(SMALL)
    for label, fraction, limit in (("", None, 35), (" with statistics", 1.0, 60)):
        step = training_step(experts(Linear(SMALL, SMALL), UP, fraction=fraction), x)
        step()
        with Operations() as counted:
            step()
        bars.append(Bar(f"layer: dispatched operations{label}", counted.names.total(), limit))
    model = experts(Block(SMALL, SMALL), FFN, fraction=1 / 8)
    mask = torch.ones(BATCH, TOKENS // BATCH)
    mask[:, -5:] = 0
    context = next(iter(layers(model).values())).context
    training_step(model, x)()
    with Operations() as counted:
        model(inputs_embeds=x, attention_mask=mask)  # sets the context
        made = DeviceTokens(mask, content=context.tokens.content)
        vars(context._call)["tokens"] = made  # as if the call had made them on an accelerator
        model.base_model.model.forward(inputs_embeds=x).sum().backward()
    reads = sum(counted.names[name] for name in READS)
    return [*bars, Bar("block: synchronisations with statistics of 1/8", reads, 0)]


class Checkpointed(nn.Module):
    """A block that is computed again in the backward pass."""

    def __init__(self, block: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the block without keeping its activations."""
        again: Tensor = checkpoint(self.block, inputs_embeds, use_reentrant=self.reentrant)
        return again


def token_bars() -> list[Bar]:
    """Tokens counted over tokens that are no padding, with recomputation of both kinds."""
    bars, x = [], batch(SMALL)
    mask = torch.ones(BATCH, TOKENS // BATCH)
    mask[1:, -17:] = 0
    for label, reentrant in (("plain", None), ("reentrant", True), ("not reentrant", False)):
        block: nn.Module = Block(SMALL, SMALL)
        if reentrant is not None:
            block = Checkpointed(block, reentrant)
        model = experts(block, FFN, fraction=1.0)
        model(inputs_embeds=x, attention_mask=mask).sum().backward()
        with torch.no_grad():
            model(inputs_embeds=x, attention_mask=mask)
        counts = {float(each.usage.tokens) for each in statistics(model).values()}
        wrong = max(abs(count - float(mask.sum())) for count in counts)
        bars.append(Bar(f"block: tokens counted wrongly, checkpointing: {label}", wrong, 0))
    return bars


def tables(*, long: bool) -> list[Table]:
    """All of them; they come out the same every time."""
    torch.manual_seed(0)
    bars = [saved_bar(), *operation_bars(), *token_bars(), *accuracy.bars()]
    return [Table("counts", "Exact counts, and the accuracy of the sketch", [], bars)]
