"""Continual LLaVA: a shared pool of low-rank increments, chosen by the text of the instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from undrift.core.step_hook import StepTransform
from undrift.methods import base
from undrift.methods.shared.adapter import peft_model
from undrift.methods.shared.added_loss import AddedLoss
from undrift.methods.shared.pool import Gate, PoolMethod
from undrift.methods.shared.prompt_features import FeatureConfig, features
from undrift.tuner import Prompt
from undrift.tuner.distributed import gathered
from undrift.tuner.pool_lora import PoolLoraConfig, grow, make_room


@dataclass(frozen=True, kw_only=True)
class Config(FeatureConfig):
    """The options of `FeatureConfig`, and three more; `experts` is N, the size of the pool.

    Attributes:
        chosen: M, how many increments an instruction picks.
        align_share: The share of a task's steps in which only the keys are trained, before only
            the increments are.
        freeze_used: Hold the increments that a finished task has picked.
    """

    chosen: int = base.option(4, ("at least 1", lambda v: v >= 1))
    align_share: float = base.option(0.1, ("0 up to below 1", lambda v: 0 <= v < 1))
    freeze_used: bool = False


class ContinualLlava(PoolMethod["Keys"]):
    """An instruction adds up its nearest increments of a shared pool, and what past tasks used.

    y = W0 x + s sum_{m in I} c_m B_m A_m x + s sum_{l < t} w_l sum_n v_ln B_ln A_ln x: I are the M
    keys nearest to the instruction's text e, c their cosines, divided by their sum. A task has two
    stages: first only the keys move, towards the instructions that pick them; then only the
    increments and w. There is no public code, and the reviews leave sizes open. [OURS] are N, M and
    R; a negative cosine counts 0; keys begin as instructions of the first task; a finished task is
    kept as its mean shares v and a copy of the whole pool's factors, which `w` weighs; w is zero at
    first, and one number a task for all linears. The setting "paper" has N 64 and R 8 on the
    attention's output projections. The first stage needs a trainer that takes `loss`.
    """

    name: ClassVar[str] = "continual_llava"
    why_not_sharded: ClassVar[str] = (
        "its first keys are made in a forward pass, where FSDP2 loses them"
    )
    paper: ClassVar[str] = "Continual LLaVA, Cao et al., 2024, arXiv:2411.02564"
    parts: ClassVar[base.Parts] = "entangled"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[base.Settings] = {
        "paper": {"experts": 64, "rank": 8, "targets": r".*\.o_proj"}
    }
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._queries: Tensor | None = None
        self._align_until = 0
        self._added = AddedLoss(self, self._misaligned, alone=self._aligning)

    # ------------------------------------------------------------ which increments

    def make_gate(self, width: int) -> Keys:
        """Make the keys."""
        return Keys(self.config.experts, width)

    def gates(self, prompt: Prompt) -> Tensor:
        """Choose the increments of every instruction."""
        self._centre = self._centre.to(prompt.embeds.device)  # the model may have been moved
        e = features(prompt, self._centre, self.config.encoder).of["text"]
        training = self.gate.training
        if training and not bool(self.gate.keys.any()):
            self._first_keys(e)
        self._queries = e
        with torch.no_grad():
            shares = self._shares(e)
            if training:
                self.gate.sums[:-1] += shares.double().sum(0)
                self.gate.sums[-1] += len(shares)
        context = self.gate.context().expand(len(shares), -1)
        return torch.cat([context, shares], 1)

    def _cosines(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """The M largest cosines of e (B, d) with the keys, and whose they are, (B, M)."""
        with torch.autocast(e.device.type, enabled=False):
            cosines = e @ F.normalize(self.gate.keys, dim=1).mT
        found = cosines.topk(min(self.config.chosen, cosines.shape[1]), dim=1)
        return found.values, found.indices

    def _shares(self, e: Tensor) -> Tensor:
        """c, (B, N)."""
        cosines, places = self._cosines(e)
        weights = cosines.clamp_min(0)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        return weights.new_zeros(len(e), self.config.experts).scatter(1, places, weights)

    @torch.no_grad()
    def _first_keys(self, e: Tensor) -> None:
        """Let the keys be instructions, each a little aside so that no two are equal."""
        keys, e = self.gate.keys, gathered(e)
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        aside = torch.randn(keys.shape, generator=generator).to(keys) * 0.1 / keys.shape[1] ** 0.5
        keys.copy_(F.normalize(e[torch.arange(len(keys)) % len(e)] + aside, dim=1))

    # ------------------------------------------------------------ training

    def peft_config(self, model: nn.Module | None = None) -> PoolLoraConfig:
        """Make the configuration of the adapter: N new increments."""
        return replace(super().peft_config(), num_new=self.config.experts)

    def bind(self, model: nn.Module) -> None:
        """Choose a model's increments, and add the alignment of the keys to its loss."""
        super().bind(model)
        self._added.watch(model)

    def _aligning(self) -> bool:
        return self._step < self._align_until

    def _misaligned(self) -> Tensor | None:
        """Return 1 - the mean cosine of the chosen keys in the pass just made, in its stage."""
        if self._queries is None or not self._aligning():
            return None
        return 1 - self._cosines(self._queries)[0].mean()

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Hold what finished tasks have picked, with `freeze_used`."""
        if not self.config.freeze_used or not len(self.gate.picked):
            return {}
        free = (~(self.gate.picked > 0).any(0)).float()[:, None, None]
        layers, name = self._layers.values(), self._adapter
        held = (factor[name] for each in layers for factor in (each.pool_lora_A, each.pool_lora_B))
        return {p: partial(torch.mul, free) for p in held if isinstance(p, Parameter)}

    # ------------------------------------------------------------ the moments of a task

    def past(self, model: nn.Module) -> int:
        """Return how many tasks the past increments are of."""
        return super().past(model) // self.config.experts

    def grow(self, model: nn.Module) -> None:
        """Keep a copy of the pool as the last task left it, and go on with the pool."""
        name = self._adapter
        grow(peft_model(model), name)
        with torch.no_grad():
            for layer in self._layers.values():
                for new, past in layer.pairs(name):
                    new.copy_(past[name][-self.config.experts :])
                layer.forget_packed()
        self.gate.grow(self.past(model))

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh pool to its size after so many tasks."""
        make_room(peft_model(model), self.config.experts * (tasks - 1), self._adapter)
        self.gate.make_room(tasks - 1)

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Work out the stages."""
        super().task_resume(model, task_index, steps_total)
        self._align_until = round(self.config.align_share * steps_total)

    def idle_parameters(self, model: nn.Module) -> int:
        """Count the increments that an instruction does not pick, and the keys."""
        N, M = self.config.experts, min(self.config.chosen, self.config.experts)
        pool = sum(each.trained_size() for each in self._layers.values())
        return pool * (N - M) // N + sum(p.numel() for p in self.gate.parameters())


# --------------------------------------------- keys, and what past tasks have picked

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

    def end_task(self) -> None:
        """Keep the task's mean shares."""
        self.mean.copy_(self.sums[:-1] / self.sums[-1].clamp_min(1))

    def context(self) -> Tensor:
        """Return what each increment of each finished task counts for, (T N,)."""
        return (self.weights[: len(self.picked), None] * self.picked).flatten()


METHOD = ContinualLlava
