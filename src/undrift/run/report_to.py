"""Metrics while a task is learned: to TensorBoard, trackio, wandb, or what else the Trainer knows.

Each task is a run of its own there, so that no curve writes over another's; TensorBoard's files lie
in RUN/live/01-digits. Whatever a reporter does, the training's random numbers stay where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback

from undrift.errors import MissingExtra, unknown
from undrift.run.checkpoint import random_kept
from undrift.tuner.distributed import rank
from undrift.tuner.peft_internals import reporters

_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}


def check_reporters(names: Sequence[str]) -> None:
    """Refuse reporters that cannot be used, before anything is loaded or trained.

    Args:
        names: As transformers knows them, such as "tensorboard".

    Raises:
        UnknownName: If there is no such reporter; the nearest is named.
        MissingExtra: If its package is not installed.
    """
    for name in names:
        if name not in reporters():
            raise unknown("reporter", name, reporters())
        try:
            reporters()[name]()
        except (ImportError, RuntimeError) as error:
            raise MissingExtra(
                f"cannot report to {name!r}: {str(error).rstrip('. ')}; "
                f"run: pip install {_PACKAGES.get(name, name)}, or leave out --report-to {name}"
            ) from error


class Reporters(TrainerCallback):
    """Passes on what the trainer of one task tells, and afterwards the scores.

    A reporter ends its run when training ends. Here it hears of that end once the scores are
    measured. Use it as a context; what it has begun is ended there.

    Args:
        names: See `check_reporters`; none of them is begun before training is.
        folder: Where TensorBoard's files go, unless its own TENSORBOARD_LOGGING_DIR is set; its
            name and that of the run's folder make the name of the run.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._names = names if rank() == 0 else ()
        self._folder = folder
        self._title = f"{folder.parents[1].resolve().name}/{folder.name}"
        self._begun: list[Any] = []
        self._last: tuple[Any, ...] = ()
        self._model: Any = None
        self._finish_wandb = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._begun:
            return
        with random_kept():
            for each in self._begun:
                each.on_train_end(*self._last, model=self._model)
            if self._finish_wandb:
                _wandb().finish()  # the Trainer's callback leaves it open for the next training
        self._begun = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Begin a run with each reporter."""
        if not self._names:
            return
        self._last, self._model = (args, state, control), model
        args.run_name, args.project = self._title, "undrift"
        with random_kept():
            self._finish_wandb = "wandb" in self._names and _wandb().run is None
            self._begun = [self._made(name) for name in self._names]
            for each in self._begun:
                each.on_init_end(args, state, control, model=model, **kwargs)
                each.on_train_begin(args, state, control, model=model, **kwargs)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Pass on what the trainer logs."""
        if not self._begun:
            return
        with random_kept():
            for each in self._begun:
                each.on_log(args, state, control, logs=dict(logs), model=model)

    def scores(self, scores: Mapping[str, float]) -> None:
        """Tell how tasks are answered now that this one is learned.

        Args:
            scores: By task, in percent; they are called `test/digits` and so on.
        """
        if self._begun:  # and so the trainer has told where it is
            logs = {f"test_{name}": score for name, score in scores.items()}
            self.on_log(*self._last, logs=logs, model=self._model)

    def _made(self, name: str) -> Any:
        made: Any = reporters()[name]()
        if name == "tensorboard":
            own = made.logging_dir  # from the environment
            made.logging_dir = str(Path(own) / self._title if own else self._folder)
        return made


def _wandb() -> Any:
    import wandb  # type: ignore[import-not-found]  # checked at the start

    return wandb
