"""What a run is: one frozen, validated configuration. How it is put together: layers.py."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

DO_NOT_MATTER = {"data", "out", "threads", "device", "report_to", "watch_routes"}
"""Never in run.yaml: no number depends on them."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodConfig(_Frozen):
    """Which method, and its options.

    Args:
        name: Such as "same", or "same-paper" for a named setting of it.
        options: The method's own keys; in YAML they stand beside `name`.
    """

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "options" not in value:
            rest = {key: option for key, option in value.items() if key != "name"}
            return {"name": value.get("name"), "options": rest}
        return value


class TrainConfig(_Frozen):
    """How each task is trained.

    Args:
        learning_rate: Peak rate; the method's own default if not given.
        train_projector: Train the multimodal projector beside the adapter; pictures are then run
            through the vision tower at every step.
        projector_learning_rate: The projector's own peak rate.
        batch_size: Examples a micro-batch.
        accumulation: Micro-batches a step.
        epochs: Passes over a task's examples.
        max_steps: Steps a task, instead of `epochs`.
        warmup_ratio: Share of the steps in which the rate rises.
        weight_decay: AdamW's.
        scheduler: How the rate falls.
        max_grad_norm: Longer gradients are shortened; 0 for never.
        activation_checkpointing: Compute activations again in the backward pass, to save memory.
        checkpoint_steps: Steps between two snapshots inside a task; 0 for none.
        log_steps: Steps between two lines of train.jsonl.
    """

    learning_rate: PositiveFloat | None = None
    train_projector: bool = False
    projector_learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    max_grad_norm: NonNegativeFloat = 1.0
    activation_checkpointing: bool = False
    checkpoint_steps: NonNegativeInt = 200
    log_steps: PositiveInt = 10


class EvalConfig(_Frozen):
    """How answers are generated.

    Args:
        batch_size: Prompts at a time.
        split: Which examples are asked: "test", or "validation" where settings are chosen.
        scoring: Whose rules say what is right on a published benchmark: the public code's "coin",
            "hide" or "prism", the data sets' own, "official" (as VQAv2's and VizWiz's first was,
            "official-2015"), or content only, "lenient". All of them are kept with every
            prediction.
    """

    batch_size: PositiveInt = 16
    split: Literal["test", "validation"] = "test"
    scoring: Literal["coin", "hide", "prism", "official", "official-2015", "lenient"] = "coin"


class Profile(_Frozen):
    """How much of a benchmark a run uses.

    Args:
        name: For messages and tables.
        train_share: Share of every task's training examples.
        test_share: Share of every task's test examples.
        limit: At most so many training and so many test examples a task, chosen by their ids: the
            same ones on every machine, however the files are sorted.
        fraction: Share of every task's training and test examples, chosen in the same way.
        draw: Another number chooses other examples for `limit` and `fraction`.
        cells: Which cells of the matrix are measured. "all": zero-shot, every task seen, and the
            next one for forward transfer; "seen": the same without the next one; "ends": the task
            just learned, and every task at the end.
    """

    name: str
    train_share: float = Field(default=1.0, gt=0, le=1)
    test_share: float = Field(default=1.0, gt=0, le=1)
    limit: PositiveInt | None = None
    fraction: float | None = Field(default=None, gt=0, le=1)
    draw: NonNegativeInt = 0
    cells: Literal["all", "seen", "ends"] = "all"


PROFILES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lite": {"train_share": 0.5, "test_share": 0.5, "cells": "ends"},
    "demo": {"train_share": 0.5, "test_share": 0.5, "cells": "seen"},
}


class RunConfig(_Frozen):
    """Everything about one run.

    Args:
        benchmark: Its name.
        reading: Options of the benchmark's own, such as `instructions: Diverse` for coin.
        skip_bad: Leave out rows and pictures that cannot be used, and list them, instead of
            stopping at the first.
        method: The method and its options.
        match_budget: Give the method the rank at which it costs what `finetune` costs at
            `experts * rank`: in parameters stored, "total", or in those that a token is multiplied
            with, "active", or in bytes on disk, "state". Whatever grows is meant as it is after the
            last task. "none" leaves the rank alone.
        seed: Decides initial weights, order of examples and sketches.
        order: "default", a name the benchmark knows, or task names.
        backbone: "pocket", a folder, or a Hub name, as it was typed.
        backbone_folder: Where that folder lies, from anywhere; a run notes it by itself.
        dtype: "auto", or a torch dtype's name.
        quantize: "none", or "8bit" or "4bit" for a frozen language model kept by bitsandbytes.
        profile: How much of the benchmark is used.
        train: How tasks are trained.
        eval: How answers are generated.
        data: The benchmark's folder.
        out: The run's folder.
        threads: Threads of the CPU; torch's own choice if not given.
        device: "auto", "cpu", "cuda" ...
        report_to: Who is told the metrics while a task is learned: "tensorboard", "trackio",
            "wandb" or another that transformers knows.
        watch_routes: Steps between two looks at where the routers send the inputs of earlier
            tasks; 0 for never. What they see is logged, and the time they take is not the task's.
    """

    benchmark: str
    reading: dict[str, Any] = {}
    skip_bad: bool = False
    method: MethodConfig = MethodConfig(name="same")
    match_budget: Literal["none", "total", "active", "state"] = "none"
    seed: NonNegativeInt = 0
    order: str | tuple[str, ...] = "default"
    backbone: str = "pocket"
    backbone_folder: Path | None = None
    dtype: str = "auto"
    quantize: Literal["none", "8bit", "4bit"] = "none"
    profile: Profile = Profile(name="full")
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    data: Path | None = None
    out: Path | None = None
    threads: PositiveInt | None = None
    device: str = "auto"
    report_to: tuple[str, ...] = ()
    watch_routes: NonNegativeInt = 0

    @field_validator("report_to", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take "tensorboard,wandb" as well."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
            return value  # for pydantic to refuse
        names = [name.strip() for part in parts for name in part.split(",")]
        return tuple(dict.fromkeys(name for name in names if name not in ("", "none")))

    @property
    def folder(self) -> Path:
        """Where the run goes: `out`, or a name made of what was chosen."""
        if self.out is not None:
            return self.out
        order = self.order if isinstance(self.order, str) else "own-order"
        matched = f"match-{self.match_budget}"
        words = (order, self.profile.name, matched)
        extra = [word for word in words if word not in ("default", "full", "match-none")]
        name = "-".join([self.benchmark, self.method.name, *extra, f"s{self.seed}"])
        return Path("runs") / name

    @property
    def base(self) -> str:
        """Where the backbone is loaded from, see `located`."""
        return located(self.backbone, self.backbone_folder)

    def text(self) -> str:
        """Return the text of run.yaml: what decides the run's numbers, and where its base lies."""
        content = self.model_dump(mode="json", exclude=DO_NOT_MATTER)
        content["method"] = {"name": self.method.name, **self.method.options}
        if self.match_budget == "none":  # as in the runs from before there was a choice
            del content["match_budget"]
        if self.backbone_folder is None:
            del content["backbone_folder"]
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def located(name: str, folder: str | Path | None) -> str:
    """Say where a backbone that was recorded is loaded from.

    Args:
        name: As it was typed, a relative folder perhaps.
        folder: Where that folder was; None of a Hub name, or in an older record.

    Returns:
        The folder; the name if the folder is gone and the name leads to one from here.
    """
    if folder is None or (
        not Path(folder).is_dir() and os.path.isdir(os.path.expanduser(name))  # noqa: PTH111, PTH112
    ):
        return name
    return str(folder)
