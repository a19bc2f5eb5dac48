"""A function applied to the optimiser's real STEP, after Adam and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from undrift.errors import ConfigError

StepTransform = Callable[[Tensor], Tensor]
"""The optimiser's change of a parameter in, the change that is made instead out."""


class StepHook:
    """Attach transforms to an optimiser: p <- p_0 + T(p - p_0), once per real step.

    Adam rescales every coordinate after the gradient, which undoes a projection made before it;
    so the step itself is turned. Works with gradient accumulation, mixed precision (a step that
    the scaler skips fires nothing), DDP and FSDP2 (the whole step is gathered, turned and cut
    again).

    Args:
        optimizer: A torch optimiser, or one that wraps it in `.optimizer`, as accelerate does.
        transforms: Called anew at every step, for libraries replace parameter objects. Parameters
            that it does not name are left alone.
        space: "step", or "gradient" to turn the gradient before the optimiser sees it.

    Raises:
        ConfigError: If the optimiser holds its parameters in flat shards (DeepSpeed, FSDP1).
    """

    def __init__(
        self,
        optimizer: Any,
        transforms: Callable[[], Mapping[Parameter, StepTransform]],
        space: Literal["step", "gradient"] = "step",
    ) -> None:
        self.optimizer = innermost(optimizer)
        self.transforms = transforms
        self.space = space
        self._handles: list[RemovableHandle] = []
        self._before: list[tuple[Parameter, StepTransform, Tensor]] = []

    def attach(self) -> StepHook:
        """Start; attaching twice is attaching once."""
        if not self._handles:
            pre = self._snapshot if self.space == "step" else self._turn_gradients
            self._handles.append(self.optimizer.register_step_pre_hook(pre))
            if self.space == "step":
                self._handles.append(self.optimizer.register_step_post_hook(self._turn_steps))
        return self

    def detach(self) -> None:
        """Stop; the optimiser is as it was."""
        while self._handles:
            self._handles.pop().remove()
        self._before.clear()

    @torch.no_grad()
    def _turn_gradients(self, *_: object) -> None:
        for p, turn in self.transforms().items():
            if p.grad is not None:
                p.grad.copy_(_turned(turn, p.grad))

    @torch.no_grad()
    def _snapshot(self, *_: object) -> None:
        transforms = self.transforms()
        self._before = [(p, turn, p.detach().clone()) for p, turn in transforms.items()]

    @torch.no_grad()
    def _turn_steps(self, *_: object) -> None:
        for p, turn, p_0 in self._before:
            torch.add(p_0, _turned(turn, p - p_0), out=p)
        self._before.clear()


def innermost(optimizer: Any) -> Optimizer:
    """Unwrap an optimiser down to the torch one that does the step.

    Args:
        optimizer: The optimiser, wrapped any number of times in `.optimizer`.

    Returns:
        The torch optimiser, whose step hooks work.

    Raises:
        ConfigError: If its parameters are flat shards, whose rows and columns cannot be told apart.
    """
    while True:
        _refuse_flat_shards(optimizer)
        if not hasattr(optimizer, "optimizer"):
            break
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"cannot transform the steps of a {type(optimizer).__name__}: "
            "expected a torch.optim.Optimizer or something that wraps one in .optimizer"
        )
    return optimizer


def _refuse_flat_shards(optimizer: Any) -> None:
    name = f"{optimizer.__class__.__module__}.{optimizer.__class__.__name__}"
    if "deepspeed" in name.lower():
        engine = "DeepSpeed"
    elif any(
        getattr(p, "_is_flat_param", False)
        for group in getattr(optimizer, "param_groups", ())
        for p in group["params"]
    ):
        engine = "FSDP1"
    else:
        return
    raise ConfigError(
        f"the optimiser is run by {engine}, which hands it flat pieces of parameters, so that "
        "steps cannot be transformed; train with one process, DDP or FSDP2"
    )


def _turned(turn: StepTransform, step: Tensor) -> Tensor:
    """T(step); a sharded step is gathered first, for B's metric joins rows of different shards."""
    if not isinstance(step, DTensor):
        return turn(step)
    mesh = step.device_mesh
    whole = DTensor.from_local(turn(step.full_tensor()), mesh, [Replicate()] * mesh.ndim)
    return whole.redistribute(placements=step.placements)
