"""What every command builds: a backbone with a method's adapters, ready to learn and answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import set_seed

from undrift.data.collate import Encoded
from undrift.data.types import Example, Task
from undrift.errors import ConfigError
from undrift.methods.base import Method
from undrift.methods.shared.projector import train_projector
from undrift.registry import METHODS
from undrift.run.backbone import Backbone, Collator
from undrift.run.config import RunConfig
from undrift.run.progress import Progress
from undrift.run.setting_keys import unknown_setting
from undrift.rundir import read_record
from undrift.rundir.records import Manifest
from undrift.tuner import adapted


@dataclass
class Session:
    """A model with a method's adapters, and what makes its batches.

    Args:
        backbone: The backbone.
        model: The backbone's model with the adapters.
        method: The method.
        progress: Told about every batch.
        batch_size: Prompts at a time.
        scoring: The profile that decides what is strict, see `undrift.scoring.PROFILES`.

    Attributes:
        collator: Makes batches; of kept image features if they were kept before.
    """

    backbone: Backbone
    model: Any
    method: Method
    progress: Progress = field(default_factory=Progress)
    batch_size: int = 16
    scoring: str = "coin"
    collator: Collator = field(init=False)
    _prompts: dict[str, list[Encoded]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.collator = self.backbone.collator()

    @classmethod
    def open(
        cls,
        config: RunConfig,
        method: Method,
        backbone: Backbone,
        progress: Progress,
        *,
        announce: bool = True,
    ) -> Session:
        """Put a method's adapters on a backbone, and train its projector if that is asked for.

        Args:
            config: The run.
            method: The method.
            backbone: The backbone, its image features kept.
            progress: Told about every batch.
            announce: Tell which linears are adapted, which are not, and why.

        Returns:
            The session.
        """
        backbone.encode_with(getattr(method.config, "encoder", None))
        set_seed(config.seed)
        model: Any = method.attach(backbone.model)
        if config.train.train_projector and method.needs_training:
            train_projector(model)
        if announce and method.needs_training:
            progress.event("adapted", adapted(model, method.config.targets))
        return cls(backbone, model, method, progress, config.eval.batch_size, config.eval.scoring)

    def prompts(self, task: Task) -> list[Encoded]:
        """Return a task's test prompts, tokenised once."""
        if task.name not in self._prompts:
            self._prompts[task.name] = self.collator.encode(task.test, answered=False)
        return self._prompts[task.name]


def keep_features(
    config: RunConfig, backbone: Backbone, examples: Iterable[Example], progress: Progress
) -> None:
    """Compute the image features of examples once, where the backbone's family allows it."""

    def done(count: int, total: int, new: int) -> None:
        if count == new:
            progress.stage("image features, once per backbone", total)
        progress.advance(new)

    if not config.train.train_projector:  # its features change
        backbone.prepare([path for example in examples for path in example.images], done)


def make_method(
    name: str, options: Mapping[str, Any], begun: Mapping[str, Any] = MappingProxyType({})
) -> Method:
    """Make a method.

    Args:
        name: Such as "same", or "same-paper" for one of its settings.
        options: Its options.
        begun: All options that it was begun with, see `options_used`. They count where `options`
            says nothing: a default that has changed since does not change what is half learned.

    Returns:
        The method.

    Raises:
        UnknownName: If there is no such method, setting or option.
        ConfigError: If an option has a value that cannot be used, or it was begun with one that
            this undrift does not know.
    """
    stem, setting = METHODS.split(name)
    made: type[Method] = METHODS.load(stem)
    known = [f"method.{option.name}" for option in fields(made.Config)]
    kinds = get_type_hints(made.Config)
    begun = {key: value for key, value in begun.items() if key != "learning_rate"}
    if strange := [key for key in begun if f"method.{key}" not in known]:
        raise ConfigError(
            f"it was begun with method.{strange[0]} = {begun[strange[0]]!r}, which this undrift's "
            f"{stem} does not know; go on with the undrift that wrote it"
        )
    options = {**begun, **options}
    for key, value in options.items():
        if f"method.{key}" not in known:
            raise unknown_setting(f"method.{key}", known, {"method": {"name": name}})
        try:
            TypeAdapter(kinds[key]).validate_json(json.dumps(value), strict=True)
        except (ValidationError, TypeError, ValueError) as error:
            expected = getattr(kinds[key], "__name__", kinds[key])
            raise ConfigError(f"method.{key}: expected {expected} (got {value!r})") from error
    return made(setting, **options)


def settings_begun(file: Path, method: str) -> Mapping[str, Any]:
    """Read from a manifest which options a method was begun with; empty where it was not."""
    there = read_record(file, Manifest) if file.is_file() else {}
    return there.get("settings", {}) if there.get("method") == method else {}


def rate_of(config: RunConfig, method: Method) -> float:
    """Return the peak learning rate: the run's own, or else the method's."""
    return config.train.learning_rate or method.learning_rate


def options_used(config: RunConfig, method: Method) -> dict[str, Any]:
    """Return all options of a method as they are, and the learning rate."""
    return {**asdict(method.config), "learning_rate": rate_of(config, method)}
