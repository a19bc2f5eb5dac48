"""What the JSON files of a snapshot inside a task hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter

from undrift.rundir.damage import SNAPSHOT, damaged
from undrift.rundir.record import Number, Record, check
from undrift.rundir.strict import parsed, text_of

STATE = "trainer_state.json"
_NOT_A_NUMBER = re.compile(r"(?<=[\s\[,:])(-?Infinity|NaN)(?=[\s,\]}])")

Word = Annotated[int, Field(ge=0, lt=2**32)]


class _Group(Record):
    params: list[NonNegativeInt]


class Optimizer(Record):
    """optimizer.json: the groups of parameters, and what is a number and no tensor."""

    groups: list[_Group] = Field(min_length=1)
    numbers: dict[str, dict[str, Any]]


class Schedule(Record):
    """schedule.json: where the learning rate has come to."""

    base_lrs: list[float] = Field(min_length=1)
    last_epoch: NonNegativeInt


class Random(Record):
    """random.json: what the generators keep beside their words."""

    numpy: Annotated[list[int | float], Field(min_length=3, max_length=3)]
    python: Annotated[list[int | list[Word] | float | None], Field(min_length=3, max_length=3)]


class _TrainerState(BaseModel):
    """What transformers' Trainer writes of its counters, with whatever else it may write."""

    model_config = ConfigDict(strict=True, extra="ignore")

    epoch: float
    global_step: NonNegativeInt
    max_steps: NonNegativeInt
    num_train_epochs: NonNegativeInt
    num_input_tokens_seen: NonNegativeInt = 0
    total_flos: float = 0
    train_batch_size: NonNegativeInt | None = None
    best_metric: Number = None
    log_history: list[dict[str, float | int | None]]
    stateful_callbacks: dict[str, Any] = Field(default={})


def check_trainer_state(folder: Path) -> None:
    """Hold the counters in a snapshot against what the Trainer expects of them.

    Args:
        folder: The snapshot.

    Raises:
        RunDirError: If they are damaged, or of another step than the folder says.
    """
    file = folder / STATE
    value = parsed(file, _NOT_A_NUMBER.sub("null", text_of(file)))  # a gradient may be infinite
    check(file, value, TypeAdapter(_TrainerState))
    step = SNAPSHOT.fullmatch(folder.name)
    if step is None or int(step[1]) != value["global_step"]:
        raise damaged(file, f"it is of step {value['global_step']}")
