"""A LoRA a task, free at first, then held orthogonal to the gradient of the old weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.step_hook import StepTransform
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared import pool
from undrift.methods.shared.adapter import peft_model
from undrift.methods.shared.frozen_gradient import add_up, watch
from undrift.tuner.distributed import processes


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`, and those of the second stage.

    Attributes:
        free: The share of a task's steps that are the first stage.
        strength: lambda_1, the weight of the orthogonality. At 1 the push has the size of the old
            weights' own gradient.
        shrink: lambda_2, the weight of the update's squared norm.
    """

    free: float = base.option(0.5, base.SHARE)
    strength: float = base.option(1.0, base.NOT_NEGATIVE)
    shrink: float = base.option(1e-3, base.NOT_NEGATIVE)


class Octopus(pool.PoolMethod[pool.Gate]):
    """A LoRA for every task, whose second stage undoes what the old weights would have learned too.

        theta_t = s B_t A_t on every linear      y = W0 x + sum_{i<=t} theta_i x
        stage 1: L = L_LM
        stage 2: L = L_LM + lambda_1 sum over linears |<G, theta_t>| + lambda_2 ||theta_t||_F^2
        G = dL_LM(W0 + sum_{i<t} theta_i) / dW on the CURRENT batch

    To first order an update leaves the old tasks alone if it is orthogonal to the gradient of the
    old weights on THEIR data; G stands for it, and needs no old data. It takes one more forward
    and backward pass of every batch in stage 2, right before its own, with the newest LoRA out. G
    itself is never formed: G A^T and B^T G are all that the penalty needs, (d_out + d_in) r numbers
    a linear. The gradients of both terms are added once per optimiser step, after clipping, and
    are not part of the reported loss. What is kept of the past is the adapter itself.

    [OURS] where the sources leave it open: the inner product is taken by its size, for as it
    stands it would be driven below zero, and linear by linear, so that two linears cannot cancel.
    The old weights are those after the last task (the paper's cheaper form; it has one with
    all earlier ones as well), and G is that of the step's own batches. Stage 1 is the first half of
    the steps, for the paper splits the data in a proportion that is not known, and the schedule of
    the rate runs through. lambda_1 and lambda_2 are not known either. The first task has nothing
    to be orthogonal to, and is learned freely throughout.
    """

    name: ClassVar[str] = "octopus"
    paper: ClassVar[str] = "Octopus, Liu et al., CVPR 2026, arXiv:2605.14938"
    parts: ClassVar[base.Parts] = "experts"
    reads_prompts: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    cut_off: ClassVar[base.CutOff] = "go on"
    why_not_sharded: ClassVar[str] = (
        "it asks the old weights in a pass inside another one, in which FSDP2 cannot gather them"
    )
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._hooks_on = ExitStack()
        self._free = 0  # steps of stage 1
        self._old: dict[str, Tensor] | None = None  # of the pass that is under way
        self._found: dict[str, Tensor] = {}  # of the last such pass
        self._sums: dict[str, Tensor] = {}  # of the step: "A" and the linear's name, and "B"

    def in_adapter(self, model: nn.Module) -> int | None:
        """Count the LoRAs: they are all that there is to know."""
        return self.past(model) + 1

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task, with a LoRA of its own."""
        super().task_start(model, task_index, steps_total)
        self._make_ready(model, steps_total)

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on in the stage that was reached."""
        super().task_resume(model, task_index, steps_total)
        self._make_ready(model, steps_total)

    def _make_ready(self, model: nn.Module, steps_total: int) -> None:
        """Ask the old weights from stage 2 on; the first task has none."""
        if getattr(self._args, "fp16", False):
            raise ConfigError(
                "octopus adds two gradients, and float16 scales one: train in bfloat16 or float32"
            )
        how = getattr(self._args, "gradient_checkpointing_kwargs", None) or {}
        if getattr(self._args, "gradient_checkpointing", False) and how.get("use_reentrant"):
            raise ConfigError(
                "octopus takes gradients that reentrant checkpointing cannot give: set "
                "use_reentrant to false in gradient_checkpointing_kwargs"
            )
        self._hooks_on.close()
        self._found, self._sums, self._old = {}, {}, None
        self._free = round(self.config.free * steps_total)
        if self.past(model) == 0 or self._free >= steps_total:
            self._free = steps_total
            return
        whole = peft_model(model).get_base_model()
        for handle in (
            whole.register_forward_pre_hook(self._ask_old, with_kwargs=True),
            whole.register_forward_hook(self._weigh_old),
            *watch(self._layers, self._see),
        ):
            self._hooks_on.callback(handle.remove)

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Add the gradients of both terms in stage 2."""
        if self._step < self._free:
            return {}
        turns: dict[Parameter, StepTransform] = {}
        for name, layer in self._layers.items():
            A, B = layer.pool_lora_A[self._adapter], layer.pool_lora_B[self._adapter]
            scale = layer.pool_lora_config[self._adapter].scale
            turns[A] = partial(self._pushed, p=A, other=B, scale=scale, key=f"A {name}")
            turns[B] = partial(self._pushed, p=B, other=A, scale=scale, key=f"B {name}")
        return turns

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Forget the old weights' gradient on the step's batches."""
        self._sums = {}

    def task_end(self, model: nn.Module) -> None:
        """Ask the old weights no more."""
        super().task_end(model)
        self._hooks_on.close()

    def _pushed(
        self, gradient: Tensor, p: Parameter, other: Parameter, scale: float, key: str
    ) -> Tensor:
        """Add what pushes theta = s B A to be orthogonal to G, and short, for A (r, d) or B^T."""
        if key not in self._sums:
            raise ConfigError(
                "octopus saw no loss of the old weights: give the model labels and take its own "
                "loss, in the model that Method.attach returned"
            )
        along = self._sums[key]  # the gradient of <G, B A>
        add_up({key: along})
        mine, its = p.detach()[0], other.detach()[0]
        sign = (along * mine).sum().sign()
        push = self.config.strength * scale / processes() * sign * along
        pull = 2 * self.config.shrink * scale**2 * (its @ its.mT) @ mine
        return gradient + (push + pull)[None].to(gradient)

    # ------------------------------------------------------------ the old weights' gradient

    def _ask_old(self, whole: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Before a pass that learns, go through the same batch without the newest LoRA."""
        learns = whole.training and torch.is_grad_enabled() and self._step >= self._free
        if self._old is not None or not learns or given.get("labels") is None:
            return
        self._old = {}
        gates = torch.ones(self._layers[next(iter(self._layers))].experts(self._adapter))
        gates[-1] = 0
        self._context.set_gates(gates)
        try:
            loss = whole(*args, **given).loss
            own = [p for p in whole.parameters() if p.requires_grad]
            torch.autograd.grad(loss, own, allow_unused=True)
        finally:
            self._context.set_gates({})
            found, self._old = self._old, None
        self._found = found

    def _see(self, name: str, x: Tensor, dy: Tensor) -> None:
        """Keep A G^T (r, d_out) and B^T G (r, d_in) of a linear, in the pass of the old weights."""
        if self._old is None:
            return
        layer, x, dy = self._layers[name], x.float(), dy.float()
        A, B = (p[self._adapter].detach()[0] for p in (layer.pool_lora_A, layer.pool_lora_B))
        self._old[f"B {name}"] = (x @ A.mT).mT @ dy
        self._old[f"A {name}"] = (dy @ B.mT).mT @ x

    def _weigh_old(self, whole: nn.Module, args: Any, output: Any) -> None:
        """Weigh the old weights' gradient as the trainer weighs the loss of the same batch."""
        if self._old is not None or not self._found:
            return
        found, self._found = self._found, {}

        def add(weight: Tensor) -> None:
            for key, each in found.items():
                self._sums[key] = self._sums.get(key, 0) + weight * each

        output.loss.register_hook(add)


METHOD = Octopus
