"""A run without boundaries: one training over a stream, and its tasks asked against time.

The method is told no task and no end of one. What is learned is one task, called "stream", in an
order of its own; at evenly spaced points the training pauses, and all tasks seen so far are asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainerCallback

from undrift.data.stream import Stream, stream_of
from undrift.data.types import Task
from undrift.errors import ConfigError
from undrift.methods.base import Method
from undrift.registry import METHODS
from undrift.run.checkpoint import random_kept
from undrift.run.config import MethodConfig, RunConfig, TrainConfig
from undrift.run.session import Session, rate_of
from undrift.scoring.over_time import over_time

MERGE_SHARE = 0.05
"""After this share of a stream a history takes in what was seen, where nothing else is said. So it
is held a twentieth of the stream later at most, and twenty merges, each of which costs what a
task's end costs, are about as many as two rounds of ten tasks would have. Not tuned."""
_MIXED = 4  # mixing weights are counted so often from point to point


def for_stream(config: RunConfig) -> RunConfig:
    """Make a run's configuration fit for a stream, where it asks for one.

    Args:
        config: The run.

    Returns:
        The run; a method with a history merges it on the way.

    Raises:
        ConfigError: If the method needs boundaries; those that do not are named. If routes of
            earlier tasks are to be watched.
    """
    if not config.is_stream:
        return config
    stem, _ = METHODS.split(config.method.name)
    kind: type[Method] = METHODS.load(stem)
    if not kind.streams:
        able = [name for name in METHODS.names() if METHODS.load(name).streams]
        raise ConfigError(
            f"{config.method.name} cannot learn with boundaries=none, where no method is told a "
            f"task or the end of one: take {', '.join(able[:-1])} or {able[-1]}"
        )
    if config.watch_routes:
        raise ConfigError(
            "watch_routes compares the routes of earlier tasks, and a stream has none: leave it out"
        )
    if "merge_share" not in {each.name for each in fields(kind.Config)}:
        return config
    options = {"merge_share": MERGE_SHARE, **config.method.options}
    method = MethodConfig(name=config.method.name, options=options)
    return config.model_copy(update={"method": method})


def uses_of(train: TrainConfig, counts: Sequence[int]) -> list[int]:
    """Say how many uses each task's examples have: as in a run with boundaries, or fewer.

    Args:
        train: How tasks are trained; `max_steps` a task makes uses fewer, and never more than
            `epochs` says.
        counts: How many training examples each task has.

    Returns:
        The uses of each task.
    """
    most = math.inf if train.max_steps is None else train.max_steps * train.examples_a_step
    return [int(min(max(1, round(n * train.passes(n))), most)) for n in counts]


def stream_steps(train: TrainConfig, counts: Sequence[int]) -> int:
    """Count the steps of a stream of tasks that have so many training examples."""
    return math.ceil(sum(uses_of(train, counts)) / train.examples_a_step)


def spaced_steps(steps: int, points: int) -> list[int]:
    """Name evenly spaced steps, the last one among them; fewer where there are not so many."""
    return sorted({max(1, round(n * steps / points)) for n in range(1, points + 1)})


@dataclass(frozen=True)
class StreamPlan:
    """The stream of a run.

    Args:
        config: The run.
        stream: What is learned, in which order.
        steps: Of the training.
    """

    config: RunConfig
    stream: Stream
    steps: int

    @classmethod
    def of(cls, config: RunConfig, tasks: Sequence[Task]) -> StreamPlan:
        """Plan the stream of a run: its seed and settings decide it."""
        counts = [len(task.train) for task in tasks]
        uses = uses_of(config.train, counts)
        stream = stream_of(tasks, uses, config.seed, config.stream.blend)
        return cls(config, stream, stream_steps(config.train, counts))

    def settings(self, method: Method) -> TrainConfig:
        """Return the settings of the one training."""
        rate = rate_of(self.config, method)
        changed = {"learning_rate": rate, "epochs": 1.0, "max_steps": self.steps}
        return self.config.train.model_copy(update=changed)

    @property
    def points(self) -> list[int]:
        """The steps after which tasks are asked, the last at the end."""
        return spaced_steps(self.steps, self.config.stream.points)

    def seen(self, step: int) -> list[int]:
        """Name the tasks, from 1, of which something was seen until after a step."""
        return self.stream.seen(step * self.config.train.examples_a_step)

    def record(self, tasks: Sequence[Task], rows: Sequence[list[float | None]]) -> dict[str, Any]:
        """Return the content of stream.json.

        Args:
            tasks: The tasks in order.
            rows: The scores of all tasks at each point.

        Returns:
            See `undrift.rundir.records.Stream`.
        """
        batch, mix, before = self.config.train.examples_a_step, [], 0
        for step in spaced_steps(self.steps, _MIXED * self.config.stream.points):
            shares = self.stream.shares(before * batch, step * batch)
            mix.append({"step": step, "shares": shares})
            before = step
        asked = zip(self.points, rows, strict=True)
        return {
            "tasks": [task.name for task in tasks],
            "steps": self.steps,
            "points": [{"step": step, "scores": row} for step, row in asked],
            "mix": mix,
            "metrics": over_time(rows),
        }


class PointWatch(TrainerCallback):
    """Pauses the training at points, and has tasks asked; the training does not notice.

    Args:
        session: What is trained and asked.
        points: After which steps.
        ask: Called with the step.
        aside: Opened around it, such as `Meter.paused`.
        behind: Called after it with the step, such as `StepBar.go_on`.
    """

    def __init__(
        self,
        session: Session,
        points: Sequence[int],
        ask: Callable[[int], object],
        aside: Callable[[], AbstractContextManager[None]],
        behind: Callable[[int, int], None],
    ) -> None:
        self._session, self._points, self._ask = session, points, ask
        self._aside, self._behind = aside, behind

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask, if it is time; at the end of the stream the run asks."""
        step = state.global_step
        if step not in self._points or step >= state.max_steps:
            return
        model = self._session.model
        was = model.training
        model.eval()
        with self._aside(), random_kept(), self._session.method.predicting(model):
            self._ask(step)
        model.train(was)
        self._behind(step, state.max_steps)
