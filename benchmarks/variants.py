"""The layers that are compared: frozen, PEFT LoRA, ours, and Eq. 2 as a loop over experts."""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undrift.tuner import MoeLoraConfig, layers, statistics

D, M, TOKENS, BATCH = 2048, 5504, 512, 4
N, R = 8, 8
UP, FFN = ["up_proj"], ["gate_proj", "up_proj", "down_proj"]


class Linear(nn.Module):
    """One linear, called like a model."""

    def __init__(self, d: int = D, m: int = M) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d, m, bias=False)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Project x (..., d) to (..., m)."""
        return self.up_proj(inputs_embeds)


class Block(nn.Module):
    """A feed-forward block as in Llama: down(silu(gate(x)) * up(x))."""

    def __init__(self, d: int = D, m: int = M) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d, m, bias=False)
        self.up_proj = nn.Linear(d, m, bias=False)
        self.down_proj = nn.Linear(m, d, bias=False)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map x (..., d) to (..., d)."""
        return self.down_proj(F.silu(self.gate_proj(inputs_embeds)) * self.up_proj(inputs_embeds))


class Loop(nn.Module):
    """Eq. 2 as it is written, one expert after the other."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        d, m = base.in_features, base.out_features
        self.A = nn.ModuleList(nn.Linear(d, R, bias=False) for _ in range(N))
        self.B = nn.ModuleList(nn.Linear(R, m, bias=False) for _ in range(N))
        self.router = nn.Linear(d, N, bias=False)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        """Compute Eq. 2 for x (..., d)."""
        y, w = self.base(inputs_embeds), self.router(inputs_embeds).softmax(-1)
        for i, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            y = y + 2.0 * w[..., i : i + 1] * B(A(inputs_embeds))
        return y


def lora(model: nn.Module, targets: list[str]) -> nn.Module:
    """Plain PEFT LoRA of the same total rank, N R."""
    config = peft.LoraConfig(r=N * R, lora_alpha=2 * N * R, target_modules=targets)
    return peft.get_peft_model(model, config).train()


def experts(model: nn.Module, targets: list[str], *, fraction: float | None = None) -> nn.Module:
    """Our layer; with statistics of a share of the tokens where `fraction` is given."""
    config = MoeLoraConfig(
        num_experts=N,
        r=R,
        lora_alpha=2 * R,
        target_modules=targets,
        collect=True,
        columns=128,
        token_fraction=fraction or 1.0,
        token_weights="share",
    )
    wrapped = peft.get_peft_model(model, config).train()
    for layer in layers(wrapped).values():
        nn.init.normal_(layer.moe_lora_B["default"], std=0.01)
    for each in statistics(wrapped).values():
        each.start_task()
        each.collecting = fraction is not None
    return wrapped


def batch(d: int = D, tokens: int = TOKENS) -> Tensor:
    """Random inputs, (4, tokens / 4, d), that need a gradient as inside a model."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, tokens // BATCH, d, generator=generator).requires_grad_()


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward and backward pass, to the inputs and to whatever learns."""
    with torch.no_grad():
        dy = torch.randn_like(model(inputs_embeds=x))

    def run() -> None:
        x.grad = None
        for p in model.parameters():
            p.grad = None
        model(inputs_embeds=x).backward(dy)

    return run


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What a forward pass keeps for the backward pass, besides weights and x."""
    known = {p.untyped_storage().data_ptr() for p in [x, *model.parameters()]}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = model(inputs_embeds=x)
    del y
    return sum(kept.values())
