"""A LoRA a task with equal singular values, in directions that past tasks' gradients leave free."""

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
from undrift.methods.ewc import asked, log_likelihood
from undrift.methods.shared import pool
from undrift.methods.shared.frozen_gradient import GradientPool, Gradients
from undrift.methods.shared.subspace import DUST, leading, outside
from undrift.tuner.pool_lora import PoolLoraLayer

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`, and those of the subspace and of the scale.

    Attributes:
        share: The share of the energy of a task's gradient that is protected when it has ended.
        most: The most directions that a task adds to what is protected of a linear's inputs, so
            that a size can be told beforehand.
        samples: Of how many of the task's examples the gradient is taken.
        begin: c, what every singular value of B begins with.
    """

    share: float = base.option(0.99, base.SHARE)
    most: int = base.option(32, base.POSITIVE)
    samples: int = base.option(200, base.POSITIVE)
    begin: float = base.option(0.005, base.POSITIVE)


class EbLora(GradientPool):
    """A LoRA for every task whose directions all weigh the same, orthogonal to past gradients.

        y = W0 x + s sum_{i<t} B_i A_i x + s B_t A_t x                    in training and at test
        A_t = U^T, U^T U = I, F^T U = 0          B_t = c V, V^T V = I     s B_t A_t = s c V U^T
        F_t = [F_{t-1}, U_m]: the leading right singular vectors of task t's gradient outside
            F_{t-1}, as many as it takes for F_t to hold `share` of its energy; kept as `protected`

    Gradients of A and B are projected to the tangent spaces before Adam sees them, and so is
    Adam's step of A, off F; then A is put back by its polar factor, B by its polar factor times
    the mean of its singular values, which is the nearest matrix with equal ones. (The paper writes
    weights as (d_in, d_out), so that its U is on the side of the input, as A here.)

    [OURS] where the sources leave it open or the harness asks for it: c lies in B, so that the
    adapter is a plain LoRA at any moment; the paper trains it beside U and V. The projections are
    those of the Euclidean metric (public code: the canonical one), and no step is scaled by the
    size of its linear. U and V begin with the leading singular vectors of the first step's
    gradient outside F, against its sign, and that step moves the LoRA no further (public code takes
    them from a pass before the task); c begins with 0.005, where public code has the layer's c from
    a function that is switched off. Past LoRAs are not merged but kept as frozen factors (export
    merges them). A task adds `most` directions at most, and r of every input stay free. A gradient
    with fewer than r directions outside F begins fewer, and the rows of A that are missing stay 0.
    The gradient for F is the sum over all labelled tokens of `samples` examples (public code: the
    mean over batches of their means, over a fifth of the data).
    """

    name: ClassVar[str] = "eblora"
    paper: ClassVar[str] = "EBLoRA, Gu et al., ICML 2026, arXiv:2602.00722"
    parts: ClassVar[base.Parts] = "experts"
    state_name: ClassVar[str] = "eblora_state"
    Config: ClassVar[type[base.Config]] = Config
    config: Config

    # ------------------------------------------------------------ the moments of a task

    def begin_expert(self, name: str, layer: PoolLoraLayer, G: Tensor) -> None:
        """Begin with a small step of steepest descent, as far in every direction."""
        A, B = layer.pool_lora_A[self._adapter], layer.pool_lora_B[self._adapter]
        right, left, _ = leading(self.protected[name], G, A.shape[1])
        A[0].copy_(right)
        B[0].copy_(-self.config.begin * left)

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Project gradients to the tangent spaces, and let the first step move nothing."""
        first, turns = super().gradient_transforms(model), dict[Parameter, StepTransform]()
        for name, layer in self._layers.items() if not first else ():
            A, B = layer.pool_lora_A[self._adapter], layer.pool_lora_B[self._adapter]
            turns[A] = partial(_tangent_a, p=A, F=self.protected[name])
            turns[B] = partial(_tangent_b, p=B)
        return first or turns

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Project the step of A, and put A and B back to where their singular values are equal."""
        turns: dict[Parameter, StepTransform] = {}
        for name, layer in self._layers.items() if self._first is None else ():
            A, B = layer.pool_lora_A[self._adapter], layer.pool_lora_B[self._adapter]
            turns[A] = partial(_step_a, p=A, F=self.protected[name])
            turns[B] = partial(_step_b, p=B)
        return turns

    def task_end(self, model: nn.Module) -> None:
        """Protect the directions of the task's gradient, at the weights that it has left."""
        gradients = Gradients(self._layers)
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            with asked(model):
                for inputs in self.last_batches():
                    torch.autograd.grad(log_likelihood(model, inputs), trained, allow_unused=True)
        finally:
            gradients.stop()
        for name, G in gradients.close().items():
            self.protect(name, self.protected[name], G.mT, self.config.share)
        super().task_end(model)


# --------------------------------------------- rows that are orthonormal, or all of one length


def polar(M: Tensor) -> tuple[Tensor, Tensor]:
    """The polar factor (M M^T)^(-1/2) M, the nearest matrix with orthonormal rows.

    Args:
        M: (r, d), r <= d. What is rounding among its directions is left out.

    Returns:
        It, (r, d) float64, and the mean of the singular values that are more than rounding, ().
    """
    M = M.double()
    squares, Q = torch.linalg.eigh(M @ M.mT)
    there = squares > DUST**2 * squares[-1]
    inverse = torch.where(there, squares, torch.inf).rsqrt()
    values = squares.clamp_min(0).sqrt() * there
    return (Q * inverse) @ Q.mT @ M, values.sum() / there.sum().clamp_min(1)


def tangent(M: Tensor, V: Tensor, *, scaled: bool = False) -> Tensor:
    """Project to the directions in which rows stay orthonormal: M - sym(M V^T) V.

    Args:
        M: (r, d).
        V: Where, orthonormal rows or zero ones, (r, d).
        scaled: Let all singular values change alike as well.

    Returns:
        (r, d) float64.
    """
    M, V = M.double(), V.double()
    S = M @ V.mT
    S = (S + S.mT) / 2
    if scaled:
        S = S - torch.eye(len(S)).to(S) * (S.trace() / V.square().sum().clamp_min(1))
    return M - S @ V


def _free(M: Tensor, F: Tensor) -> Tensor:
    """Take out of rows what lies in F."""
    return outside(F, M.mT).mT


def _tangent_a(gradient: Tensor, p: Parameter, F: Tensor) -> Tensor:
    return tangent(_free(gradient[0], F), p.detach()[0])[None].to(gradient)


def _tangent_b(gradient: Tensor, p: Parameter) -> Tensor:
    return tangent(gradient[0], polar(p.detach()[0])[0], scaled=True)[None].to(gradient)


def _step_a(step: Tensor, p: Parameter, F: Tensor) -> Tensor:
    """The step to where A is put; p has taken the raw one already."""
    before = p.detach()[0].double() - step[0].double()
    moved = before + tangent(_free(step[0], F), before)
    return (polar(_free(moved, F))[0] - before)[None].to(step)


def _step_b(step: Tensor, p: Parameter) -> Tensor:
    """The step to where B is put; p has taken the raw one already."""
    moved = p.detach()[0].double()
    V, c = polar(moved)
    return (c * V - moved + step[0])[None].to(step)


METHOD = EbLora
