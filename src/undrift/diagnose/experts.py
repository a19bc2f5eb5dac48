"""Expert drift: how far what an expert answers to a task's inputs has moved since it was learned.

For each expert W = B A, `tr(dW C dW^T)` relative to `tr(W C W^T)`: SAME's degradation [Eq. 12],
with C the second moment of what the task's test inputs give the linear in its snapshot. No
matrix of the size of dW or C is made: with z = A x, and z' = A' x of the later snapshot,

    dW x = B' z' - B z,   tr(dW C dW^T) = <S'', B'^T B'> - 2 <S', B'^T B> + <S, B^T B>

where S'', S' and S are the means over tokens of z' z'^T, z' z^T and z z^T, r x r each.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from undrift.diagnose.adapter_series import WEIGHTS, AdapterSeries, Scope, does_not_apply
from undrift.diagnose.routes import ENTANGLED, PREFIX
from undrift.rundir import damaged
from undrift.tuner.route_recorder import inputs_seen, routed_layers

HELD = "what a task has taught stays bit for bit in this method: no expert can drift"
NO_FACTORS = "this method moves the weights themselves, without experts of low rank"


class Factors(NamedTuple):
    """The experts of one linear, float64: A (N, r, d_in) and B transposed (N, r, d_out)."""

    A: Tensor
    Bt: Tensor


def latent(experts: Factors, x: Tensor) -> Tensor:
    """Compute z = A x of each expert, (N, T, r), of x (T, d_in) in float64."""
    N, r, d = experts.A.shape
    return (x @ experts.A.reshape(N * r, d).mT).view(-1, N, r).transpose(0, 1)


class Moved:
    """The movement of one linear's experts, summed over tokens.

    Args:
        old: The experts when the task was just learned.
        new: The same experts in a later snapshot; their rank may have grown.
    """

    def __init__(self, old: Factors, new: Factors) -> None:
        self.old, self.new = old, new
        self._sums = [torch.zeros(()).double()] * 3

    def see(self, x: Tensor, z: Tensor) -> None:
        """Count tokens; x is what the linear reads, (T, d_in), and z what `old` makes of it."""
        later = latent(self.new, x)
        seen = (later.mT @ later, later.mT @ z, z.mT @ z)
        self._sums = [total + each for total, each in zip(self._sums, seen, strict=True)]

    def change(self) -> Tensor:
        """Return T tr(dW C dW^T) of each expert, (N,)."""
        (_, new), (_, old) = self.new, self.old
        grams = (new @ new.mT, new @ old.mT, old @ old.mT)
        parts = [(s * g).sum((1, 2)) for s, g in zip(self._sums, grams, strict=True)]
        return (parts[0] - 2 * parts[1] + parts[2]).clamp_min(0)

    def size(self) -> Tensor:
        """Return T tr(W C W^T) of each expert, (N,)."""
        return (self._sums[2] * (self.old.Bt @ self.old.Bt.mT)).sum((1, 2))


def expert_drift(series: AdapterSeries, scope: Scope, count: int) -> dict[str, Any]:
    """Measure how far the experts have moved, on the inputs of every task.

    Args:
        series: The run's adapters.
        scope: What to compare.
        count: How many prompts of each task at most.

    Returns:
        What experts.json holds: a cell a task and snapshot with `moved`, the mean over linears;
        `per_linear`; and `per_expert`, relative to the mean expert of its linear.
    """
    parts = series.method.parts
    names = list(_linears(series.model))
    why = {"router": HELD, "entangled": ENTANGLED}.get(parts, "" if names else NO_FACTORS)
    if why:
        return does_not_apply(why)
    cells = []
    for task in scope.tasks:
        series.load(scope.before(task))
        for after, found in _moved(series, task, count, scope).items():
            cells.append(series.place(task, after, scope.before(task)) | _cell(found))
    return {"applies": True, "why": "", "probe": count, "linears": names, "cells": cells}


def _moved(
    series: AdapterSeries, task: int, count: int, scope: Scope
) -> Mapping[int, Mapping[str, Moved]]:
    names, afters = _linears(series.model), scope.afters(task)
    old = _factors(series, scope.before(task), names)
    found: dict[int, dict[str, Moved]] = {}
    for after in afters:
        new = _factors(series, after, names)
        found[after] = {name: Moved(old[name], new[name]) for name in names}

    def see(name: str, layer: nn.Module, x: Tensor, kept: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])[kept].cpu().double()
        z = latent(old[name], rows)
        for each in found.values():
            each[name].see(rows, z)

    with inputs_seen(series.model, see, names):
        series.read(task, count)
    return found


def _linears(model: nn.Module) -> Mapping[str, nn.Module]:
    """Find the linears with experts, or with a LoRA, which is one expert."""
    plain = {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "lora_B")
    }
    return routed_layers(model) or plain


def _factors(
    series: AdapterSeries, after: int, names: Mapping[str, nn.Module]
) -> Mapping[str, Factors]:
    """Read the experts of a snapshot; a pool that is added up counts as one expert."""
    file, saved = series.adapter(after) / WEIGHTS, series.weights(after)

    def get(name: str, key: str) -> Tensor:
        if f"{PREFIX}{name}.{key}" not in saved:
            raise damaged(file, f"{PREFIX}{name}.{key} is missing")
        return saved[f"{PREFIX}{name}.{key}"].double()

    found = {}
    for name in names:
        if f"{PREFIX}{name}.lora_A.weight" in saved:
            A, B = get(name, "lora_A.weight"), get(name, "lora_B.weight")
            found[name] = Factors(A[None], B.mT[None])
        elif f"{PREFIX}{name}.moe_lora_A" in saved:
            found[name] = Factors(get(name, "moe_lora_A"), get(name, "moe_lora_B"))
        elif series.method.parts == "experts":
            sides = [[get(name, f"pool_lora_{k}{s}") for k in ("past_", "")] for s in "AB"]
            found[name] = Factors(*(torch.cat(side).flatten(0, 1)[None] for side in sides))
        else:
            found[name] = Factors(get(name, "pool_lora_A"), get(name, "pool_lora_B"))
    return found


def _cell(found: Mapping[str, Moved]) -> dict[str, Any]:
    tiny = torch.finfo(torch.float64).tiny
    per_linear, per_expert = [], []
    for each in found.values():
        change, size = each.change(), each.size()
        per_linear.append(float(change.sum() / size.sum().clamp_min(tiny)))
        per_expert.append(change / size.mean().clamp_min(tiny))
    return {
        "moved": fmean(per_linear),
        "per_expert": torch.stack(per_expert).mean(0).tolist(),
        "per_linear": per_linear,
    }
