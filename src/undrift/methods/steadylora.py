"""A plain LoRA whose steps go through the same two metrics: no router, no experts, mergeable.

The adapter is an ordinary LoRA that every server can serve. What learning one more task needs (the
histories and C_z) lies beside it in a second file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core import Metrics, steps
from undrift.core.stepping import StepTransform
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.finetune import Finetune
from undrift.methods.parts.adapter import active_adapter, peft_model
from undrift.methods.parts.past import Basis, Past, a_turn, statistics_options, z_metric
from undrift.methods.parts.watch import (
    factors,
    load_statistics,
    lora_layers,
    save_statistics,
    watch,
)
from undrift.tuner.upstream import LoraLayer

STATE_FILE = "steadylora_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Config(base.Config, Metrics):
    """The options of `base.Config`, and all of `core.Metrics`."""

    def __post_init__(self) -> None:
        base.Config.__post_init__(self)
        Metrics.__post_init__(self)


@dataclass(frozen=True)
class _Linear:
    """One adapted linear, and what its steps go through; None where a step is free."""

    layer: LoraLayer
    past: Basis
    turn_a: StepTransform | None
    b_metric: Tensor | None


class SteadyLora(Finetune):
    """One mergeable LoRA with the A metric and the B metric on its steps [Eq. 14, 15]."""

    name: ClassVar[str] = "steadylora"
    paper: ClassVar[str] = "ours"
    Config: ClassVar[type[base.Config]] = Config
    beside: ClassVar[tuple[str, ...]] = (STATE_FILE,)
    ends_itself: ClassVar[bool] = True
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._factors: tuple[Parameter, ...] = ()
        self._watch = ExitStack()
        self._adapter = "default"
        self._layers: dict[str, LoraLayer] = {}
        self._past = Past({}, self.config)
        self._linears: list[_Linear] = []

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the LoRA on a model, and watch its inputs.

        Args:
            model: The backbone.

        Returns:
            A PeftModel; B is zero, so it answers as before.
        """
        wrapped = super().attach(model)
        self._observe(wrapped)
        return wrapped

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: fresh sums, the history's metrics made ready.

        Args:
            model: What `attach` returned, or a user's model with a `LoraConfig` on it.
            task_index: The number of the task, from 1.
            steps_total: How many optimiser steps the task will take.
        """
        self._observe(model)
        self._past.start()
        self._prepare()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the sums that the checkpoint brought.

        Args:
            model: As for `task_start`.
            task_index: As for `task_start`.
            steps_total: As for `task_start`.
        """
        self._observe(model)
        self._past.start(resumed=True)
        self._prepare()

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Re-base the sketches when it is due.

        Args:
            model: What `attach` returned.
            step: How many steps of the task are done, from 1.
            steps_total: How many it will be.

        Raises:
            ConfigError: If the first step has gone past everything that is watched.
        """
        seen = (each.usage.tokens for each in self._past.statistics.values())
        if step == 1 and not any(bool(tokens > 0) for tokens in seen):
            raise ConfigError(
                "a step was taken, and no input of the LoRA was seen: its forward pass goes round "
                "the modules lora_A and lora_B, as fused kernels do; train with PEFT's own"
            )
        self._past.step_end(step, steps_total)

    def before_save(self, model: nn.Module) -> None:
        """Bring the running sums to where `on_save` finds them.

        Args:
            model: What `attach` returned.
        """
        self._past.flush()

    def task_end(self, model: nn.Module) -> None:
        """Merge the task into the history.

        Args:
            model: What `attach` returned.
        """
        self._past.end()
        self._linears = []

    # ------------------------------------------------------------ what becomes of a step

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the steps of A and B.

        Args:
            model: What `attach` returned.

        Returns:
            The transforms of every linear that has a history.
        """
        return dict(self._turns()) if self.config.space != "gradient" else {}

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the gradients, instead or as well, where the setting says so.

        Args:
            model: What `attach` returned.

        Returns:
            The transforms of every linear that has a history.
        """
        return dict(self._turns()) if self.config.space != "step" else {}

    def _turns(self) -> Iterator[tuple[Parameter, StepTransform]]:
        for linear in self._linears:
            A, B = factors(linear.layer, self._adapter)
            if linear.turn_a is not None:
                yield A, linear.turn_a
            if linear.b_metric is not None:
                yield B, partial(_turn_b_z, P=linear.b_metric)
            elif self.config.b_metric == "aca" and linear.past[1].numel():
                V, s = linear.past
                yield B, partial(_turn_b_aca, A=A.detach(), V=V, s=s, mu_b=self.config.mu_b)

    def _prepare(self) -> None:
        bases = self._past.bases()
        self._linears = [
            _Linear(
                layer,
                bases[name],
                turn_a=a_turn(bases[name], self.config),
                b_metric=z_metric(self._past.statistics[name], self.config),
            )
            for name, layer in self._layers.items()
        ]

    # ------------------------------------------------------------ observation and state

    def _observe(self, model: nn.Module) -> None:
        """Watch the active LoRA; one that is watched already stays as it is."""
        wrapped = peft_model(model)
        adapter = active_adapter(wrapped)
        layers = lora_layers(wrapped, adapter)
        found = tuple(factors(layer, adapter)[0] for layer in layers.values())
        if [*map(id, found)] == [*map(id, self._factors)]:
            return
        self._adapter, self._layers, self._factors = adapter, layers, found
        self._watch.close()
        self._watch, statistics = watch(wrapped, adapter, **statistics_options(self.config))
        self._past = Past(statistics, self.config)

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write the file that learning one more task needs.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        save_statistics(self._past.statistics, directory / STATE_FILE)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read the file beside the LoRA.

        Args:
            model: What `attach` returned, or a PeftModel with a LoRA.
            directory: The adapter's folder.
        """
        self._observe(model)
        load_statistics(self._past.statistics, directory / STATE_FILE)

    def forget(self, model: nn.Module) -> None:
        """Begin with an empty history.

        Args:
            model: What `attach` returned, or a PeftModel with a LoRA.
        """
        self._factors = ()
        self._observe(model)

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count the second file.

        Args:
            model: What `attach` returned.
            tasks: Not used; the file keeps its size.

        Returns:
            Bytes of tensors.
        """
        kept = (t for each in self._past.statistics.values() for t in each.state_dict().values())
        return sum(t.numel() * t.element_size() for t in kept)


def _turn_b_z(dB: Tensor, P: Tensor) -> Tensor:
    return dB @ P  # P is symmetric


def _turn_b_aca(dB: Tensor, A: Tensor, V: Tensor, s: Tensor, mu_b: float) -> Tensor:
    return steps.expert_b_step_aca(dB.mT[None], A[None], V, s, mu_b)[0].mT


METHOD = SteadyLora
