"""A LoRA for every task from zero, merged when it ends with all before, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.moment import History
from undrift.core.step_hook import StepTransform
from undrift.methods import base
from undrift.methods.finetune import factors
from undrift.methods.shared.state import State
from undrift.methods.steadylora import SteadyLora
from undrift.tuner.distributed import full_tensor, sharded_like
from undrift.tuner.pool_lora import generator_of

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and those of the merge.

    Attributes:
        ridge: lambda, in units of the mean eigenvalue of the inputs' second moment.
        task_weights: What a task counts for: its number of "tokens", or all tasks "equal".
        delta: The share of the energy that the kept eigenpairs hold; with 1 all there is room for.
        max_components: The most eigenpairs of the sum of second moments kept between tasks.
        columns: l, the columns of a task's sketch; at least 2 `max_components` is advised. A
            linear of no more inputs than either is merged exactly.
        token_fraction: The share of tokens the moments are taken over; where None, an eighth, or
            all in a short task, see `core.settings.Metrics`.
        rebase_share: Re-base the sketch once, after this share of a task's steps; 0 never does.
        seed: What the sketches are drawn from and the tokens are chosen by.
    """

    ridge: float = base.option(1e-3, base.POSITIVE)
    task_weights: Literal["tokens", "equal"] = "tokens"
    delta: float = base.option(1.0, ("one above 0 up to 1", lambda v: 0 < v <= 1))
    max_components: int = base.option(64, base.POSITIVE)
    columns: int = base.option(128, base.POSITIVE)
    token_fraction: float | None = base.option(
        None, ("None, or one above 0 up to 1", lambda v: v is None or 0 < v <= 1)
    )
    rebase_share: float = base.option(0.02, base.SHARE)
    seed: int = 0


