"""The LoRA of `finetune` with a memory: a share of what is trained on comes from past tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import nn

from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.finetune import Finetune
from undrift.methods.parts.replay import ReplayMemory, first_come, quotas, reservoir

STATE_FILE = "replay.json"


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and what is remembered.

    Attributes:
        memory: M, how many examples are kept of all past tasks together; `memory_share` of those
            seen where None.
        memory_share: See `memory`; at least one example a task is kept.
        ratio: rho, the share of the training examples that comes from the memory, in (0, 1).
        sampling: How a task's examples are chosen: a uniform "reservoir"; or the "first" that pass
            a fixed chance, as public code does.
        mix: "ratio" repeats the memory until it has the share `ratio`; "once" appends every
            remembered example once, as public code does, whatever share that makes.
        tasks: With sampling="first" the number of tasks, which that way of choosing needs in
            advance: each gets M / (tasks - 1) places, and nothing is thinned.
        seed: What the choices are drawn from, with the number of the task.
    """

    memory: int | None = None
    memory_share: float = 0.01
    ratio: float = 0.1
    sampling: Literal["reservoir", "first"] = "reservoir"
    mix: Literal["ratio", "once"] = "ratio"
    tasks: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None and self.memory < 1:
            raise ConfigError(f"memory is {self.memory}, expected a positive number")
        for name in ("memory_share", "ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected one between 0 and 1")
        if self.sampling == "first" and (self.memory is None or (self.tasks or 0) < 2):
            raise ConfigError(
                'sampling="first" divides its memory in advance: give memory, and tasks (at least '
                "2)"
            )


class Replay(Finetune):
    """Sequential LoRA on the task's own examples and remembered ones.

    A batch holds `ratio` of remembered examples in the mean: the trainer's own shuffling mixes
    them. They come on top, so that an epoch is longer by ratio / (1 - ratio). The loss is the
    model's, a mean over the tokens of the mixed batch. The setting "public" is what public code
    does: 180 places in all, first come, first kept, each remembered example once an epoch.

    In a trainer of your own, give it `method.examples(train, task_index)` as its dataset.
    """

    name: ClassVar[str] = "replay"
    paper: ClassVar[str] = "experience replay, Chaudhry et al., 2019, arXiv:1902.10486"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"public": {"sampling": "first", "mix": "once", "memory": 180, "tasks": 8}}
    )
    beside: ClassVar[tuple[str, ...]] = (STATE_FILE,)
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.memory = ReplayMemory()
        self._current: Sequence[Example] | None = None
        self._remembered = 0  # examples, when the task's were chosen

    def examples(self, train: Sequence[Example], index: int) -> Sequence[Example]:
        """Put remembered examples behind the task's own.

        Args:
            train: The task's own training examples.
            index: The number of the task, from 1.

        Returns:
            Both; the task's own alone while nothing is remembered.
        """
        self._current, self._remembered = train, len(self.memory)
        if not len(self.memory):
            return train
        count = len(self.memory)
        if self.config.mix == "ratio":
            count = max(1, round(len(train) * self.config.ratio / (1 - self.config.ratio)))
        return [*train, *self.memory.draw(count, self._random("draw", index))]

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Make sure that there will be something to remember.

        Args:
            model: What `attach` returned.
            task_index: The number of the task, from 1.
            steps_total: How many optimiser steps the task will take.

        Raises:
            ConfigError: If `examples` was not asked.
        """
        if self._current is None:
            raise ConfigError(
                "replay has not seen the task's examples: give your trainer the dataset "
                f"method.examples(train, {task_index})"
            )
        if len(self.memory) != self._remembered:
            raise ConfigError(
                "replay has read the adapter's memory after the task's examples were chosen: call "
                f"method.take_up(model) before method.examples(train, {task_index})"
            )

    def task_end(self, model: nn.Module) -> None:
        """Remember some of the task's own examples, and make room for them.

        Args:
            model: What `attach` returned.
        """
        train, self._current = self._current or (), None
        random = self._random("keep", self.task_index)
        memory, number = self.memory, len(self.memory.tasks) + 1
        if self.config.sampling == "first":
            size = (self.config.memory or 0) // ((self.config.tasks or 2) - 1)
            shuffled = random.sample(train, len(train))  # the order of an epoch
            memory.add(first_come(shuffled, size, random), len(train))
            return
        capacity = self.config.memory
        if capacity is None:
            capacity = max(number, round(self.config.memory_share * (memory.seen + len(train))))
        room = quotas(capacity, number)
        memory.add(reservoir(train, room[-1], random), len(train))
        memory.thin(room, random)

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write what is remembered: texts, and paths of pictures.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        self.memory.save(directory / STATE_FILE)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read the memory.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        self.memory.load(directory / STATE_FILE)

    def forget(self, model: nn.Module) -> None:
        """Begin with an empty memory.

        Args:
            model: What `attach` returned.
        """
        self.memory = ReplayMemory()

    def _random(self, purpose: str, index: int) -> Random:
        return Random(f"{self.config.seed} {purpose} {index}")


METHOD = Replay
