"""Router drift: where the test inputs of a task go, in its own snapshot and in every later one.

SAME, Fig. 1a to 1c, 3 and 9. The later snapshot reads the inputs as a whole, so that its routers
see what its own lower layers make of them. Beside it stands the later router alone, on the inputs
that the old snapshot gave it: what is left is what the router's own weights have moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from undrift.diagnose.adapter_series import ROUTER, AdapterSeries, Scope, does_not_apply
from undrift.tuner import MoeLoraLayer
from undrift.tuner.adapted_linear import AdaptedLinear
from undrift.tuner.route_recorder import Recorder, RouteDrift, Routes, drift, inputs_seen, mean, use

NO_ROUTER = "this method has no router: every input meets the same adapter"
ENTANGLED = (
    "the pool and what is kept of past tasks grow together in this method: which expert is which "
    "cannot be told"
)
NO_LINEARS = "this method chooses prompts, not experts on linears: its choice is told as the share \
of test examples whose task it found"
PREFIX = "base_model.model."  # what PEFT writes before the name of a linear


def route_drift(series: AdapterSeries, scope: Scope, count: int) -> dict[str, Any]:
    """Compare how a task's test inputs are routed by several adapters.

    Args:
        series: The run's adapters.
        scope: What to compare.
        count: How many prompts of each task at most.

    Returns:
        What routes.json holds: a cell a task and snapshot, with the numbers of `RouteDrift` and
        `Use`, as means and by linear.
    """
    if why := {"experts": NO_ROUTER, "entangled": ENTANGLED}.get(series.method.parts):
        return does_not_apply(why)
    old: dict[int, Routes] = {}
    alone: dict[int, Mapping[int, Routes]] = {}
    cells: list[dict[str, Any]] = []
    for stage in scope.stages:
        series.load(stage)
        for task in scope.tasks:
            now: Routes = {}
            if stage == scope.before(task):
                now, alone[task] = _read(series, task, count, scope.afters(task))
                old[task] = now
            if stage in scope.afters(task):
                now = now or _read(series, task, count)[0]
                place = series.place(task, stage, scope.before(task))
                cells.append(place | _cell(old[task], now, alone[task].get(stage)))
    cells.sort(key=lambda cell: (cell["task"], cell["after"]))
    if not any(old.values()):
        return does_not_apply(NO_LINEARS)
    experts = max(len(shares) for cell in cells for shares in cell["use"])
    names = {"linears": list(next(iter(old.values()))), "experts": experts}
    return {"applies": True, "why": "", "probe": count, **names, "cells": cells}


def _read(
    series: AdapterSeries, task: int, count: int, afters: Sequence[int] = ()
) -> tuple[Routes, Mapping[int, Routes]]:
    """Record the routes of the loaded snapshot, and what later token routers say to its inputs."""
    own, later = Recorder(), {after: Later(series, after) for after in afters}

    def see(name: str, layer: AdaptedLinear, x: Tensor, kept: Tensor) -> None:
        own.see(name, layer, x, kept)
        if isinstance(layer, MoeLoraLayer):
            for each in later.values():
                each.see(name, layer, x, kept)

    with inputs_seen(series.model, see):
        series.read(task, count)
    return own.routes(), {after: each.routes() for after, each in later.items()}


class Later(Recorder):
    """Collects how the routers of another adapter would send what the linears read."""

    def __init__(self, series: AdapterSeries, after: int) -> None:
        super().__init__()
        saved = series.weights(after)
        self._routers = {name: each for name, each in saved.items() if name.endswith(ROUTER)}

    def routed(self, layer: AdaptedLinear, x: Tensor) -> Tensor:
        """Ask the other router."""
        assert isinstance(layer, MoeLoraLayer)
        return layer.routes(x, self._routers[f"{PREFIX}{layer.name}.{ROUTER}"])


def _cell(before: Routes, now: Routes, alone: Routes | None) -> dict[str, Any]:
    drifts = [drift(before[name], now[name]) for name in before]
    uses = [use(now[name]) for name in before]
    if not drifts:
        return {"use": []}
    kinds = ("entropy", "spread", "balance")
    of_use = {kind: [getattr(each, kind) for each in uses] for kind in kinds}
    of_drift = {kind: [getattr(each, kind) for each in drifts] for kind in RouteDrift._fields}
    weights = [drift(before[name], alone[name]) for name in before] if alone else []
    return {
        **mean(drifts)._asdict(),
        "alone": mean(weights)._asdict() if weights else None,
        **{kind: fmean(values) for kind, values in of_use.items()},
        "layers": {**of_drift, **of_use},
        "use": [each.shares for each in uses],
    }
