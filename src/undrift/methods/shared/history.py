"""The statistics of all adapted linears, led through a task; and the metrics that they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from undrift.core import steps
from undrift.core.settings import Metrics
from undrift.core.step_hook import StepTransform
from undrift.tuner import LayerStatistics, summed
from undrift.tuner.moe_lora import SAME_INPUT

Basis = tuple[Tensor, Tensor]
"""V (d, k) and s (k,) of one linear's input."""


class Histories:
    """What the linears of a model have seen, in this task and in those before.

    Args:
        statistics: By the linear's name.
        metrics: What is kept of them, and when the sketches are re-based.
    """

    def __init__(self, statistics: Mapping[str, LayerStatistics], metrics: Metrics) -> None:
        self.statistics = statistics
        self.metrics = metrics

    def start(self, *, resumed: bool = False) -> None:
        """Begin a task, or go on with the running sums that a checkpoint brought.

        An adapter that was saved inside a task and begins another has what it saw merged first.
        """
        if not resumed and any(each.interrupted for each in self.statistics.values()):
            self.start(resumed=True)
            self.end()
        for each in self.statistics.values():
            each.resume_task() if resumed else each.start_task()

    def step_end(self, step: int, steps_total: int) -> None:
        """Re-base the sketches once, early in the task."""
        share = self.metrics.rebase_share
        if share > 0 and step == at_share(share, steps_total):
            with self.summed():
                for each in self.statistics.values():
                    each.rebase()

    def flush(self) -> None:
        """Copy the running sums into buffers that a checkpoint saves."""
        with self.summed():
            for each in self.statistics.values():
                each.flush()

    def end(self) -> None:
        """Merge the task into the history."""
        with self.summed():
            for each in self.statistics.values():
                each.end_task(self.metrics.delta)

    @contextmanager
    def summed(self) -> Iterator[None]:
        """Within this context the running sums are those of all ranks."""
        with summed(self.statistics.values()):
            yield

    def bases(self, *, running: bool = False) -> dict[str, Basis]:
        """Return V_par and s of every linear's input [Eq. 5].

        Args:
            running: Of C^t, current task included, instead of C^{t-1}.

        Returns:
            By the linear's name; those that share an input share tensors.
        """
        found: dict[LayerStatistics, Basis] = {}
        with self.summed():
            for each in self.statistics.values():
                if each.owner not in found:
                    now = each.history_now(self.metrics.delta) if running else each.history
                    V, s = now.basis()
                    found[each.owner] = V.clone(memory_format=torch.contiguous_format), s
        return {name: found[each.owner] for name, each in self.statistics.items()}


def at_share(share: float, steps_total: int) -> int:
    """The step, from 1, after which a share of the task's steps is done."""
    return max(1, round(share * steps_total))


def a_turn(basis: Basis, metrics: Metrics) -> StepTransform | None:
    """What turns a step of A, or None where the history is empty [Eq. 14, 15]."""
    V, s = basis
    if not metrics.a_metric or s.numel() == 0:
        return None
    mu = steps.damping(s, metrics.mu, metrics.mu_relative)
    inside, outside = steps.a_metric(s, mu, metrics.normalise)
    return partial(steps.expert_a_step, V=V, inside=inside, outside=outside)


def z_metric(statistics: LayerStatistics, metrics: Metrics) -> Tensor | None:
    """The metric of B's steps over the active experts, or None where none is due, (N r, N r)."""
    if metrics.b_metric != "z" or not bool(statistics.cz_tokens > 0):
        return None
    return steps.z_metric(statistics.cz.double(), metrics.mu_b, statistics.active).float()


def make_statistics(
    linears: Mapping[str, tuple[int, torch.device]], experts: int, rank: int, **options: Any
) -> dict[str, LayerStatistics]:
    """Make the statistics of linears; those that read one input share one sketch.

    Args:
        linears: By name, d_in and where the adapter lives.
        experts: N.
        rank: r of each expert.
        **options: As for `LayerStatistics`.

    Returns:
        By name.
    """
    made: dict[str, LayerStatistics] = {}
    for name, (dim, device) in linears.items():
        block, _, own = name.rpartition(".")
        siblings = next((group for group in SAME_INPUT if own in group), ())
        same = [made[f"{block}.{other}"] for other in siblings if f"{block}.{other}" in made]
        shared = same[0].owner if same else None
        made[name] = LayerStatistics(name, dim, experts, rank, shared=shared, **options).to(device)
    return made


def statistics_options(config: Metrics | Any) -> dict[str, Any]:
    """The part of a configuration that `LayerStatistics` takes."""
    names = ("columns", "max_components", "token_fraction", "token_weights", "task_weights", "seed")
    return {name: getattr(config, name) for name in names}
