"""A LoRA for every task, weighed once per sample by keys that a small network asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.parts import pool
from undrift.methods.parts.key_gate import KeyGate
from undrift.methods.parts.pool import GATE_FILE, PoolMethod
from undrift.tuner import Prompt


@dataclass(frozen=True, kw_only=True)
class Config(pool.Config):
    """The options of `pool.Config`, and those of the gate.

    Attributes:
        gate: "dynamic", every sample's own gate; or "static", at test the mean gate of the task
            that the sample comes from, which has to be told.
        hidden: The width of the query network in the middle.
        recall: The weight of the task recall, which keeps the gate from moving among old experts.
    """

    gate: Literal["dynamic", "static"] = "dynamic"
    hidden: int = 100
    recall: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden <= 0 or self.recall < 0:
            raise ConfigError(
                f"hidden is {self.hidden} and recall {self.recall}, expected a positive number and "
                "one that is not negative"
            )


class ProgLora(PoolMethod):
    """A LoRA for every task; a gate, decided once per sample, weighs them all in all layers.

        q = f(max over the prompt's embeddings),  g = softmax(k_i q / sqrt(d)),
        y = W0 x + s sum_{i<=t} g_i B_i A_i x                             in training and at test

    Trained in task t are A_t, B_t, its key k_t and the query network f. The gate sees the prompt
    alone, image features included. What the sources leave open is decided thus:

    - task recall, which shall keep the gate of old tasks where it was, needs no old data: on the
      current prompts, KL(softmax_{i<t} k_i f_{t-1} || softmax_{i<t} k_i f_t) is added to the loss
      with the weight `recall`. It can say something from the third task on. In a trainer of your
      own it takes part if `compute_loss` returns the method's `loss`;
    - the setting "static" is told at test which task a sample comes from (`asked`, an oracle)
      and uses the mean gate of that task over the samples of the second half of its training; a
      task that is not learned yet gets the gate of "dynamic", the default.
    """

    name: ClassVar[str] = "proglora"
    paper: ClassVar[str] = "ProgLoRA, Yu et al., ACL 2025 Findings"
    Config: ClassVar[type[base.Config]] = Config
    beside: ClassVar[tuple[str, ...]] = (GATE_FILE,)
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"dynamic": {"gate": "dynamic"}, "static": {"gate": "static"}}
    )
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._recall: Tensor | None = None
        self._late = False  # in the second half of the task

    def make_gate(self, width: int) -> KeyGate:
        """Make the first key and the query network.

        Args:
            width: d, of the embeddings.

        Returns:
            The gate of one expert.
        """
        return KeyGate(width, self.config.hidden)

    @property
    def key_gate(self) -> KeyGate:
        """The gate of the model that is bound.

        Raises:
            ConfigError: If there is none.
        """
        if not isinstance(self._gate, KeyGate):
            raise ConfigError("no model is bound; use the model that Method.attach returns")
        return self._gate

    def gates(self, prompt: Prompt) -> Tensor:
        """Decide the gates of a batch of prompts.

        Args:
            prompt: The prompts.

        Returns:
            (B, t), with a graph; or (t,), the mean gate of the task that is asked about.

        Raises:
            ConfigError: If the task is needed and not told.
        """
        gate = self.key_gate
        if self.config.gate == "static" and not gate.training:
            if self.asked is None:
                raise ConfigError(
                    "proglora-static has to be told which task its questions come from: set "
                    "method.asked to the task's number, or use proglora-dynamic"
                )
            mean = gate.mean_of(self.asked)
            if mean is not None:
                return mean
        there = prompt.mask.unsqueeze(-1)
        x = prompt.embeds.float().masked_fill(~there, -torch.inf).amax(1)
        found = gate(x)
        if gate.training and torch.is_grad_enabled():
            self._recall = gate.recall(x)
            if self._late:
                gate.add(found)
        return found

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute the model's loss, and the task recall where there is something to recall.

        Args:
            model: What `attach` returned.
            batch: The model's inputs, with labels.

        Returns:
            The loss, ().
        """
        self._recall = None
        loss = super().loss(model, batch)
        return loss if self._recall is None else loss + self.config.recall * self._recall

    # ------------------------------------------------------------ the mean gate, led through a task

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Begin the task, or go on in its first or second half."""
        super().on_train_begin(args, state, control, model, optimizer)
        self.key_gate.begin_sum(resumed=bool(state.global_step))
        self._late = 2 * state.global_step + 1 >= state.max_steps

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Sum the gates from the middle of the task on.

        Args:
            model: What `attach` returned.
            step: How many steps of the task are done, from 1.
            steps_total: How many it will be.
        """
        self._late = 2 * step + 1 >= steps_total

    def before_save(self, model: nn.Module) -> None:
        """Bring the sum of the gates to where a checkpoint finds it.

        Args:
            model: What `attach` returned.
        """
        self.key_gate.note()

    def task_end(self, model: nn.Module) -> None:
        """Keep the mean gate of the task.

        Args:
            model: What `attach` returned.
        """
        self.key_gate.end_sum()
        super().task_end(model)

    def idle_parameters(self, model: nn.Module) -> int:
        """Count the copy of f that only the recall asks.

        Args:
            model: What `attach` returned.

        Returns:
            Its parameters.
        """
        return sum(p.numel() for p in self.key_gate.past_query.parameters())


METHOD = ProgLora
