"""Pools whose experts are weighed by how much a prompt looks like the tasks they learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from undrift.methods import base
from undrift.methods.parts import pool
from undrift.methods.parts.adapter import peft_model
from undrift.methods.parts.features import FeatureConfig, embedding_centre, features
from undrift.methods.parts.matcher import MATCHER_FILE, Matching, TaskMatcher
from undrift.methods.parts.pool import PoolMethod
from undrift.tuner import Gates, Prompt


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config, FeatureConfig):
    """The options of a pool, and who looks at the prompts."""


class MatchedPool(PoolMethod):
    """While a task is learned its expert works alone; otherwise all are weighed by a matching."""

    Config: ClassVar[type[base.Config]] = Config
    beside: ClassVar[tuple[str, ...]] = (MATCHER_FILE,)
    config: Any  # each method has more options

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._bound: nn.Module | None = None
        self._centre = torch.zeros(0)
        self._matcher = TaskMatcher(self.matching(), 0)
        self._learning = False

    # ------------------------------------------------------------ what a method overrides

    def matching(self) -> Matching:
        """Say how prompts are matched with tasks."""
        raise NotImplementedError

    def mixed(self, weights: Tensor) -> Gates | Mapping[str, Gates]:
        """Make gates of what a matching gave; by default it is the gates of every linear.

        Args:
            weights: Of every expert for every prompt, (B, E).

        Returns:
            See `undrift.tuner.gates`.
        """
        return weights

    # ------------------------------------------------------------ gates

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates from now on; what is known of its tasks stays.

        Args:
            model: What `attach` returned, or a user's model with the `peft_config` on it.
        """
        super().bind(model)
        wrapped = peft_model(model)
        if self._bound is not wrapped:
            self._bound, self._centre = wrapped, embedding_centre(wrapped)
            size = self._centre.shape[0]
            self._matcher = TaskMatcher(self.matching(), size, self._centre.device)

    def gates(self, prompt: Prompt) -> Gates | Mapping[str, Gates]:
        """Match the prompts; those that are trained on are added to the task's prototype instead.

        Args:
            prompt: The prompts.

        Returns:
            The newest expert alone while a task is learned, and before the first.
        """
        found = features(prompt, self._centre, self.config.encoder)
        if self._learning and self._bound is not None and self._bound.training:
            self._matcher.see(found)
        if self._learning or not self._matcher.tasks or self._bound is None:
            return "newest"
        weights = self._matcher.match(found, self.asked)
        missing = self.past(self._bound) + 1 - self._matcher.tasks  # an expert not yet taught
        return self.mixed(functional.pad(weights, (0, missing)))

    def facts(self) -> dict[str, Any]:
        """Tell how often the best task was the one that was asked, since the last call."""
        return self._matcher.identified.facts()

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: from the second on with a new expert, and with an empty prototype.

        Args:
            model: What `attach` returned, or a user's model with the `peft_config` on it.
            task_index: The number of the task, from 1.
            steps_total: How many optimiser steps the task will take.
        """
        super().task_start(model, task_index, steps_total)
        self._matcher.start_task()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the experts and the sums that the checkpoint brought.

        Args:
            model: As for `task_start`.
            task_index: As for `task_start`.
            steps_total: As for `task_start`.
        """
        super().task_resume(model, task_index, steps_total)
        self._learning = True

    def before_save(self, model: nn.Module) -> None:
        """Bring the sums of all processes to the one that writes.

        Args:
            model: What `attach` returned.
        """
        self._matcher.flush()

    def task_end(self, model: nn.Module) -> None:
        """End a task: its prototype is made.

        Args:
            model: What `attach` returned.
        """
        super().task_end(model)
        self._matcher.end_task()
        self._learning = False

    # ------------------------------------------------------------ state and its size

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write the prototypes.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        super().save_beside(model, directory)
        self._matcher.save(directory)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read the prototypes, whatever the number of tasks that were learned.

        Args:
            model: What `attach` returned, or a PeftModel with a pool.
            directory: The adapter's folder.
        """
        super().load_beside(model, directory)
        self._matcher.load(directory)
        self._learning = False

    def forget(self, model: nn.Module) -> None:
        """Begin without prototypes.

        Args:
            model: What `attach` returned, or a PeftModel with a pool.
        """
        self._bound = None
        super().forget(model)

    def finish(self, model: nn.Module, steps_total: int) -> None:
        """Make the prototype of a task that was cut off.

        Args:
            model: What `attach` returned, or a PeftModel with a pool.
            steps_total: Not used.
        """
        self.task_end(model)

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count the file of prototypes.

        Args:
            model: What `attach` returned.
            tasks: How many tasks.

        Returns:
            Bytes of tensors.
        """
        return super().extra_bytes(model, tasks) + self._matcher.size_after(tasks)
