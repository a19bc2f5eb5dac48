"""SMoLoRA: experts for what is seen, experts for what is asked, and a fusion of the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from undrift.methods import base
from undrift.methods.shared.pool import Gate, PoolMethod
from undrift.methods.shared.prompt_features import FeatureConfig, features
from undrift.tuner import Gates, Prompt
from undrift.tuner.frozen import freeze
from undrift.tuner.pool_lora import PoolLoraConfig, PoolLoraLayer


@dataclass(frozen=True, kw_only=True)
class Config(FeatureConfig):
    """The options of `FeatureConfig`, and two more; half of the `experts` are for each group.

    Attributes:
        gate_grad: "none", routers stay as they were drawn, as in the public code and, since the
            softmax over one expert is 1, in the paper's formula; "straight_through", they are
            trained in the first task as if the softmax over all experts had been used.
        instruction_tokens: How many of the prompt's last tokens of text are the instruction, which
            says in what form to answer.
    """

    gate_grad: Literal["none", "straight_through"] = "none"
    instruction_tokens: int = base.option(16, ("1 or more", lambda v: v >= 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("experts", ("an even number: two groups", lambda v: v % 2 == 0))


class Routing(nn.Module):
    """The routers and the fusion of one linear.

    Args:
        layer: The linear.
        experts: N.
        width: D, of the instruction's feature.

    Attributes:
        seen: R_vu, (N / 2, d_in).
        asked: R_if, (N / 2, D).
        fusion: c_vu and c_if, (2, d_out).
    """

    def __init__(self, layer: PoolLoraLayer, experts: int, width: int) -> None:
        super().__init__()
        self.seen = Parameter(_drawn(experts // 2, layer.in_features))
        self.asked = Parameter(_drawn(experts // 2, width))
        self.fusion = Parameter(_drawn(2, layer.out_features))


class Routings(Gate):
    """Those of all linears, in their order."""

    def __init__(self, made: list[Routing]) -> None:
        super().__init__()
        self.linears: Any = nn.ModuleList(made)


@dataclass(eq=False)
class Route:
    """The gates of one linear for one batch of prompts, from its inputs.

    The group for what is seen is routed by the mean input over the prompt, taken when the prompt
    is read, and kept while an answer is decoded.

    Args:
        routing: The linear's routers.
        layer: The linear.
        adapter: The adapter's name.
        mask: The prompt's positions, (B, L) bool.
        asked: The instruction's feature, (B, D).
        soft: Whether the routers get a gradient.
    """

    routing: Routing
    layer: PoolLoraLayer
    adapter: str
    mask: Tensor
    asked: Tensor
    soft: bool
    chosen: Tensor | None = None  # (B, N)

    def __call__(self, x: Tensor) -> Tensor:
        """Weigh the experts for every token.

        Args:
            x: The linear's input, (B, L, d_in), or (copies of B, 1, d_in) while decoding.

        Returns:
            (B, L, N): a token's share of its sample's one expert in each group, 0 for all others.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._weigh(x.float())

    def _weigh(self, x: Tensor) -> Tensor:
        chosen = self.chosen
        if chosen is None or torch.is_grad_enabled():  # recomputed activations need the graph anew
            chosen = self.chosen = self._choose(x)
        copies = len(x) // len(chosen)
        chosen = chosen.repeat_interleave(copies, 0) if copies > 1 else chosen
        A, B = self.layer.pool_lora_A[self.adapter], self.layer.pool_lora_B[self.adapter]
        c = self.routing.fusion.repeat_interleave(len(A) // 2, 0)  # (N, d_out)
        heard = torch.einsum("nro,no->nr", B, c)  # B_i^T c, so that c . B_i A_i x costs a router
        said = F.linear(x, torch.einsum("nr,nrd->nd", heard, A))  # (B, L, N)
        scale = self.layer.pool_lora_config[self.adapter].scale
        groups = scale * (said * chosen[:, None]).unflatten(-1, (2, -1)).sum(-1)
        share = groups.softmax(-1)  # a, b
        return chosen[:, None] * share.repeat_interleave(len(A) // 2, -1)

    def _choose(self, x: Tensor) -> Tensor:
        """One expert of each group for every sample, (B, N)."""
        weights = self.mask.float() / self.mask.sum(1, keepdim=True)
        seen = torch.einsum("bl,bld->bd", weights, x)
        logits = (F.linear(seen, self.routing.seen), F.linear(self.asked, self.routing.asked))
        return torch.cat([self._one(each) for each in logits], 1)

    def _one(self, logits: Tensor) -> Tensor:
        one = F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)
        if not self.soft:
            return one
        likely = logits.softmax(1)
        return one + likely - likely.detach()


class SMoLora(PoolMethod[Routings]):
    """Two groups of experts, routed by the sample's inputs and by its instruction, fused by token.

    u = s sum_i g_vu_i B_i A_i x and v = s sum_i g_if_i B_i A_i x, one expert each;
    [a, b] = softmax([c_vu . u, c_if . v]); y = W0 x + a u + b v. The public code averages the input
    over padding, answers and, while decoding, single tokens; here over the prompt, once. It is told
    the task's instruction by hand; here the last tokens of the prompt are read, whose mean
    embedding stands for the sentence encoder's [OURS]. Routers are frozen from the second task on.
    """

    name: ClassVar[str] = "smolora"
    paper: ClassVar[str] = "SMoLoRA, Wang et al., ICCV 2025, arXiv:2411.13949"
    parts: ClassVar[base.Parts] = "router and experts"
    Config: ClassVar[type[base.Config]] = Config
    learning_rate: ClassVar[float] = 1e-4
    config: Config

    def peft_config(self, model: nn.Module | None = None) -> PoolLoraConfig:
        """Make the configuration of the adapter: N experts, all of them trained."""
        return replace(super().peft_config(), num_new=self.config.experts)

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates from now on; the routers are trained in the first task at most."""
        super().bind(model)
        if self.config.gate_grad == "none" or self.task_index > 1:
            for routing in self.gate.linears:
                freeze(routing, "seen", "asked")

    def make_gate(self, width: int) -> Routings:
        """Make the routers and fusions."""
        layers = self._layers.values()
        return Routings([Routing(layer, self.config.experts, width) for layer in layers])

    def gates(self, prompt: Prompt) -> Mapping[str, Gates]:
        """Route a batch of prompts."""
        last = prompt.text_mask.flip(1).cumsum(1).flip(1) <= self.config.instruction_tokens
        instruction = replace(prompt, text_mask=prompt.text_mask & last)
        self._centre = self._centre.to(prompt.embeds.device)  # the model may have been moved
        asked = features(instruction, self._centre, self.config.encoder).of["text"]
        soft = self.config.gate_grad == "straight_through"
        return {
            name: Route(routing, layer, self._adapter, prompt.mask, asked, soft)
            for (name, layer), routing in zip(self._layers.items(), self.gate.linears, strict=True)
        }

    def grow(self, model: nn.Module) -> None:
        """Do nothing: every task trains the same experts."""

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Do nothing: the size stays."""

    def idle_parameters(self, model: nn.Module) -> int:
        """Count the experts that a sample is not routed to."""
        N = self.config.experts
        return sum(each.trained_size() for each in self._layers.values()) * (N - 2) // N


def _drawn(rows: int, columns: int) -> Tensor:
    """What a linear layer of torch begins with."""
    bound = columns**-0.5
    return torch.empty(rows, columns).uniform_(-bound, bound)


METHOD = SMoLora
