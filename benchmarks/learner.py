"""A method that learns: step after step, as a trainer makes it, on any model and batch."""

from __future__ import annotations

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from benchmarks.answering import questions
from undrift.data.types import Example
from undrift.methods.base import Method, Prepare
from undrift.run.backbone import Backbone
from undrift.run.image_features import FeatureStore

STEPS = 2  # of every task before the one that is measured
REMEMBERED = [Example(str(i), "what is it?", ("it",)) for i in range(8)]  # by replay

Reading = Callable[[PreTrainedModel, Mapping[str, Any]], AbstractContextManager[Mapping[str, Any]]]


def as_it_is(
    model: PreTrainedModel, batch: Mapping[str, Any]
) -> AbstractContextManager[Mapping[str, Any]]:
    """Give the batch to the model as it is."""
    return nullcontext(batch)


@dataclass(frozen=True)
class Subject:
    """What is learned: one batch, over and over.

    Attributes:
        model: The frozen model; every learner has modules of its own around the same weights.
        batch: As a loader gives it.
        reading: Makes a context in which the model is called with what it yields.
        inputs: Makes the model's inputs of the loader's batch, for methods that read those.
    """

    model: PreTrainedModel
    batch: dict[str, Any]
    reading: Reading = as_it_is
    inputs: Prepare = dict


def pocket() -> Subject:
    """Questions about pictures of noise, with answers, and image features that are kept."""
    backbone = Backbone.load("pocket", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        examples = [replace(e, answers=("blue circle",)) for e in questions(Path(folder))]
        backbone.store = FeatureStore(Path(folder) / "features", backbone.encode)
        backbone.store.prepare([picture for e in examples for picture in e.images])
        collator = backbone.collator()
        batch = collator.collate(collator.encode(examples, answered=True))

    @contextmanager
    def reading(model: PreTrainedModel, batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        own = replace(backbone, model=model)
        own.store = backbone.store
        with own.reading(batch) as inputs:
            yield inputs

    return Subject(backbone.model, batch, reading, backbone.inputs)


class Clock:
    """Adds up CPU seconds by the part of a step that they were spent in."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self._since = time.process_time()

    def lap(self, part: str) -> None:
        """Say what the time since the last lap was spent in."""
        now = time.process_time()
        self.parts[part] += now - self._since  # pyright: ignore[reportArgumentType]
        self._since = now


class Learner:
    """A method inside a task, after earlier ones of two steps each.

    Args:
        method: The method, which has learned nothing yet.
        subject: What it learns.
        tasks: How many tasks, the measured one included.
        steps: How many steps that one has.

    Attributes:
        model: What is trained.
        optimizer: By this.
    """

    def __init__(self, method: Method, subject: Subject, *, tasks: int, steps: int) -> None:
        self.method, self.subject = method, subject
        shared = {id(p): p for p in (*subject.model.parameters(), *subject.model.buffers())}
        self._base = copy.deepcopy(subject.model, shared)
        set_seed(0)
        self.model: nn.Module = method.attach(self._base).train()
        for _ in range(tasks - 1):
            self._begin(STEPS)
            for _ in range(STEPS):
                self.step()
            self._end()
        self._begin(steps)

    def _begin(self, steps: int) -> None:
        """Begin a task as a trainer does: an optimiser of its own."""
        trained = (p for p in self.model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)
        self.clock = Clock()
        self._state = SimpleNamespace(global_step=0, max_steps=steps, is_world_process_zero=True)
        args = SimpleNamespace(output_dir="nowhere", resume_from_checkpoint=None)
        self.method.examples(REMEMBERED, self.method.task_index)
        # The method's own hooks come between these two pairs.
        self.optimizer.register_step_pre_hook(lambda *_: self.clock.lap("clipping"))
        self.optimizer.register_step_post_hook(lambda *_: self.clock.lap("optimiser"))
        self.method.on_train_begin(
            args, self._state, self._control(), model=self.model, optimizer=self.optimizer
        )
        self.optimizer.register_step_pre_hook(lambda *_: self.clock.lap("transforms"))
        self.optimizer.register_step_post_hook(lambda *_: self.clock.lap("transforms"))

    def _end(self) -> None:
        with self.method.preparing(self.subject.inputs):  # EWC reads the loader's batches
            self.method.on_train_end(
                None,
                self._state,
                self._control(),
                model=self.model,
                optimizer=self.optimizer,
                train_dataloader=[self.subject.batch],
            )

    def loss(self) -> Tensor:
        """Compute the loss of the batch."""
        with self.subject.reading(self._base, self.subject.batch) as inputs:
            return self.method.loss(self.model, {**inputs, "use_cache": False})

    def step(self) -> None:
        """Take one optimiser step."""
        self.clock.lap("elsewhere")
        self.loss().backward()
        self.clock.lap("forward and backward")
        trained = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.clock.lap("clipping")
        self._state.global_step += 1
        self.method.on_step_end(
            None, self._state, self._control(), model=self.model, optimizer=self.optimizer
        )
        self.clock.lap("after the step")

    @staticmethod
    def _control() -> SimpleNamespace:
        return SimpleNamespace(should_save=False)
