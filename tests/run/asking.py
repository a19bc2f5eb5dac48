"""Answers of a model in batches of a given size, and a task taught to it, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undrift.data.types import Example
from undrift.methods.base import Method
from undrift.run.answer import answers
from undrift.run.backbone import Backbone
from undrift.run.config import TrainConfig
from undrift.run.session import Session, make_method
from undrift.run.trainer import train


def said(
    backbone: Backbone, model: Any, examples: Sequence[Example], size: int, new: int
) -> dict[str, str]:
    """What the model answers, by the examples' ids."""
    session = Session(backbone, model, make_method("zeroshot", {}), batch_size=size)
    return dict(answers(session, session.collator.encode(examples, answered=False), new))


def taught(
    backbone: Backbone,
    model: Any,
    method: Method,
    examples: Sequence[Example],
    settings: TrainConfig,
    folder: Path,
) -> list[dict[str, Any]]:
    """Train a method's model on examples with seed 0; return what was logged."""
    session = Session(backbone, model, method)
    return train(session, examples, settings, folder, 0)
