"""The LoRA of `finetune` with a memory: a share of what is trained on comes from past tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from torch import nn

from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.finetune import Finetune
from undrift.methods.shared.state import State
from undrift.rundir.records import Memory

_SHARE = ("one between 0 and 1", lambda v: 0 < v < 1)


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

    memory: int | None = base.option(None, ("a positive number", lambda v: v is None or v >= 1))
    memory_share: float = base.option(0.01, _SHARE)
    ratio: float = base.option(0.1, _SHARE)
    sampling: Literal["reservoir", "first"] = "reservoir"
    mix: Literal["ratio", "once"] = "ratio"
    tasks: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
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
    settings: ClassVar[base.Settings] = {
        "public": {"sampling": "first", "mix": "once", "memory": 180, "tasks": 8}
    }
    state_name: ClassVar[str] = "replay"
    keeps_examples: ClassVar[bool] = True
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self.memory = ReplayMemory()
        self._current: Sequence[Example] | None = None
        self._remembered = 0  # examples, when the task's were chosen

    def examples(self, train: Sequence[Example], index: int) -> Sequence[Example]:
        """Put remembered examples behind the task's own."""
        self._current, self._remembered = train, len(self.memory)
        if not len(self.memory):
            return train
        count = len(self.memory)
        if self.config.mix == "ratio":
            count = max(1, round(len(train) * self.config.ratio / (1 - self.config.ratio)))
        return [*train, *self.memory.draw(count, self._random("draw", index))]

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Make sure that there will be something to remember."""
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
        """Remember some of the task's own examples, and make room for them."""
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

    def state(self, model: nn.Module) -> State:
        """Name what is remembered: texts, and paths of pictures."""
        return State(values=self.memory.values(), record=Memory)

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the memory."""
        self.memory = ReplayMemory.of(saved.values)

    def forget(self, model: nn.Module) -> None:
        """Begin with an empty memory."""
        self.memory = ReplayMemory()

    def _random(self, purpose: str, index: int) -> Random:
        return Random(f"{self.config.seed} {purpose} {index}")


# --------------------------------------------- the memory

CHANCE = 0.7  # with which public code keeps an example while there is room


def reservoir(stream: Iterable[Any], size: int, random: Random) -> list[Any]:
    """Draw a uniform sample in one pass, without knowing how long the stream is.

    Args:
        stream: Anything, once through.
        size: How many to keep.
        random: Decides.

    Returns:
        Each item with the same probability; all of them if there are no more than `size`.
    """
    kept: list[Any] = []
    for count, item in enumerate(stream, 1):
        if len(kept) < size:
            kept.append(item)
        elif (place := random.randrange(count)) < size:
            kept[place] = item
    return kept


def first_come(stream: Iterable[Any], size: int, random: Random) -> list[Any]:
    """Keep each item with a fixed chance until there are enough, as public code does.

    Args:
        stream: Anything; the beginning of it is what is kept.
        size: How many to keep at most.
        random: Decides.

    Returns:
        Mostly the first `size / CHANCE` items.
    """
    kept: list[Any] = []
    for item in stream:
        if len(kept) == size:
            break
        if random.random() < CHANCE:
            kept.append(item)
    return kept


def quotas(capacity: int, tasks: int) -> list[int]:
    """Divide room among tasks, evenly to within one; a task's share never grows with their number.

    Args:
        capacity: How many examples there is room for.
        tasks: How many tasks there are.

    Returns:
        The room of each task.
    """
    return [capacity // tasks + (index < capacity % tasks) for index in range(tasks)]


class ReplayMemory:
    """What is kept of past tasks: references, that is the text and the paths of the pictures.

    Attributes:
        tasks: The examples kept of each, in the order in which they were learned.
        seen: How many examples these tasks had.
    """

    def __init__(self) -> None:
        self.tasks: list[list[Example]] = []
        self.seen = 0

    def __len__(self) -> int:
        return sum(len(task) for task in self.tasks)

    def add(self, kept: Sequence[Example], seen: int) -> None:
        """Take in what is kept of one more task.

        Args:
            kept: Its examples.
            seen: How many they were chosen from.
        """
        self.tasks.append(list(kept))
        self.seen += seen

    def thin(self, room: Sequence[int], random: Random) -> None:
        """Forget at random what exceeds each task's room.

        Args:
            room: How many examples each task may keep.
            random: Decides.
        """
        self.tasks = [
            random.sample(task, size) if len(task) > size else task
            for task, size in zip(self.tasks, room, strict=True)
        ]

    def draw(self, count: int, random: Random) -> list[Example]:
        """Draw examples, each as often as any other to within one.

        Args:
            count: How many.
            random: Decides.

        Returns:
            `count` examples, none if the memory is empty.
        """
        everything = [example for task in self.tasks for example in task]
        if not everything:
            return []
        rounds, rest = divmod(count, len(everything))
        return everything * rounds + random.sample(everything, rest)

    def values(self) -> dict[str, Any]:
        """Write the memory as JSON.

        Returns:
            What `of` reads.

        Raises:
            ConfigError: If something in it is no `undrift.data.types.Example`.
        """
        for kept in (kept for task in self.tasks for kept in task):
            if not isinstance(kept, Example):
                raise ConfigError(
                    f"a {type(kept).__name__} cannot be written into replay.json; give "
                    "Method.examples a sequence of undrift.data.types.Example"
                )
        return {"seen": self.seen, "tasks": [[_row(e) for e in task] for task in self.tasks]}

    @classmethod
    def of(cls, values: dict[str, Any]) -> ReplayMemory:
        """Make a memory of what `values` wrote."""
        made = cls()
        made.seen = values["seen"]
        made.tasks = [[_example(row) for row in task] for task in values["tasks"]]
        return made


def _row(example: Example) -> dict[str, Any]:
    images = [str(path.absolute()) for path in example.images]
    answers = list(example.answers)
    row = {"id": example.id, "question": example.question, "answers": answers, "images": images}
    return row | ({"system": example.system} if example.system else {})


def _example(row: dict[str, Any]) -> Example:
    images = tuple(Path(name) for name in row["images"])
    answers = tuple(row["answers"])
    return Example(row["id"], row["question"], answers, images, system=row.get("system", ""))


METHOD = Replay
