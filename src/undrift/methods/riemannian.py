"""The LoRA of `finetune`, its gradients preconditioned by its own factors: geometry, no history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.step_hook import StepTransform
from undrift.methods import base
from undrift.methods.finetune import Finetune, factors, lora_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.tuner.distributed import full_tensor


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and one more.

    Attributes:
        damping: delta, added to the diagonals of B^T B and A A^T; PEFT's own default.
    """

    damping: float = base.option(1e-2, base.POSITIVE)


class Riemannian(Finetune):
    """One LoRA whose two gradients are each preconditioned by the other factor, task after task.

        grad A <- (B^T B + delta I)^-1 grad A        grad B <- grad B (A A^T + delta I)^-1

    This is the geometry of `steadylora`'s metrics with the adapter's own factors in the place of
    what past tasks have seen, so it says what geometry is worth without a history. It remembers
    nothing. The arithmetic is that of PEFT's `create_riemannian_optimizer`, against which it is
    tested; that one is an optimiser of its own around fixed parameter objects, and a method leaves
    the optimiser to the trainer, whichever it is, and takes parameters that FSDP2 has replaced. The
    gradients are turned after clipping and before the optimiser sees them, as PEFT does.
    """

    name: ClassVar[str] = "riemannian"
    paper: ClassVar[str] = (
        "Riemannian Preconditioned LoRA, Zhang and Pilanci, ICML 2024, arXiv:2402.02347"
    )
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    @property
    def remembers(self) -> bool:
        """False: its gradients are turned, but with no regard to earlier tasks."""
        return False

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Precondition A by B, and B by A, as they are before the step."""
        wrapped = peft_model(model)
        adapter = active_adapter(wrapped)
        turns: dict[Parameter, StepTransform] = {}
        for layer in lora_layers(wrapped, adapter).values():
            A, B = factors(layer, adapter)
            turns[A] = partial(a_gradient, B=B, damping=self.config.damping)
            turns[B] = partial(b_gradient, A=A, damping=self.config.damping)
        return turns


def a_gradient(gradient: Tensor, B: Tensor, damping: float) -> Tensor:
    """Precondition the gradient of A (r, d_in) by B (d_out, r), in float32 at least."""
    wide = _wide(B)
    return (_inverse(wide.mT @ wide, damping) @ gradient.to(wide.dtype)).to(gradient.dtype)


def b_gradient(gradient: Tensor, A: Tensor, damping: float) -> Tensor:
    """Precondition the gradient of B (d_out, r) by A (r, d_in), in float32 at least."""
    wide = _wide(A)
    return (gradient.to(wide.dtype) @ _inverse(wide @ wide.mT, damping)).to(gradient.dtype)


def _wide(p: Tensor) -> Tensor:
    whole = full_tensor(p.detach())
    return whole.to(torch.promote_types(whole.dtype, torch.float32))


def _inverse(gram: Tensor, damping: float) -> Tensor:
    """(G + delta I)^-1, (r, r); the pseudoinverse, should a tiny delta be lost in rounding."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.pinv(gram + damping * eye)


METHOD = Riemannian
