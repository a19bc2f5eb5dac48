"""SEFE: answers asked for in many styles, and new updates kept off where past ones were largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.stepping import StepTransform
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.parts.adapter import active_adapter, peft_model
from undrift.methods.parts.asd import diversified
from undrift.methods.parts.key_elements import (
    drawn,
    key_count,
    key_elements,
    penalty_gradient,
)
from undrift.methods.parts.pool import PoolMethod
from undrift.methods.parts.state_file import load_tensors, save_tensors
from undrift.tuner.pool import PoolLoraConfig, pool_layers

STATE_FILE = "sefe_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and those of SEFE's two parts.

    Attributes:
        asd: Rewrite a share of every task's training examples into other answer styles, see
            `parts.asd`; without it this is RegLoRA alone.
        asd_share: X, the share that is rewritten.
        strength: lambda of RegLoRA's penalty.
        key_share: M, the share of each linear's entries that a task counts as key elements.
        union: Count an entry that is key to several tasks once; the public code counts it as often
            as there are tasks.
        sampled: On how many key elements a linear the penalty is computed in a step, drawn anew
            each time; on all if there are no more.
        seed: What the rewritten examples and the sampled elements are drawn from.
    """

    asd: bool = True
    asd_share: float = 0.2
    strength: float = 2500.0
    key_share: float = 0.02
    union: bool = False
    sampled: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("asd_share", "key_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected one in (0, 1]")
        for name in ("strength", "sampled"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number")


class Sefe(PoolMethod):
    """Answer-style diversification and RegLoRA.

    Every task begins with a fresh LoRA of rank `experts * rank` on the weights that the tasks
    before have left, and the mean of |B A| over the key elements of past tasks, averaged over the
    linears, is kept small: lambda times its gradient is added to the loss's once per optimiser
    step, after clipping; it is not part of the reported loss. At first B is zero and so is the
    gradient of |0|: the penalty acts from the second step on.

    The paper merges each LoRA into the weight. Here the past ones stay beside it as frozen
    factors, summed in one product: the same function, with the base as it is (quantised or
    shared), at a cost that grows by one rank a task. Of |B A| the scale alpha / r is left out.
    Key elements are 32-bit positions: 4 bytes for `key_share` of the adapted weights a task.

    Answers in other styles are written by rules, see `parts.asd`, where the paper asked a large
    model. In a trainer of your own, give it `method.examples(train, task_index)` as its dataset.
    """

    name: ClassVar[str] = "sefe"
    paper: ClassVar[str] = "SEFE, Chen et al., ICML 2025, arXiv:2505.02486"
    parts: ClassVar[base.Parts] = "experts"
    reads_prompts: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = (STATE_FILE,)
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.keys: dict[str, Tensor] = {}  # by linear, (K,) int32
        self._step = 0

    def peft_config(self, model: nn.Module | None = None) -> PoolLoraConfig:
        """Make the configuration of the adapter: for each task a LoRA as large as `finetune`'s."""
        rank = self.config.experts * self.config.rank
        return replace(super().peft_config(), r=rank, lora_alpha=self.config.alpha_over_rank * rank)

    def examples(self, train: Sequence[Example], index: int) -> Sequence[Example]:
        """Rewrite some of the task's own examples into other answer styles.

        Args:
            train: The task's own training examples.
            index: The number of the task, from 1.

        Returns:
            As many examples.
        """
        if not self.config.asd:
            return train
        random = Random(f"{self.config.seed} styles {index}")
        return diversified(train, self.config.asd_share, random)

    # ------------------------------------------------------------ the moments of a task

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Take note of the step, by which elements are drawn.

        Args:
            model: What `attach` returned.
            step: How many steps of the task are done, from 1.
            steps_total: How many it will be.
        """
        self._step = step

    @torch.no_grad()
    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Add the gradient of the penalty on past key elements.

        Args:
            model: What `attach` returned.

        Returns:
            The transforms of the newest A and B, from the second task on.
        """
        if not self.keys:
            return {}
        adapter, found = self._adapter(model), pool_layers(model)
        size = self.config.sampled
        seed = (self.config.seed * 1000 + self.task_index) * 1_000_000 + self._step
        u = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight = self.config.strength / len(found)
        turns: dict[Parameter, StepTransform] = {}
        for name, layer in found.items():
            A, B = layer.pool_lora_A[adapter], layer.pool_lora_B[adapter]
            keys = drawn(self.keys[name].to(A.device), size, u)
            for p, gradient in zip((A, B), penalty_gradient(A[0], B[0], keys), strict=True):
                turns[p] = partial(torch.add, gradient[None] * weight)
        return turns

    @torch.no_grad()
    def task_end(self, model: nn.Module) -> None:
        """Find where the task's own update was largest.

        Args:
            model: What `attach` returned.
        """
        adapter, past = self._adapter(model), self.keys
        self.keys = {}
        for name, layer in pool_layers(model).items():
            A, B = layer.pool_lora_A[adapter][0], layer.pool_lora_B[adapter][0]
            found = key_elements(A, B, self.config.key_share)
            keys = torch.cat([past[name].to(found.device), found]) if past else found
            self.keys[name] = keys.unique() if self.config.union else keys
        super().task_end(model)

    # ------------------------------------------------------------ state

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write the key elements.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        super().save_beside(model, directory)
        save_tensors(self.keys, directory / STATE_FILE, whole=True)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read the key elements.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        super().load_beside(model, directory)
        self.keys = load_tensors(directory / STATE_FILE, whole=True)

    def forget(self, model: nn.Module) -> None:
        """Begin without key elements.

        Args:
            model: What `attach` returned.
        """
        super().forget(model)
        self.keys = {}

    def finish(self, model: nn.Module, steps_total: int) -> None:
        """Find the key elements of a task that was cut off.

        Args:
            model: What `attach` returned.
            steps_total: Not used.
        """
        self.task_end(model)

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count the file of the key elements.

        Args:
            model: What `attach` returned.
            tasks: How many tasks; with `union` it is at most this many times one task's.

        Returns:
            Bytes of tensors.
        """
        sizes = (each.in_features * each.out_features for each in pool_layers(model).values())
        kept = sum(key_count(size, self.config.key_share) for size in sizes)
        return kept * tasks * torch.int32.itemsize

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Begin the task at the step it has come to."""
        self._step = state.global_step
        super().on_train_begin(args, state, control, model, optimizer)

    def _adapter(self, model: nn.Module) -> str:
        return active_adapter(peft_model(model))


METHOD = Sefe
