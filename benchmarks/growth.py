"""How a step and what is kept grow: with experts, rank, tokens, width and the number of tasks.

A feed-forward block learns under `same` and `steadylora`, and under PEFT's LoRA of the same total
rank: forward and backward pass, statistics, AdamW's step and what becomes of it. The task that is
timed has a history behind it. What happens once a task (re-basing, merging) is not in a step.

    python -m benchmarks.growth docs/results/performance/growth.json docs/performance-growth.svg
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from benchmarks.meter import Bar, measure, median
from benchmarks.table import Cell, Table
from benchmarks.variants import FFN, Block, batch, training_step
from undrift.core.step_hook import StepHook
from undrift.methods.same import Same
from undrift.methods.shared.history import HistoryMethod
from undrift.methods.steadylora import SteadyLora

METHODS: Mapping[str, type[HistoryMethod]] = {"same": Same, "steadylora": SteadyLora}
STEPS = 4  # of the tasks before, with other inputs each
LONG = 10_000  # steps of the task that is timed: long enough for a sample of its tokens


@dataclass(frozen=True)
class Point:
    """What is measured; the block is as wide as SmolLM2-135M's where nothing else is said.

    Attributes:
        experts: N.
        rank: r of each.
        tokens: In a step.
        d: The width of the model.
        m: The width inside the block, the largest d_in.
        tasks: How many were learned before the one that is timed.
    """

    experts: int = 8
    rank: int = 8
    tokens: int = 512
    d: int = 576
    m: int = 1536
    tasks: int = 1


BASE = Point()
AXES: Mapping[str, tuple[Sequence[Point], Sequence[Point]]] = {  # short, and what long adds
    "experts": (
        [replace(BASE, experts=n) for n in (4, 8, 16, 64)],
        [replace(BASE, experts=32)],
    ),
    "rank": ([replace(BASE, rank=r) for r in (2, 8, 32)], [replace(BASE, rank=r) for r in (4, 16)]),
    "tokens": (
        [replace(BASE, tokens=t) for t in (128, 512, 2048)],
        [replace(BASE, tokens=t) for t in (256, 1024, 4096)],
    ),
    "d_in": (
        [replace(BASE, d=d, m=m) for d, m in ((128, 344), (576, 1536), (1024, 2816))],
        [replace(BASE, d=d, m=m) for d, m in ((2048, 5504), (4096, 11008))],
    ),
    "tasks": (
        [replace(BASE, tasks=t) for t in (1, 10)],
        [replace(BASE, tasks=t) for t in (2, 5, 20, 50)],
    ),
}


class Model(nn.Module):
    """A block under a name, as in a model: linears that read one input are found by their block."""

    def __init__(self, d: int, m: int) -> None:
        super().__init__()
        self.mlp = Block(d, m)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        """Map x (..., d) to (..., d)."""
        return self.mlp(inputs_embeds)


@dataclass(frozen=True)
class Learner:
    """A block in the middle of a task.

    Attributes:
        step: Takes one step.
        adapter: Bytes of what is trained.
        kept: Bytes of what is kept between tasks besides.
        sums: Bytes of the running sums of a task.
    """

    step: Callable[[], None]
    adapter: int
    kept: int = 0
    sums: int = 0


def size(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


Passes = Callable[[nn.Module, int], Callable[[], None]]
"""Makes of a model and a task's number what runs forward and backward on inputs of that task."""


def plain(model: nn.Module, passes: Passes) -> Learner:
    """Train what can be trained, with AdamW."""
    step, optimizer = _stepping(model, passes(model, 1))
    return Learner(step, size(optimizer.param_groups[0]["params"]))


