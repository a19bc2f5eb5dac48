"""A memory of examples of past tasks: drawn evenly from each, thinned as tasks come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from undrift.data.types import Example
from undrift.errors import ConfigError, RunDirError
from undrift.rundir import read_record, write_json
from undrift.rundir.records import Memory

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

    def save(self, path: Path) -> None:
        """Write the memory as JSON.

        Args:
            path: The file.

        Raises:
            ConfigError: If something in it is no `undrift.data.types.Example`.
        """
        for task in self.tasks:
            for kept in task:
                if not isinstance(kept, Example):
                    raise ConfigError(
                        f"a {type(kept).__name__} cannot be written into {path.name}; give "
                        "Method.examples a sequence of undrift.data.types.Example"
                    )
        content = {"seen": self.seen, "tasks": [[_row(e) for e in task] for task in self.tasks]}
        write_json(path, content)

    def load(self, path: Path) -> None:
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            RunDirError: If there is no such file, or it is damaged.
        """
        if not path.is_file():
            raise RunDirError(
                f"{path} is missing; without its memory an adapter can be used but not go on "
                "learning with replay. It is written by save_state"
            )
        content = read_record(path, Memory)
        self.seen = content["seen"]
        self.tasks = [[_example(row) for row in task] for task in content["tasks"]]


def _row(example: Example) -> dict[str, Any]:
    images = [str(path.absolute()) for path in example.images]
    answers = list(example.answers)
    row = {"id": example.id, "question": example.question, "answers": answers, "images": images}
    return row | ({"system": example.system} if example.system else {})


def _example(row: dict[str, Any]) -> Example:
    images = tuple(Path(name) for name in row["images"])
    answers = tuple(row["answers"])
    return Example(row["id"], row["question"], answers, images, system=row.get("system", ""))
