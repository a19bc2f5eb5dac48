"""LLaVA-DyMoE: experts that grow with the tasks, and tokens that look old are kept off new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from undrift.core.routing import route
from undrift.methods import base
from undrift.methods.shared import pool
from undrift.methods.shared.adapter import peft_model
from undrift.methods.shared.added_loss import AddedLoss, without_graph
from undrift.tuner import Gates, Prompt
from undrift.tuner.frozen import Frozen
from undrift.tuner.pool_lora import PoolLoraConfig, generator_of, make_room


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`; `rank` means something else. All defaults are [OURS].

    Attributes:
        rank: How many experts of rank 1 a task brings: its group, as large as the one expert of
            other pools.
        top_k: How many experts a token is routed to; as many as a task brings where None.
        ambiguity: A token is ambiguous while the shares of the two groups differ by no more.
        guidance: The weight of the loss that steers old and ambiguous tokens off new experts.
        separation: That of the loss of a token that is shared by both groups.
        specialisation: That of the loss that draws new tokens to new experts.
        warmup_share: Of a task's steps, how many come before the three losses.
        perturb: How far a new expert's router begins from the one that it copies, relative to its
            size.
    """

    top_k: int | None = base.option(None, ("None, or 1 or more", lambda v: v is None or v >= 1))
    ambiguity: float = base.option(0.2, base.SHARE)
    guidance: float = base.option(0.1, base.NOT_NEGATIVE)
    separation: float = base.option(0.01, base.NOT_NEGATIVE)
    specialisation: float = base.option(0.01, base.NOT_NEGATIVE)
    warmup_share: float = base.option(0.1, base.SHARE)
    perturb: float = base.option(0.1, base.NOT_NEGATIVE)


class DyMoE(pool.PoolMethod["Routers"]):
    """Every task adds experts, and a loss keeps its old and ambiguous tokens off the new ones.

        y = W0 x + s sum_{i in top-k} softmax(R x)_i B_i A_i x

    Old experts and their rows of R are frozen; what can drift is that new rows attract old tokens.
    With m = max_new R x - max_old R x the share of the new group is p = sigmoid(m), and a token is
    new if p - (1 - p) > ambiguity, else ambiguous or old. The loss is the mean over tokens of

        -guidance log(1 - p)    of an old or an ambiguous token (assignment guidance)
        -specialisation log p   of a new one, and 4 separation p (1 - p) of every one (regularisers)

    The full text was not at hand, and there is no public code; beside all numbers these are [OURS]:
    the form of the three losses; a group's score is that of its best expert; only new rows learn
    from the losses, not the layers below; they are taken over the prompt's tokens, mean over an
    example first. A new row begins beside the last task's, so that the two groups tie, and the
    losses wait until the task's own loss has begun to say which tokens are new.
    """

    name: ClassVar[str] = "dymoe"
    why_not_sharded: ClassVar[str] = (
        "its routers are read outside the layers that FSDP2 brings together"
    )
    paper: ClassVar[str] = "LLaVA-DyMoE, Zhao et al., CVPR 2026, arXiv:2603.27481"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._losses: dict[str, Tensor] = {}  # of the pass that is made, by linear
        self._added = AddedLoss(self, self._guided)

    # ------------------------------------------------------------ the model

    def peft_config(self, model: nn.Module | None = None) -> PoolLoraConfig:
        """Make the configuration of the adapter: a group of experts of rank 1."""
        c = self.config
        return replace(super().peft_config(), r=1, lora_alpha=c.alpha_over_rank, num_new=c.rank)

    def make_gate(self, width: int) -> Routers:
        """Make the routers."""
        return Routers({n: each.in_features for n, each in self._layers.items()}, self.config)

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates, and add the losses to its own."""
        super().bind(model)
        self._added.watch(model)

    def past(self, model: nn.Module) -> int:
        """Return how many groups are past."""
        return super().past(model) // self.config.rank

    def gates(self, prompt: Prompt) -> Mapping[str, Gates]:
        """Route every token by itself; in training its losses are noted."""
        self._losses = {}
        return {name: partial(self._route, name, prompt.mask) for name in self._layers}

    def _route(self, name: str, mask: Tensor, x: Tensor) -> Tensor:
        new, old = self.gate.rows(name)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            logits = F.linear(x, torch.cat([old, new]))
            if self.gate.training and torch.is_grad_enabled() and len(old):
                self._losses[name] = self._loss(F.linear(x.detach(), new), F.linear(x, old), mask)
            return route(logits, self.config.top_k or self.config.rank)

    def _loss(self, new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
        c, ahead = self.config, margin(new, old.detach())
        each = token_loss(ahead, c.ambiguity, c.guidance, c.separation, c.specialisation)
        return ((each * mask).sum(1) / mask.sum(1)).mean()

    def _guided(self) -> Tensor | None:
        """Return the mean over linears, behind the warm-up of a task that is not the first."""
        losses, self._losses = self._losses, {}
        begun = self._step >= self.config.warmup_share * self._steps
        if not (begun and len(self.gate.old["0"])):
            return None
        if not losses:
            raise without_graph(self)
        return torch.stack(list(losses.values())).mean()

    # ------------------------------------------------------------ its size

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh pool to its size after so many tasks."""
        make_room(peft_model(model), (tasks - 1) * self.config.rank, self._adapter)
        self.gate.make_room(tasks - 1)

    def idle_parameters(self, model: nn.Module) -> int:
        """Count the experts that a token is not routed to."""
        met, idle = self.config.top_k or self.config.rank, 0
        for layer in self._layers.values():
            experts = layer.experts(self._adapter)
            idle += max(0, experts - met) * (layer.in_features + layer.out_features)
        return idle


