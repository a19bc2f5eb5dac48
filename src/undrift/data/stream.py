"""A stream without boundaries: the tasks of a benchmark fade in, blend and return once.

Every task visits twice: first in the order of the tasks, then once more in a shuffled order. A
visit comes and goes evenly, as a triangle, and reaches into the visits beside it. Examples are
placed in time and never drawn, so that each is used as often as it is meant to be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from undrift.data.types import Task
from undrift.errors import DataError

STREAM = "stream"
"""The name of the one training that a stream is."""


@dataclass(frozen=True)
class Stream:
    """What is learned, in which order.

    Args:
        task: The training examples of all tasks, as one task.
        order: The places of the examples among those, a place a use.
        owners: The number of the task that each example is of, from 1, by its place.
        tasks: How many tasks there are.
    """

    task: Task
    order: Sequence[int]
    owners: Sequence[int]
    tasks: int

    def shares(self, start: int, end: int) -> list[float]:
        """Return the mixing weights: each task's share of the uses from `start` to before `end`."""
        counts = Counter(self.owners[place] for place in self.order[start:end])
        return [counts[task] / max(1, counts.total()) for task in range(1, self.tasks + 1)]

    def seen(self, uses: int) -> list[int]:
        """Name the tasks, from 1, that one of the first `uses` is of."""
        return sorted({self.owners[place] for place in self.order[:uses]})


def stream_of(tasks: Sequence[Task], uses: Sequence[int], seed: int, blend: float) -> Stream:
    """Make a stream; seed and arguments alone decide it.

    Args:
        tasks: The tasks in the order of their first visits; only `train` is read.
        uses: How many uses of its examples each task has: so many times the number of its examples
            uses each so many times, and what is left over some of them once more.
        seed: Decides the order of the second visits and of the examples.
        blend: Which share of a visit is mixed with those beside it: at 0 the tasks change sharply,
            at 1 two are mixed at any time, above that more.

    Returns:
        The stream.

    Raises:
        DataError: If there is nothing to learn.
    """
    if not any(uses):
        raise DataError("the stream has zero examples: give tasks with examples to train on")
    visits = _visits(len(tasks), Random(f"{seed}/visits"))
    placed: list[tuple[float, int, int]] = []
    examples, owners = [], []
    for number, (task, count, own) in enumerate(zip(tasks, uses, visits, strict=True), 1):
        random = Random(f"{seed}/{number}")
        first = len(examples)
        times = sorted(_times(count, own, blend, random))
        picked = islice(_passes(len(task.train), random), count)
        placed += [(time, number, first + at) for time, at in zip(times, picked, strict=True)]
        examples += [replace(e, id=f"{task.name}/{e.id}") for e in task.train]
        owners += [number] * len(task.train)
    placed.sort()
    union = replace(tasks[0], name=STREAM, train=tuple(examples), validation=())
    return Stream(union, [place for _, _, place in placed], owners, len(tasks))


def _visits(tasks: int, random: Random) -> list[tuple[int, int]]:
    """Return the places of both visits of each task; the last one does not return at once."""
    again = list(range(tasks))
    random.shuffle(again)
    if tasks > 1 and again[0] == tasks - 1:
        again.reverse()
    return [(task, tasks + again.index(task)) for task in range(tasks)]


def _times(count: int, visits: Sequence[int], blend: float, random: Random) -> Iterator[float]:
    """Yield times of uses, half of them in each visit, spread over its triangle evenly."""
    reach = (1 + blend) / 2
    for visit, many in zip(visits, (math.ceil(count / 2), count // 2), strict=True):
        for number in range(many):
            share = (number + random.random()) / many
            yield visit + 0.5 + reach * _triangle(share)


def _passes(examples: int, random: Random) -> Iterator[int]:
    """Yield the places of all examples, again and again, each time shuffled anew."""
    while True:
        places = list(range(examples))
        random.shuffle(places)
        yield from places


def _triangle(share: float) -> float:
    """The place from -1 to 1 below which a share of a triangle lies."""
    if share < 0.5:
        return math.sqrt(2 * share) - 1
    return 1 - math.sqrt(2 * (1 - share))
