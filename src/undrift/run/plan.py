"""What a run will do: which examples, which trainings, which cells of the matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from undrift.data.subset import subset
from undrift.data.types import Example, Task
from undrift.errors import DataError
from undrift.run.config import Profile, RunConfig, TrainConfig

JOINT = "joint"  # the name of the one task of a method that trains on all tasks at once
_TRAINING = 3.5  # what training on an example costs, in answers to an example

Cells = Mapping[int, Sequence[int]]
"""After which training (0: none yet) which tasks are asked, both counted from 1."""


def cut(task: Task, profile: Profile, split: str = "test") -> Task:
    """Return a task with the part of its examples that the profile uses.

    `limit` and `fraction` choose by the examples' ids; of what remains the shares are taken, evenly
    spaced.

    Args:
        task: The whole task.
        profile: How much of it is used.
        split: "test", or "validation" to ask its validation examples instead.

    Returns:
        The task; the examples to ask stand in its `test`.

    Raises:
        DataError: If the split has zero examples.
    """
    asked = task.test if split == "test" else task.validation
    if not asked:
        raise DataError(f"task {task.name!r} has zero {split} examples; use eval.split=test")
    chosen = {"limit": profile.limit, "fraction": profile.fraction, "seed": profile.draw}
    return replace(
        task,
        train=_share(subset(task.train, **chosen), profile.train_share),
        test=_share(subset(asked, **chosen), profile.test_share),
    )


def trainings(tasks: Sequence[Task], schedule: str) -> list[Task]:
    """Return what is trained, in order: the tasks, or all of them as one, or nothing.

    Args:
        tasks: The tasks in order.
        schedule: "sequential", "joint" or "none", see `Method.schedule`.

    Returns:
        Tasks to train on.
    """
    if schedule == "none":
        return []
    if schedule == "sequential":
        return list(tasks)
    union = tuple(
        replace(example, id=f"{task.name}/{example.id}") for task in tasks for example in task.train
    )
    return [replace(tasks[0], name=JOINT, train=union, validation=())]


def cells(profile: Profile, tasks: int, trained: int) -> Cells:
    """Return the cells of the matrix that are measured.

    Args:
        profile: Which cells it wants.
        tasks: How many tasks there are.
        trained: How many trainings there are: as many, or 1, or 0.

    Returns:
        Row by row.
    """
    everything = list(range(1, tasks + 1))
    plan: dict[int, list[int]] = {}
    if profile.cells != "ends" or not trained:
        plan[0] = everything
    for t in range(1, trained):
        ahead = [t + 1] if profile.cells == "all" else []
        plan[t] = [t] if profile.cells == "ends" else [*range(1, t + 1), *ahead]
    if trained:
        plan[trained] = everything
    return plan


def settings(config: RunConfig, stage: Task, tasks: int, rate: float) -> TrainConfig:
    """Return the settings of one training: the method's rate, and as many steps as all tasks get.

    Args:
        config: The run.
        stage: What is trained.
        tasks: How many tasks the run has.
        rate: The learning rate.

    Returns:
        The settings.
    """
    changed: dict[str, object] = {"learning_rate": rate}
    if stage.name == JOINT and config.train.max_steps is not None:
        changed["max_steps"] = config.train.max_steps * tasks
    return config.train.model_copy(update=changed)


def training_work(stage: Task, config: TrainConfig) -> float:
    """Return what a training costs, in answers to an example."""
    examples = len(stage.train) * config.epochs
    if config.max_steps is not None:
        examples = config.max_steps * config.batch_size * config.accumulation
    return _TRAINING * examples


def spaced(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Choose so many examples, evenly spaced, in their order."""
    return tuple(examples[i * len(examples) // count] for i in range(count))


def _share(examples: Sequence[Example], share: float) -> tuple[Example, ...]:
    return spaced(examples, max(1, round(len(examples) * share)))