# --------------------------------------------- what a token's scores say


def margin(new: Tensor, old: Tensor) -> Tensor:
    """Return m, how far the best new expert is ahead of the best old one.

    Args:
        new: Scores of the task's own experts, (..., n).
        old: Those of all others, (..., E).

    Returns:
        (...).
    """
    return new.amax(-1) - old.amax(-1)


def token_loss(
    m: Tensor, ambiguity: float, guidance: float, separation: float, specialisation: float
) -> Tensor:
    """Compute the three losses of every token, see `DyMoE`.

    Args:
        m: From `margin`.
        ambiguity: How far the shares differ at least where a token counts as new.
        guidance: The weight of -log(1 - p) for tokens that are not new.
        separation: Of 4 p (1 - p), for all.
        specialisation: Of -log p, for new tokens.

    Returns:
        Like m.
    """
    p = m.sigmoid()
    is_new = (2 * p.detach() - 1) > ambiguity
    assigned = torch.where(is_new, specialisation * F.softplus(-m), guidance * F.softplus(m))
    return assigned + 4 * separation * p * (1 - p)


# --------------------------------------------- the routers


class Routers(pool.Gate):
    """The rows of R of all linears: those of the task at hand are trained, the others frozen.

    Args:
        inputs: d_in by linear.
        config: The method's.

    Attributes:
        new: Of the task at hand, in the order of the linears, (n, d_in) each.
        old: Of the tasks before, oldest first, (t n, d_in) each, by the linear's place.
    """

    def __init__(self, inputs: Mapping[str, int], config: Config) -> None:
        super().__init__()
        self.places = {name: place for place, name in enumerate(inputs)}
        self.size, self.perturb = config.rank, config.perturb
        self.new = nn.ParameterList([Parameter(torch.zeros(self.size, d)) for d in inputs.values()])
        self.old = Frozen()
        self.make_room(0)
        self._each(lambda row, drawn: drawn * (0.1 / row.shape[1] ** 0.5))

    def rows(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the new and the old rows of a linear."""
        place = self.places[name]
        return self.new[place], self.old[str(place)]

    @torch.no_grad()
    def grow(self, past: int) -> None:
        """Let the rows become old ones, and begin new ones beside them."""
        for place, row in enumerate(self.new):
            held = self.old[str(place)]
            self.old[str(place)] = torch.cat([held, row.detach().to(held)])
        self._each(lambda row, drawn: row + self.perturb * row.square().mean().sqrt() * drawn)

    def make_room(self, past: int) -> None:
        """Make room for the rows of so many tasks, whose values are then loaded."""
        for place, row in enumerate(self.new):
            room = torch.zeros(past * self.size, row.shape[1], device=row.device)
            self.old[str(place)] = room

    @torch.no_grad()
    def _each(self, begun: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Give every row its first value, of what it is and of what is drawn for it."""
        for place, row in enumerate(self.new):
            generator = generator_of("router", place, len(self.old[str(place)]))
            drawn = torch.empty(row.shape, device="cpu").normal_(generator=generator)
            row.copy_(begun(row, drawn.to(row.device)))


METHOD = DyMoE
