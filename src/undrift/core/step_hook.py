"""A function applied to the optimiser's real STEP, after Adam and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    so the step itself is turned. Works with gradient accumulation, mixed precision, DDP and FSDP2
    (the whole step is gathered, turned and sharded again). A step that float16's scaler skips fires
    nothing; under a fused optimiser hooks run then too, and no parameter moves: its gradients still
    carry the loss's scale here where the trainer does not clip.

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
        self._left: dict[Parameter, tuple[int, Tensor | None]] = {}  # by the last step
        self._found: dict[Parameter, int] = {}  # the versions before the first one

    def attach(self) -> StepHook:
        """Start; attaching twice is attaching once."""
        if not self._handles:
            pre = self._snapshot if self.space == "step" else self._turn_gradients
            own = (p for group in self.optimizer.param_groups for p in group["params"])
            self._found = {p: p._version for p in own}
            self._handles.append(self.optimizer.register_step_pre_hook(pre))
            if self.space == "step":
                self._handles.append(self.optimizer.register_step_post_hook(self._turn_steps))
        return self

    def detach(self) -> None:
        """Stop; the optimiser is as it was."""
        while self._handles:
            self._handles.pop().remove()
        self._before.clear()
        self._found.clear()

    def check_seen(self) -> None:
        """Make sure, after the first step, that it came by; one that the scaler skips need not.

        Raises:
            ConfigError: If a parameter to be held was moved, and no hook ran.
        """
        if self._found and any(
            p._version != self._found.get(p, p._version) for p in self.transforms()
        ):
            raise ConfigError(_UNSEEN.format(self.optimizer.__class__.__name__))

    @torch.no_grad()
    def _turn_gradients(self, *_: object) -> None:
        self._found.clear()
        transforms = self.transforms()
        self._check_unmoved(transforms)
        for p, turn in transforms.items():
            if p.grad is not None:
                p.grad.copy_(_turned(turn, p.grad))

    @torch.no_grad()
    def _snapshot(self, *_: object) -> None:
        self._found.clear()
        transforms = self.transforms()
        self._check_unmoved(transforms)
        self._before = [(p, turn, p.detach().clone()) for p, turn in transforms.items()]

    @torch.no_grad()
    def _turn_steps(self, *_: object) -> None:
        for p, turn, p_0 in self._before:
            torch.add(p_0, _turned(turn, p - p_0), out=p)
            unseen = p.grad is None and not isinstance(p, DTensor)  # p.data goes past versions
            self._left[p] = p._version, p.detach().clone() if unseen else None
        self._before.clear()

    def _check_unmoved(self, transforms: Mapping[Parameter, StepTransform]) -> None:
        """Refuse a step that was done before this one, and left no gradient to do it with."""
        for p in transforms:
            if p.grad is not None or p not in self._left:
                continue
            version, value = self._left[p]
            if p._version != version or not (value is None or torch.equal(p, value)):
                raise ConfigError(_INSIDE.format(self.optimizer.__class__.__name__))


_INSIDE = (
    "{} moves parameters inside the backward pass, where steps cannot be transformed and the past "
    "is not protected; train with an optimiser that steps after it, such as adamw_torch"
)

_UNSEEN = (
    "{} moves parameters past the step hooks of torch.optim.Optimizer, where steps cannot be "
    "transformed and the past is not protected; train with an optimiser whose class defines step, "
    "such as adamw_torch"
)


def check_steps_outside(optimizer: Any, held: Iterable[Parameter]) -> None:
    """Refuse an optimiser that steps inside the backward pass, before training begins.

    Args:
        optimizer: The optimiser, wrapped any number of times in `.optimizer`.
        held: The parameters whose steps are to be transformed.

    Raises:
        ConfigError: If it does: layerwise optimisers hang on their parameters, LOMO and AdaLomo
            take the loss itself.
    """
    inner = innermost(optimizer)
    kind = type(inner).__name__
    takes_loss = any(hasattr(inner, name) for name in ("fused_backward", "optimizer_dict"))
    hooked = (
        getattr(p, "_post_accumulate_grad_hooks", None) or hasattr(p, "_in_backward_optimizers")
        for p in held
    )
    if takes_loss or any(hooked):
        raise ConfigError(_INSIDE.format(kind))


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
