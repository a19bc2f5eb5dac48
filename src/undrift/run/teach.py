"""A method put on a model, and one task taught to it: which examples, which seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from undrift.data.types import Task
from undrift.errors import DataError, TrainingDiverged
from undrift.methods.base import Method
from undrift.methods.shared.projector import train_projector
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig, TrainConfig
from undrift.run.evaluate import Examiner
from undrift.run.progress import Progress
from undrift.run.trainer import train
from undrift.tuner import adapted


def attach(
    method: Method, config: RunConfig, backbone: Backbone, progress: Progress | None = None
) -> Any:
    """Put a method's adapters on a backbone, and the projector's copy if it is trained as well.

    Args:
        method: The method.
        config: The run.
        backbone: The backbone.
        progress: What is told which linears are adapted, which are not, and why.

    Returns:
        The model to train.
    """
    backbone.encode_with(getattr(method.config, "encoder", None))
    set_seed(config.seed)
    model: Any = method.attach(backbone.model)
    if config.train.train_projector and method.needs_training:
        train_projector(model)
    if progress is not None and method.needs_training:
        progress.event("adapted", adapted(model, method.config.targets))
    return model


def teach(
    examiner: Examiner,
    method: Method,
    task: Task,
    index: int,
    seed: int,
    settings: TrainConfig,
    snapshots: Path,
    callbacks: Sequence[TrainerCallback],
) -> list[dict[str, Any]]:
    """Train a method on its next task.

    The seed of a task follows from the run's seed and the task's number alone, so that a task
    learned by itself, later, is the task learned in a run.

    Args:
        examiner: Holds the model, the backbone and the collator.
        method: The method, in the state after the task before.
        task: What to learn.
        index: Its number, from 1.
        seed: The run's seed.
        settings: How it is trained.
        snapshots: Where snapshots go; the latest one there is gone on from.
        callbacks: Told about every step.

    Returns:
        What was logged, see `undrift.run.trainer.train`.

    Raises:
        DataError: If the method chooses zero examples.
    """
    examples = list(method.examples(task.train, index))
    if not examples:
        raise DataError(f"task {task.name!r} has zero examples to train on")
    if examiner.backbone.store is not None:  # examples of earlier tasks may be among them
        examiner.backbone.prepare([picture for e in examples for picture in e.images])
    own = seed * 1000 + index
    set_seed(own)
    method.task_index = index
    encoded = examiner.collator.encode(examples, answered=True)
    return train(
        examiner.backbone,
        examiner.model,
        method,
        examiner.collator,
        encoded,
        settings,
        snapshots,
        own,
        callbacks=callbacks,
    )


@contextmanager
def explained(place: str, root: Path) -> Iterator[None]:
    """Say in the error of a training that diverged which task it was, and what is kept.

    Args:
        place: The task, in words.
        root: The folder of the run.

    Yields:
        Nothing.

    Raises:
        TrainingDiverged: If the training inside does.
    """
    try:
        yield
    except TrainingDiverged as error:
        raise TrainingDiverged(
            f"{place}: {error}. What was good is kept in {root}: the same command "
            "goes on from the last snapshot, or else from the task before"
        ) from error
