"""Bars on time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.meter import Bar, measure, median
from benchmarks.table import Table
from benchmarks.variants import (
    FFN,
    TOKENS,
    UP,
    Block,
    D,
    Linear,
    Loop,
    M,
    N,
    R,
    batch,
    experts,
    lora,
    training_step,
)
from undrift.core.routing import add_mixture, pack
from undrift.core.step_hook import StepHook
from undrift.core.steps import a_metric, damping, expert_a_step, gain, router_step
from undrift.methods.same import Same


def layer_bars(rounds: int) -> list[Bar]:
    """One linear, 2048 -> 5504, 512 tokens, forward and backward."""
    torch.manual_seed(0)
    base, x = Linear().requires_grad_(False), batch()
    models: dict[str, nn.Module] = {
        "lora": lora(copy.deepcopy(base), UP),
        "packed": experts(copy.deepcopy(base), UP),
        "loop": Loop(copy.deepcopy(base).up_proj),
    }
    taken = measure({name: training_step(model, x) for name, model in models.items()}, rounds)
    return [
        Bar("layer: packed / PEFT LoRA 64", median(taken, lambda s: s["packed"] / s["lora"]), 1.05),
        Bar(
            "layer: loop over experts / packed",
            median(taken, lambda s: s["loop"] / s["packed"]),
            1.3,
            at_most=False,
        ),
    ]


def frozen_bars(rounds: int) -> list[Bar]:
    """What the experts add to a linear, half of them frozen, against what all of them add.

    The frozen linear is left out: it takes ten times as long, and its jitter with it.
    """
    torch.manual_seed(0)
    x, y, dy = torch.randn(TOKENS, D), torch.zeros(TOKENS, M), torch.randn(TOKENS, M)
    x.requires_grad_()
    masters = [torch.randn(N, R, D), torch.randn(N, R, M) * 1e-3, torch.randn(N, D) * 0.01]
    masters = [p.requires_grad_() for p in masters]

    def run(active: torch.Tensor | None) -> None:
        packed = pack(*masters, torch.float32, active)
        out = add_mixture(y.detach(), x, *masters, packed, 2.0, in_place=True)
        torch.autograd.grad(out, [x, *masters], dy)

    half = torch.arange(0, N, 2)
    taken = measure({"all": lambda: run(None), "half": lambda: run(half)}, rounds)
    ratio = median(taken, lambda s: s["half"] / s["all"])
    return [Bar("layer: extra of half frozen / extra of all", ratio, 0.75)]


def block_bars(rounds: int) -> list[Bar]:
    """A feed-forward block, with the statistics that SAME needs."""
    torch.manual_seed(0)
    base, x = Block().requires_grad_(False), batch()
    models = {
        "lora": lora(copy.deepcopy(base), FFN),
        "eighth": experts(copy.deepcopy(base), FFN, fraction=1 / 8),
        "all": experts(copy.deepcopy(base), FFN, fraction=1.0),
    }
    taken = measure({name: training_step(model, x) for name, model in models.items()}, rounds)
    return [
        Bar(
            "block: with sketch of 1/8 of the tokens / PEFT LoRA 64",
            median(taken, lambda s: s["eighth"] / s["lora"]),
            1.06,
        ),
        Bar(
            "block: with sketch of all tokens / PEFT LoRA 64",
            median(taken, lambda s: s["all"] / s["lora"]),
            1.08,
        ),
    ]


def step_bars(rounds: int) -> list[Bar]:
    """What SAME does to the step of A and of the router, against the step of AdamW itself."""
    torch.manual_seed(0)
    model = experts(Linear().requires_grad_(False), UP)
    masters = [p for p in model.parameters() if p.requires_grad]
    for p in masters:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(masters, lr=1e-4)
    dA, dW = (torch.randn(8, 8, 2048), torch.randn(8, 2048))
    V = torch.linalg.qr(torch.randn(2048, 64)).Q
    s = torch.arange(1, 65, dtype=torch.float32).reciprocal()
    inside, outside = a_metric(s, damping(s, 0.1, relative=True), normalise=True)
    g = gain(s, 3, 1.0, clamp=True)

    def transform() -> None:
        for _ in range(20):
            expert_a_step(dA, V, inside, outside)
            router_step(dW, V, g, 0.1, 1.0)

    def adamw() -> None:
        for _ in range(20):
            optimizer.step()

    taken = measure({"transform": transform, "adamw": adamw}, rounds)
    ratio = median(taken, lambda s: s["transform"] / s["adamw"])
    return [Bar("step: transform of A and router / AdamW step", ratio, 2.0)]


class Blocks(nn.Module):
    """Four feed-forward blocks of the pocket's size, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(128, 344) for _ in range(4))

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Map x (..., 128) to (..., 128)."""
        for block in self.blocks:
            inputs_embeds = inputs_embeds + block(inputs_embeds)
        return inputs_embeds


def held_bars(rounds: int) -> list[Bar]:
    """What all that SAME does to a step adds to AdamW's own, in twelve small linears."""
    torch.manual_seed(0)
    method, x = Same(max_frozen=4, tau=1.0), batch(128)
    model = experts(Blocks().requires_grad_(False), FFN, fraction=1.0)
    method.task_start(model, 1, 2)
    training_step(model, x)()
    method.task_end(model)
    method.task_start(model, 2, 100)
    masters = list(method.step_transforms(model))
    for p in masters:
        p.grad = torch.randn_like(p)
    plain, held = (torch.optim.AdamW(masters, lr=1e-6) for _ in range(2))
    StepHook(held, lambda: method.step_transforms(model)).attach()
    taken = measure({"plain": plain.step, "held": held.step}, rounds)
    ratio = median(taken, lambda s: s["held"] / s["plain"])
    return [Bar(f"step: SAME in {len(masters)} masters / AdamW step", ratio, 3.0)]


_GROUPS: tuple[tuple[Callable[[int], list[Bar]], int], ...] = (
    (layer_bars, 9),
    (frozen_bars, 25),
    (block_bars, 9),
    (step_bars, 9),
    (held_bars, 30),
)


def tables(*, long: bool) -> list[Table]:
    """All of them."""
    bars = [bar for group, rounds in _GROUPS for bar in group(rounds * (2 if long else 1))]
    return [Table("layer", "One layer, one block, one step: ratios of CPU time", [], bars)]
