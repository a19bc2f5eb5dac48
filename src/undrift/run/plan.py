"""The plan of a training, told before it begins: examples, steps, rate, parameters, memory.

What cannot be known beforehand, the time and the memory of activations, is measured: it is told
after the first steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from undrift.data.types import Task
from undrift.methods.base import Method
from undrift.methods.shared.budget import short_number
from undrift.methods.shared.projector import train_projector
from undrift.run.batches import share_of
from undrift.run.config import LEAST_STEPS, RunConfig
from undrift.run.load_model import find_device
from undrift.run.progress import Progress, clock
from undrift.run.ranks import launched
from undrift.run.training_cost import peak
from undrift.tuner.distributed import processes
from undrift.tuner.frozen import count_parameters

FEW_STEPS = 50
FEW_QUESTIONS = 30
_NAMED = 12  # tasks of a run that its plan lists
_FIRST = 5  # steps that are timed, behind one that warms up
_FLAGS = ("flags", "Features")  # how a processor's line in /proc/cpuinfo begins, on x86 and ARM
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_LARGE = 10**8  # parameters from which on bfloat16 was found to pay
_BFLOAT16_PAYS = (
    "  dtype: float32, and this CPU has units for bfloat16: --set dtype=bfloat16 makes steps "
    "faster, and answers slightly different"
)
_ADAMW = 4 + 4 + 4  # bytes of gradient and of AdamW's two moments, of a parameter in float32


def has_bfloat16_units(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 itself; False where Linux does not tell.

    Args:
        info: Where Linux tells.

    Returns:
        Whether it does.
    """
    if not info.is_file():
        return False
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].split() for line in lines if line.startswith(_FLAGS))
    return not _BFLOAT16.isdisjoint(next(named, ()))


@dataclass(frozen=True)
class Size:
    """How large a model with its adapter is.

    Args:
        parameters: Of the base.
        trained: Parameters that the optimiser moves.
        weights: Bytes of all weights; None where they are quantised and not read yet.
        bfloat16_pays: Whether its float32 weights are on a CPU that has units for bfloat16.
    """

    parameters: int
    trained: int
    weights: int | None
    bfloat16_pays: bool = False

    def __str__(self) -> str:
        told = f"{short_number(self.trained).strip()} of {short_number(self.parameters).strip()}"
        told += " parameters trained"
        if self.weights is None:
            return f"{told}; memory: not known before the quantised weights are read"
        memory = short_number(self.weights + _ADAMW * self.trained)
        return (
            f"{told}; memory: at least {memory}B (an estimate: weights, gradients and AdamW; "
            "activations come on top)"
        )

    @property
    def hints(self) -> list[str]:
        """What could be had for less, a line each."""
        return [_BFLOAT16_PAYS] if self.bfloat16_pays else []


