"""What half of the experts at rest save: time and memory of a step, where layers are wide.

A feed-forward block under `same` inside its second task, with all of its experts and with every
second one resting, as `activation` lets them. The paper saves 32.1 minutes a task and 2.3 GiB a
GPU [Fig. 5], against a layer that computes one expert after the other.
"""

from __future__ import annotations

import torch

from benchmarks.growth import Model, attached, block_passes, learner, sharing
from benchmarks.meter import measure, median
from benchmarks.table import Cell, Table
from benchmarks.variants import N, batch, saved_bytes
from undrift.methods.same import Same

TOKENS = 512
SHORT = ((1024, 2816, 8), (1024, 2816, 32))
LONG = (*SHORT, (2048, 5504, 8), (2048, 5504, 16), (2048, 5504, 32), (4096, 11008, 8))


def rest(method: Same) -> None:
    """Let every second expert of every linear rest for the remainder of the task."""
    for each in method.statistics.values():
        each.active[::2] = False
    method._turn_experts()


def row(d: int, m: int, rank: int, rounds: int) -> dict[str, Cell]:
    """Measure one block."""
    torch.manual_seed(0)
    base, x = Model(d, m).requires_grad_(False), batch(d, TOKENS)
    steps, saved = {}, {}
    for name in ("all", "half"):
        method = Same(experts=N, rank=rank)
        model = attached(method, sharing(base))
        steps[name] = learner(method, model, block_passes(x)).step
        if name == "half":
            rest(method)
        saved[name] = saved_bytes(model, x)
    taken = measure(steps, rounds)
    half = median(taken, lambda s: s["half"] / s["all"])
    return {
        "d": d,
        "m": m,
        "r": rank,
        "step ms": 1000 * median(taken, lambda s: s["all"]),
        "half at rest / all": half,
        "time saved %": 100 * (1 - half),
        "activations MB": saved["all"] / 1e6,
        "saved MB": (saved["all"] - saved["half"]) / 1e6,
        "memory saved %": 100 * (1 - saved["half"] / saved["all"]),
    }


def tables(*, long: bool) -> list[Table]:
    """A row a block."""
    rows = [row(*sizes, 11 if long else 7) for sizes in (LONG if long else SHORT)]
    notes = [
        f"{N} experts, {TOKENS} tokens, float32; step: passes, statistics, AdamW, its transforms",
        "a long task, of which one token in eight enters the statistics",
        "activations: what the forward pass of the block keeps for the backward pass",
    ]
    return [Table("activation", "Half of the experts at rest, against all", rows, (), notes)]
