"""Methods that give every task an expert of its own: the pool grows, past experts stay as they are.

A method says what an expert counts for, from the prompt alone (`gates`), and may train something
that decides it (`make_gate`), which lives on the model under `undrift_gate`, so that any trainer's
optimiser finds it, and is saved in a file beside the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.prompt_features import FeatureConfig, embedding_centre
from undrift.methods.shared.state import State
from undrift.tuner import ForwardContext, Gates, Prompt, restore_float32
from undrift.tuner.distributed import full_parameters
from undrift.tuner.pool_lora import (
    PoolLoraConfig,
    PoolLoraLayer,
    gate_context,
    grow,
    make_room,
    note_past,
    pool_layers,
)

GATE = "undrift_gate"


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`; one means something else.

    Attributes:
        experts: Not used: every task brings one expert of rank `rank`, so after as many tasks the
            pool is as large as a LoRA of rank `experts * rank`.
    """


class Gate(nn.Module):
    """What a method trains to decide the gates; what is past in it never requires gradients.

    Its running sums are saved beside it, but are no buffers: DDP would give the first process's to
    all.
    """

    def running(self) -> dict[str, Tensor]:
        """Name the attributes that every process sums up by itself."""
        return {}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **named: Any) -> None:
        """Make room for the buffers of a state, which may be of another number of tasks."""
        for name, value in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != value.shape:
                setattr(self, name, value.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, value in self.running().items():
            setattr(self, name, value.to(fn(value).device))
        return self

    def grow(self, past: int) -> None:
        """Let what belonged to the last task become past, and begin anew; by default nothing does.

        Args:
            past: How many tasks are past.
        """

    def make_room(self, past: int) -> None:
        """Bring what is past to its size after so many tasks; its values are then loaded.

        Args:
            past: How many.
        """

    def end_task(self) -> None:
        """Keep of a task what its sums say, which are those of all processes."""


G = TypeVar("G", bound=Gate)


class PoolMethod(base.Method, Generic[G]):
    """One expert a task, on every linear.

    Args:
        setting: As for `Method`.
        **options: As for `Method`.

    Attributes:
        reads_prompts: Whether `gates` is asked about every prompt; else every expert counts 1.
    """

    parts: ClassVar[base.Parts] = "router"
    reads_prompts: ClassVar[bool] = True
    alone: ClassVar[bool] = False
    state_name: ClassVar[str] = "gate"
    Config: ClassVar[type[base.Config]] = Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._context = ForwardContext()
        self._gate: G | None = None
        self._model: Any = None  # that is bound
        self._centre = torch.zeros(0)  # of its embeddings, where features are taken from it
        self._adapter = "default"
        self._layers: dict[str, PoolLoraLayer] = {}

    # ------------------------------------------------------------ what a method may override

    def gates(self, prompt: Prompt) -> Gates | Mapping[str, Gates]:
        """Say what every expert counts for; asked once for every batch of prompts.

        Args:
            prompt: The prompts.

        Returns:
            See `undrift.tuner.Gates`, oldest expert first; in a graph where they are trained.
        """
        raise NotImplementedError

    def make_gate(self, width: int) -> G | None:
        """Make what is trained to decide the gates; by default there is nothing.

        Args:
            width: d, of the embeddings.

        Returns:
            It, for a pool of one expert.
        """
        return None

    def grow(self, model: nn.Module) -> None:
        """Give the pool the expert of a task that begins."""
        grow(peft_model(model), self._adapter)
        if self._gate is not None:
            self._gate.grow(self.past(model))

    # ------------------------------------------------------------ the model

    @property
    def gate(self) -> G:
        """What decides the gates of the model that is bound.

        Raises:
            ConfigError: If there is none.
        """
        if self._gate is None:
            raise ConfigError("no model is bound; use the model that Method.attach returns")
        return self._gate

    def peft_config(self, model: nn.Module | None = None) -> PoolLoraConfig:
        """Make the configuration of the adapter, for `get_peft_model` or a trainer."""
        return PoolLoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha_over_rank * self.config.rank,
            target_modules=self.config.targets,
            gates="given" if self.reads_prompts else "all",
        )

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the adapter on a model, and decide its gates from now on."""
        wrapped = super().attach(model)
        self.bind(wrapped)
        return wrapped

    def bind(self, model: nn.Module) -> None:
        """Decide a model's gates from now on."""
        wrapped = peft_model(model)
        self._adapter, self._layers = active_adapter(wrapped), pool_layers(wrapped)
        self._context = gate_context(wrapped)
        body: Any = wrapped.get_base_model()
        table = body.get_input_embeddings().weight
        known = wrapped is self._model and self._centre.device == table.device
        if not known and isinstance(self.config, FeatureConfig):
            self._centre = embedding_centre(wrapped)
        self._model = wrapped
        gates = next(iter(self._layers.values())).pool_gates
        if self._adapter not in gates:
            made = self.make_gate(table.shape[1])
            if made is not None:
                gates[self._adapter] = made.to(table.device)
                body.add_module(
                    GATE if self._adapter == "default" else f"{GATE}_{self._adapter}", made
                )
        self._gate = cast("G | None", gates.get(self._adapter))
        if self.reads_prompts:
            ForwardContext.attach(body, on_prompt=self._decide)

    def past(self, model: nn.Module) -> int:
        """Return how many experts are past, on the linear that has the most."""
        wrapped = peft_model(model)
        return note_past(wrapped, active_adapter(wrapped))

    def _decide(self, prompt: Prompt) -> None:
        if self._adapter not in self._model.active_adapters:
            raise ConfigError(
                f"{self.name} decides the gates of the adapter {self._adapter!r}, and "
                f"{', '.join(map(repr, self._model.active_adapters))} is active: call bind(model) "
                "of the method that has learned it, or set_adapter"
            )
        self._context.set_gates(self.gates(prompt))

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: from the second on with a new expert, unless it is there already."""
        self.task_resume(model, task_index, steps_total)
        if self.past(model) < task_index - 1:
            with full_parameters(model, [self._adapter]):
                self.grow(model)
        self._empty_sums()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the experts that the checkpoint brought."""
        self.bind(model)
        restore_float32(model)
        gate = self._gate if self._gate is not None else nn.Module()
        for held in (*gate.parameters(), *gate.buffers()):
            if held.is_floating_point() and held.dtype.itemsize < 4:  # a trainer cast it
                held.data = held.data.float()
        self._check_gate_is_trained()

    def _check_gate_is_trained(self) -> None:
        """Make sure that what decides the gates is among what the trainer's optimiser trains."""
        groups = getattr(self._optimizer, "param_groups", None)
        if groups is None or self._gate is None:
            return
        held = {id(p) for group in groups for p in group["params"]}
        if any(p.requires_grad and id(p) not in held for p in self._gate.parameters()):
            raise ConfigError(
                f"the optimiser does not train what decides {self.name}'s gates: call "
                "method.take_up(model) before you make it"
            )

    def task_end(self, model: nn.Module) -> None:
        """End a task: its sums are made use of, and the gates of its last batch forgotten."""
        if self._gate is not None:
            with self.summed(model):
                self._gate.end_task()
            self._empty_sums()
        self._context.set_gates({})

    def _empty_sums(self) -> None:
        for each in self._gate.running().values() if self._gate is not None else ():
            each.zero_()

    # ------------------------------------------------------------ state and its size

    def state(self, model: nn.Module) -> State:
        """Name what decides the gates."""
        if not self._context.layers:
            self.bind(model)
        if self._gate is None:
            return State()
        sums = self._gate.running()
        return State({**self._gate.state_dict(), **sums}, [*sums.values()])

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back what decides the gates, whatever the number of tasks that were learned."""
        if self._gate is not None:
            self._gate.make_room(self.past(model))
        super().restore(model, saved)

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh pool to its size after so many tasks."""
        make_room(peft_model(model), tasks - 1, self._adapter)
        if self._gate is not None:
            self._gate.make_room(tasks - 1)

    # ------------------------------------------------------------ as a callback of a trainer

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take the adapter up before the trainer makes its optimiser, which then has the gate."""
        super().on_init_end(args, state, control, model)
        self.take_up(model)