def size_of(model: Any, base: int) -> Size:
    """Measure a model that is ready to learn.

    Args:
        model: With its adapters.
        base: Parameters without them.

    Returns:
        Its size.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Size(base, trained, weights, _pays(base, model.dtype.itemsize, model.device.type))


def size_expected(
    config: RunConfig, method: Method, model: nn.Module, bytes_each: int, tasks: int
) -> Size:
    """Work out the size of a model from its shapes, without weights.

    Args:
        config: The run.
        method: The method, which is put on the model.
        model: From `undrift.run.backbone.outline_for`.
        bytes_each: Bytes of a weight of the base.
        tasks: How many tasks the method has learned with the one that is planned.

    Returns:
        The size.
    """
    base = count_parameters(model)
    model.requires_grad_(False)
    with torch.device("meta"):
        wrapped: Any = method.attach(model)  # type: ignore[arg-type]
        if config.train.train_projector and method.needs_training:
            train_projector(wrapped)
        method.make_room(wrapped, tasks)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    adapter = count_parameters(wrapped) - base
    known = config.quantize == "none"
    pays = known and _pays(base, bytes_each, find_device(config.device).type)
    return Size(base, trained, base * bytes_each + 4 * adapter if known else None, pays)


def _pays(parameters: int, bytes_each: int, device: str) -> bool:
    large = parameters >= _LARGE and bytes_each == torch.float32.itemsize
    return large and device == "cpu" and has_bfloat16_units()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _processes() -> int:
    return max(processes(), launched())  # a dry run does not join the others


@dataclass(frozen=True)
class TaskPlan:
    """What one training is going to be.

    Args:
        task: The task's name.
        examples: Training examples.
        pictures: How many pictures they show.
        questions: How many questions are asked about it.
        steps: Steps of the optimiser.
        epochs: Passes over the examples; None where a number of steps is set.
        learning_rate: The peak rate.
        global_batch: Examples a step, of all processes.
        pieces: Micro-batches of each process.
        one_answer: The answer to every training question, if all have the same one.
        grows: Whether the method adds examples of its own, and so steps.
    """

    task: str
    examples: int
    pictures: int
    questions: int
    steps: int
    epochs: float | None
    learning_rate: float
    global_batch: int
    pieces: int
    one_answer: str | None
    grows: bool

    @classmethod
    def of(cls, config: RunConfig, method: Method, task: Task, train: Any) -> TaskPlan:
        """Plan one training.

        Args:
            config: The run.
            method: The method.
            task: What is learned.
            train: From `undrift.run.trainer.training_settings`.

        Returns:
            The plan.
        """
        count = len(task.train)
        answers = {example.answers[0] for example in task.train} if count > 1 else set[str]()
        share = share_of(train.examples_a_step, train.batch_size, _processes())
        return cls(
            task.name,
            count,
            len({picture for example in task.train for picture in example.images}),
            len(task.test),
            train.steps(count),
            train.passes(count) if train.max_steps is None else None,
            train.learning_rate,
            train.examples_a_step,
            share.accumulation,
            answers.pop() if len(answers) == 1 else None,
            type(method).examples is not Method.examples,
        )

    @property
    def material(self) -> str:
        """Examples and pictures in words."""
        return f"{_count(self.examples, 'example')} with {_count(self.pictures, 'picture')}"

    @property
    def length(self) -> str:
        """Steps, epochs, batch and rate in words."""
        more = " or more (the method adds examples of its own)" if self.grows else ""
        pieces = f" in {self.pieces} pieces" if self.pieces > 1 else ""
        dealt = f" on {_processes()} processes" if _processes() > 1 else ""
        passes = "" if self.epochs is None else f", {self.epochs:g} epoch{'s' * (self.epochs != 1)}"
        return (
            f"{_count(self.steps, 'step')}{more} of {_count(self.global_batch, 'example')}{pieces}"
            f"{dealt}{passes}; learning rate {self.learning_rate:g}"
        )

    def warnings(self, *, test_file: bool) -> list[str]:
        """Say what cannot work, each with what to do.

        Args:
            test_file: Whether the questions are in a file of their own.

        Returns:
            A line each.
        """
        found = []
        if self.steps < FEW_STEPS:
            more = f"train.max_steps={FEW_STEPS}" if self.epochs is None else "train.epochs=auto"
            found.append(
                f"{self.task} gets {_count(self.steps, 'step')}, and fewer than {FEW_STEPS} seldom "
                f"teach anything: --set {more} gives as many"
            )
        if self.one_answer is not None:
            found.append(
                f"all {self.examples} training answers of {self.task} are {self.one_answer[:60]!r},"
                " so nothing else can be learned: add examples with other answers"
            )
        if self.questions < FEW_QUESTIONS:
            way = "give more in the test file" if test_file else "give some with --test FILE"
            way += "" if test_file else ", or hold out more with --held-out 0.3"
            found.append(
                f"{self.task} is asked {_count(self.questions, 'question')}, and one is worth "
                f"{100 / max(1, self.questions):.1f} points of its score: {way}"
            )
        return found


def tell_lesson(
    progress: Progress,
    plan: TaskPlan,
    config: RunConfig,
    size: Size,
    *,
    questions: str,
    others: Sequence[str] = (),
    test_file: bool = True,
) -> dict[str, Any]:
    """Tell the plan of one task.

    Args:
        progress: Told.
        plan: The plan.
        config: The run.
        size: Of the model.
        questions: Where the questions come from.
        others: What is asked beside it: earlier tasks, guards.
        test_file: Whether the questions are in a file of their own.

    Returns:
        The plan, for programs.
    """
    lines = [
        f"plan: {plan.task}, learned with {config.method.name} on {config.backbone}",
        f"  {plan.material}; {questions}",
        *([f"  asked before and after as well: {', '.join(others)}"] if others else []),
        f"  {plan.length}",
    ]
    if config.train.epochs == "auto" and plan.epochs is not None:
        lines.append(_rule(plan))
    lines += [f"  {size}", *size.hints, "  time: told after the first steps"]
    warned = plan.warnings(test_file=test_file)
    values = {**asdict(plan), **asdict(size), "warnings": warned}
    progress.block("plan", [*lines, *(f"warning: {each}" for each in warned)], **values)
    return values


def _rule(plan: TaskPlan) -> str:
    return (
        f"  epochs: {plan.epochs:g}, so that there are at least {LEAST_STEPS} steps; set "
        "train.epochs to decide yourself"
    )


def tell_run(
    progress: Progress,
    plans: Sequence[TaskPlan],
    config: RunConfig,
    size: Size,
    tasks: int,
) -> dict[str, Any]:
    """Tell the plan of a run; of somebody's own data with warnings.

    Args:
        progress: Told.
        plans: A plan a training.
        config: The run.
        size: Of the model.
        tasks: How many tasks there are.

    Returns:
        The plan, for programs.
    """
    name = config.method.name
    lines = [f"plan: {tasks} tasks of {config.benchmark} with {name} on {config.backbone}"]
    lines += [
        f"  {plan.task}: {_count(plan.examples, 'example')}, {_count(plan.pictures, 'picture')}, "
        f"{_count(plan.questions, 'question')}, {_count(plan.steps, 'step')}"
        for plan in plans[:_NAMED]
    ]
    if len(plans) > _NAMED:
        lines.append(f"  and {len(plans) - _NAMED} more tasks")
    if plans:
        first = plans[0]
        total = sum(plan.steps for plan in plans)
        more = " or more (the method adds examples of its own)" if first.grows else ""
        same = len({plan.epochs for plan in plans}) == 1 and first.epochs is not None
        passes = f", {first.epochs:g} epochs a task" if same else ""
        lines.append(
            f"  {total} steps{more} of {first.global_batch} examples in all{passes}; learning rate "
            f"{first.learning_rate:g}"
        )
    else:
        lines.append("  nothing is trained")
    lines += [f"  {size}", *size.hints]
    own = config.benchmark == "folder"
    warned = [each for plan in plans if own for each in plan.warnings(test_file=True)]
    values = {"tasks": [asdict(plan) for plan in plans], **asdict(size), "warnings": warned}
    progress.block("plan", [*lines, *(f"warning: {each}" for each in warned)], **values)
    return values


class FirstSteps:
    """Times the first steps of a training, and tells how long all of it will take.

    Args:
        progress: Told.
        device: Where the model is.
        done: Steps that were made before, of a training that was resumed.
    """

    def __init__(self, progress: Progress, device: torch.device, done: int) -> None:
        self._progress, self._device, self._from = progress, device, done + 1
        self._since = time.perf_counter()

    def step(self, now: int, steps: int) -> None:
        """Take note of a step.

        Args:
            now: How many were made.
            steps: How many there are to be.
        """
        if now == self._from:  # which has warmed up
            self._since = time.perf_counter()
        if now != self._from + _FIRST or now >= steps:
            return
        each = (time.perf_counter() - self._since) / _FIRST
        left = each * (steps - now)
        memory = memory_so_far(self._device)
        told = "" if memory is None else f"; memory so far: {short_number(memory)}B at most"
        text = f"{each:.2g} s a step ({_FIRST} measured): about {clock(left)} to learn{told}"
        values = {"seconds_a_step": each, "seconds_left": left, "peak_bytes": memory}
        self._progress.event("pace", text, **values)


def memory_so_far(device: torch.device) -> int | None:
    """Return the peak of memory, in bytes; None where it is not known."""
    known = device.type == "cuda" or (device.type == "cpu" and sys.platform == "linux")
    return peak(device) if known else None