class Many(SteadyLora):
    """A LoRA a task, trained from zero, and merged into one by recursive least squares at its end.

        W* = argmin_W sum_t tr((W - W_t) C_t (W - W_t)^T) + lambda |W|^2
           = (sum_t W_t C_t) (sum_t C_t + lambda I)^-1,          W_t = B_t A_t, C_t = sum_x x x^T

    Only W* and S = sum_t C_t are kept, for sum_t W_t C_t = W* (S + lambda I). In a task the LoRA
    is the task's alone, as if there had been none before, and W* lies beside it; when it ends the
    LoRA becomes the merge, which answers from then on and is a plain LoRA. Of the paper's two
    halves this is LPM; CPM merges projectors, which are frozen here. [OURS], for the full text was
    not at hand:

    - the products B A are merged, not the factors each for itself, which would have cross terms;
    - S is kept as its leading eigenpairs, C_t as a sketch (`core.moment`), both with the exact
      trace: what they do not show is taken as equal in all other directions;
    - W* has rank t R after t tasks; it is cut to R = `experts * rank`, that of the LoRA, by the
      R directions of the output that hold most of it over the inputs of all tasks (least squares
      again, in the norm of the merge);
    - lambda is relative to the mean eigenvalue, so that one value serves all linears.

    A base that is remembered (`--remember`) is a task zero whose W_0 is 0.

    A task that is cut off and begun anew, without a checkpoint, counts for nothing (the first goes
    on with its own LoRA); one that was saved inside counts for what it had seen.
    """

    name: ClassVar[str] = "many"
    paper: ClassVar[str] = "MAny, Gao et al., 2026, arXiv:2604.14016"
    Config: ClassVar[type[base.Config]] = Config
    state_name: ClassVar[str] = "many_state"
    watches_b: ClassVar[bool] = False
    config: Any

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._past: dict[str, Tensor] = {}  # A and B of W* by linear, inside a task

    @property
    def transforms_steps(self) -> bool:
        """False: the LoRA of a task is trained freely."""
        return False

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Leave all steps as they are."""
        return {}

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Leave all gradients as they are."""
        return {}

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Put the merge aside and begin from zero, or go on with what a checkpoint brought."""
        self.bind(model)
        self._restore_float32()
        self.begin(steps_total, resumed=self._step > 0)
        if not self._step:
            self._begin_anew()

    @torch.no_grad()
    def _begin_anew(self) -> None:
        """Draw A and make B zero where something was learned; the first task finds them so."""
        known = dict(self._past)
        for name, layer in self._layers.items():
            tasks = int(self.statistics[name].tasks)
            if not tasks:
                continue
            A, B = factors(layer, self._adapter)
            for key, p in (("A", A), ("B", B)):
                whole = full_tensor(p.detach()).clone()
                self._past[f"{name}.past_{key}"] = known.get(f"{name}.past_{key}", whole)
            drawn = torch.empty(A.shape, device="cpu")
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator_of(name, tasks))
            A.copy_(sharded_like(A, drawn.to(A)))
            B.zero_()

    @torch.no_grad()
    def before_merge(self) -> None:
        """Let the LoRA become the merge."""
        for name, layer in self._layers.items():
            each, trained = self.statistics[name], factors(layer, self._adapter)
            A, B = (full_tensor(p.detach()) for p in trained)
            parts = [Part(A, B, each.history_of_task())]
            if each.history.tokens > 0:  # of earlier tasks; or of the base, which adds nothing
                A_past = self._past.get(f"{name}.past_A", torch.zeros_like(A))
                B_past = self._past.get(f"{name}.past_B", torch.zeros_like(B))
                parts.append(Part(A_past, B_past, each.history, merged=True))
            for p, whole in zip(trained, merge(parts, self.config.ridge, len(A)), strict=True):
                p.copy_(sharded_like(p, whole.to(p.dtype)))
        self._past = {}

    # ------------------------------------------------------------ state

    def bind(self, model: nn.Module) -> None:
        """Watch the inputs of a model's LoRA; the merge of another one is forgotten."""
        before = self._watched
        super().bind(model)
        if self._watched is not before:
            self._past = {}
        places = {name: each.cz.device for name, each in self.statistics.items()}
        self._past = {key: p.to(places[key.rpartition(".")[0]]) for key, p in self._past.items()}

    def state(self, model: nn.Module) -> State:
        """Name the moments, and inside a task the merge of those before."""
        found = super().state(model)
        return replace(found, tensors={**(found.tensors or {}), **self._past})

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the moments, and the merge where the task was saved inside."""
        tensors, past = dict(saved.tensors or {}), dict[str, Tensor]()
        for name, layer in self._layers.items():
            for key, p in zip("AB", factors(layer, self._adapter), strict=True):
                found = tensors.pop(f"{name}.past_{key}", None)
                if found is not None and found.shape != p.shape:
                    raise saved.mismatch(f"{name}.past_{key} is {tuple(found.shape)}")
                past |= {} if found is None else {f"{name}.past_{key}": found.to(p.device)}
        if len(past) not in (0, 2 * len(self._layers)):
            raise saved.mismatch("it lacks a part of the merge")
        super().restore(model, replace(saved, tensors=tensors))
        self._past = past


# --------------------------------------------- the merge of one linear


@dataclass(frozen=True)
class Part:
    """A product with the inputs that it is to be right on.

    Attributes:
        A: (R, d).
        B: (d_out, R).
        moment: Of the inputs.
        merged: Whether B A is a merge already, W* and not some W_t.
    """

    A: Tensor
    B: Tensor
    moment: History
    merged: bool = False


def merge(parts: Sequence[Part], ridge: float, rank: int) -> tuple[Tensor, Tensor]:
    """Merge products by least squares over their inputs.

    Args:
        parts: The products.
        ridge: lambda, relative.
        rank: R, how many directions are kept.

    Returns:
        A (R, d) and B (d_out, R), whose columns are orthonormal, or zero where there are no more.
    """
    tokens = sum(p.moment.tokens for p in parts)
    if not tokens:
        return parts[0].A, parts[0].B
    rows, roots, level = [], [], torch.zeros_like(parts[0].moment.trace)
    for p in parts:
        share = p.moment.tokens / tokens
        V, w, rest = _spread(p.moment)
        shift = ridge * p.moment.trace / len(V)
        held = rest + shift if p.merged else rest
        A = p.A.double()
        rows.append(share * ((A @ V * w) @ V.mT + held * A))  # of W_t C_t, or W* (S + lambda I)
        roots.append(V * (share * w).sqrt())
        level = level + share * (rest + shift)
    B, AC, G = torch.cat([p.B.double() for p in parts], 1), torch.cat(rows), torch.cat(roots, 1)
    core = level * torch.eye(G.shape[1], dtype=G.dtype, device=G.device) + G.mT @ G
    A = (AC - torch.linalg.solve(core, G.mT @ AC.mT).mT @ G.mT) / level  # AC (level I + G G^T)^-1
    Q, R = torch.linalg.qr(B)
    _, U = torch.linalg.eigh(R @ (AC @ A.mT) @ R.mT)  # of W* (S + lambda I) W*^T, in the basis Q
    U = U[:, -rank:]
    empty = rank - U.shape[1]
    return (
        nn.functional.pad(U.mT @ R @ A, (0, 0, 0, empty)),
        nn.functional.pad(Q @ U, (0, empty)),
    )


def _spread(moment: History) -> tuple[Tensor, Tensor, Tensor]:
    """V (d, k), w (k,) and rest, () with C = V diag(w) V^T + rest I, and the trace of C exact."""
    k = int(moment.k)
    V, s = moment.V[:, :k].double(), moment.s[:k]
    rest = (moment.trace - s.sum()).clamp_min(0) / max(1, len(V) - k)
    return V, (s - rest).clamp_min(0), rest


METHOD = Many