def learner(method: HistoryMethod, model: nn.Module, passes: Passes, tasks: int = 1) -> Learner:
    """Bring a method, on its model, into the task after so many."""
    for task in range(1, tasks + 1):
        method.task_start(model, task, STEPS)
        step, _ = _stepping(model, passes(model, task), method)
        for number in range(1, STEPS + 1):
            step()
            method.step_end(model, number, STEPS)
        method.task_end(model)
    kept = [t for each in method.statistics.values() for t in each.buffers()]
    method.task_start(model, tasks + 1, LONG)
    step, optimizer = _stepping(model, passes(model, tasks + 1), method)
    sums = [t for each in method.statistics.values() for t in each.running().values()]
    sketches = {each.owner: each.owner._sketch for each in method.statistics.values()}
    sums += [sketch.Omega for sketch in sketches.values() if sketch is not None]
    return Learner(step, size(optimizer.param_groups[0]["params"]), size(kept), size(sums))


def _stepping(
    model: nn.Module, both_ways: Callable[[], None], method: HistoryMethod | None = None
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    masters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(masters, lr=1e-4)
    if method is not None:
        StepHook(optimizer, lambda: method.step_transforms(model)).attach()
        StepHook(optimizer, lambda: method.gradient_transforms(model), "gradient").attach()

    def step() -> None:
        both_ways()
        optimizer.step()

    return step, optimizer


def sharing(model: nn.Module) -> nn.Module:
    """A copy of a model that reads the same frozen weights."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def lora(model: nn.Module, rank: int) -> nn.Module:
    """PEFT's LoRA on the linears of a block."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=FFN)
    return peft.get_peft_model(model, config).train()


def attached(method: HistoryMethod, model: nn.Module) -> nn.Module:
    """A method's adapter on the linears of a block."""
    config: Any = replace(method.peft_config(), target_modules=FFN)
    return peft.get_peft_model(model, config).train()


def block_passes(x: Tensor) -> Passes:
    """Inputs of a block, of another spectrum in every task."""

    def passes(model: nn.Module, task: int) -> Callable[[], None]:
        generator = torch.Generator().manual_seed(task)
        spectrum = torch.rand(x.shape[-1], generator=generator).pow(8) + 0.01
        return training_step(model, (x.detach() * spectrum.to(x)).requires_grad_())

    return passes


def subject(point: Point) -> tuple[nn.Module, Passes]:
    """The frozen block of a point, and its inputs."""
    torch.manual_seed(0)
    base = Model(point.d, point.m).requires_grad_(False)
    return base, block_passes(batch(point.d, point.tokens))


def made(name: str, point: Point, base: nn.Module, passes: Passes) -> Learner:
    """A method at a point."""
    method = METHODS[name](experts=point.experts, rank=point.rank)
    return learner(method, attached(method, sharing(base)), passes, point.tasks)


def row(point: Point, rounds: int) -> dict[str, Cell]:
    """Measure a point."""
    base, passes = subject(point)
    learners = {"LoRA": plain(lora(sharing(base), point.experts * point.rank), passes)}
    learners |= {name: made(name, point, base, passes) for name in METHODS}
    taken = measure({name: each.step for name, each in learners.items()}, rounds)
    found: dict[str, Cell] = {"N": point.experts, "r": point.rank}
    found |= {"tokens": point.tokens, "d_in": point.m, "tasks": point.tasks}
    found["LoRA ms"] = 1000 * median(taken, lambda s: s["LoRA"])
    for name in METHODS:
        found[f"{name} / LoRA"] = median(taken, lambda s, name=name: s[name] / s["LoRA"])
    found["adapter MB"] = learners["same"].adapter / 1e6
    for name in METHODS:
        found[f"{name} kept MB"] = learners[name].kept / 1e6
    found["same sums MB"] = learners["same"].sums / 1e6
    return found


def task_bars(most: int, rounds: int) -> list[Bar]:
    """A step and what is kept after many tasks against after one, within the same rounds."""
    bars: list[Bar] = []
    base, passes = subject(BASE)
    for name in METHODS:
        one, many = (made(name, replace(BASE, tasks=n), base, passes) for n in (1, most))
        taken = measure({"one": one.step, "many": many.step}, rounds)
        time = median(taken, lambda s: s["many"] / s["one"])
        about = f"after {most} tasks / after 1"
        bars.append(Bar(f"growth: bytes that {name} keeps {about}", many.kept / one.kept, 1.0))
        bars.append(Bar(f"growth: time of a step of {name} {about}", time, 1.05))
    return bars


def tables(*, long: bool) -> list[Table]:
    """A row a point, and the bars on the number of tasks."""
    rows: list[dict[str, Cell]] = []
    known: dict[Point, dict[str, Cell]] = {}
    for axis, (short, more) in AXES.items():
        points = [*short, *more] if long else short
        for point in sorted(points, key=lambda p: (p.experts, p.rank, p.tokens, p.d, p.tasks)):
            if point not in known:
                large = point.d > 1024 or point.tokens > 1024
                known[point] = row(point, (5 if large else 15) if long else 5)
            rows.append({"axis": axis} | known[point])
    bars = task_bars(50 if long else 10, 30 if long else 15)
    notes = [
        "one block, down_proj reads d_in, gate and up 0.37 of it; LoRA of rank N r; float32",
        "kept: histories, C_z and what routes weigh, between tasks; sums: of a task, and sketches",
        "random weights and inputs; what happens once a task (re-basing, merging) is left out",
        f"the task that is timed has {LONG} steps, so that one token in eight enters the sums",
    ]
    return [Table("growth", "A step and its state against sizes", rows, bars, notes)]


# ------------------------------------------------------------ the plot

_STYLE = (
    "<style>svg{--ink:#1c2733;--soft:#51606f;--line:#d0d0d1;--paper:#ffffff}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6e9ee;--soft:#a3adbb;--line:#3a4452;"
    "--paper:#14181f}}</style>"
    '<rect width="100%" height="100%" style="fill:var(--paper)"/>'
)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw time and state against every axis, in the colours of a light or a dark page."""
    from matplotlib.ticker import NullLocator

    from undrift.report.drawing import PAGE, STYLED, draw, legend_of, sheet, styles
    from undrift.rundir import atomic_write

    columns = {"experts": "N", "rank": "r", "tokens": "tokens", "d_in": "d_in", "tasks": "tasks"}
    kinds = {"/ LoRA": "time", "kept MB": "kept"}
    looks = dict(zip(METHODS, styles(len(METHODS)), strict=True))
    with STYLED:
        page = sheet(
            "time of a step and bytes kept against experts, rank, tokens, width and tasks",
            [f"{text}: {axis}" for text in kinds.values() for axis in columns],
            x="experts N; rank of each; tokens a step; inputs of the widest linear; tasks before",
            y="kept, MB  |  time / LoRA's",
            legend=legend_of(looks),
            across=len(columns),
            width=PAGE,
            left=0.3,
        )
        panels = iter(page.axes)
        for kind in kinds:
            most = max(float(each[f"{name} {kind}"]) for each in rows for name in METHODS)
            for axis, column in columns.items():
                panel, own = next(panels), [each for each in rows if each["axis"] == axis]
                at = [each[column] for each in own]
                for name, look in looks.items():
                    values = [each[f"{name} {kind}"] for each in own]
                    panel.plot(
                        at, values, color=look.color, marker=look.marker, linestyle=look.linestyle
                    )
                panel.set_xscale("log")
                every = at if sum(len(str(each)) for each in at) < 14 else at[::2]
                panel.set_xticks(every, [str(each) for each in every])
                panel.xaxis.set_minor_locator(NullLocator())
                if kind == "/ LoRA":
                    panel.set_ylim(0, 1.1 * most)
                else:
                    panel.set_yscale("log")
                    panel.set_yticks(ticks := [0.1, 1, 10], [f"{each:g}" for each in ticks])
                    panel.yaxis.set_minor_locator(NullLocator())
                    panel.set_ylim(0.05, max(2 * most, 12))
        svg = draw(page.figure).svg
    head, _, rest = svg.partition(">")
    atomic_write(path, f"{head}>{_STYLE}{rest}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("numbers", type=Path, help="what `python -m benchmarks growth` has written")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    plot(json.loads(args.numbers.read_text(encoding="utf-8"))["rows"], args.picture)


if __name__ == "__main__":
    main()
