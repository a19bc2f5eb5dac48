"""What a method is: an object that the training loop, anyone's training loop, calls at its moments.

Only `attach` is required. A method never calls backward or step: precision, accumulation and ranks
stay the trainer's business. It is a `TrainerCallback`, so the same object serves undrift's own run
and a user's `Trainer` or `SFTTrainer`::

    for task in tasks:
        Trainer(model, args, train_dataset=task, callbacks=[method]).train()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import Parameter
from transformers import TrainerCallback

from undrift.core.settings import check_choices
from undrift.core.step_hook import StepHook, StepTransform, check_steps_outside
from undrift.data.types import Example
from undrift.errors import ConfigError, unknown
from undrift.methods.shared.adapter import check_trained, row_major
from undrift.methods.shared.carried import Carried
from undrift.methods.shared.tensor_files import checkpoint_folder

Prepare = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Parts = Literal["experts", "router", "router and experts", "entangled"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every method can be told; the fields are the keys under `method:` in a run's YAML.

    Attributes:
        experts: N, how many experts a linear gets. A method without experts has one LoRA of rank
            `experts * rank` instead, so that sizes match.
        rank: r, the rank of EACH expert.
        alpha_over_rank: What an adapter's output is multiplied by, LoRA's alpha / r.
        targets: Which linears of the language model are adapted: "ffn", "attention", "all", or a
            regular expression over full module names.

    Raises:
        ConfigError: If a value cannot be used.
    """

    experts: int = 8
    rank: int = 8
    alpha_over_rank: float = 2.0
    targets: str = "ffn"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("experts", "rank", "alpha_over_rank"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number")


class Method(Carried, TrainerCallback):
    """One way to learn a sequence of tasks.

    Args:
        setting: One of the method's named settings; its default where None.
        **options: Fields of the method's `Config`, which win over the setting.

    Attributes:
        name: The method's name, the stem of its file.
        paper: The paper it follows, in one line.
        Config: The frozen dataclass of its options.
        schedule: "sequential", one training per task; "joint", one on the union of all; "none".
        parts: What later tasks change, and so what can drift: "experts", one adapter without a
            router; "router", who answers, while what a task has taught stays bit for bit; "router
            and experts", each of which can be put back for itself; or "entangled", both, which
            cannot be told apart.
        learning_rate: The rate it is trained with where nothing else is said.
        settings: Its named settings, each a mapping of options.
        alone: Whether PEFT alone can answer with its adapters, without the method.
        beside: The files in which `save_beside` keeps what the adapter itself does not hold.
        config: The options it has.
        task_index: The number of the task to learn next, or now, from 1.
        asked: The number of the task that is asked about, inside `predicting`; else None.

    Raises:
        UnknownName: If there is no such setting or option; the nearest is named.
        ConfigError: If an option has a value that cannot be used.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    Config: ClassVar[type[Config]] = Config
    schedule: ClassVar[Literal["sequential", "joint", "none"]] = "sequential"
    parts: ClassVar[Parts] = "experts"
    learning_rate: ClassVar[float] = 2e-4
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    alone: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        if setting is not None and setting not in self.settings:
            raise unknown(f"setting of {self.name}", setting, self.settings)
        known = [field.name for field in fields(self.Config)]
        for key in options:
            if key not in known:
                raise unknown(f"key of {self.name}", key, known)
        self.config = self.Config(**{**self.settings.get(setting or "", {}), **options})
        self.task_index = 1
        self.asked: int | None = None
        self._inputs_of: Prepare = dict
        self._hooks: list[StepHook] = []

    @classmethod
    def summary(cls) -> str:
        """Say the method's idea in one sentence: the first line of its docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def needs_training(self) -> bool:
        """Whether there is anything to train."""
        return self.schedule != "none"

    # ------------------------------------------------------------ what a method may override

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the method's adapters on a model.

        Args:
            model: The backbone, frozen or not.

        Returns:
            The model to train. Until the first step it answers as before, up to rounding.
        """
        raise NotImplementedError

    def examples(self, train: Sequence[Example], index: int) -> Sequence[Example]:
        """Choose what to train on.

        Args:
            train: The task's own training examples.
            index: The number of the task, from 1.

        Returns:
            The examples to train on, by default the task's own.
        """
        return train

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task.

        Args:
            model: What `attach` returned.
            task_index: The number of the task, from 1.
            steps_total: How many optimiser steps the task will take.
        """

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on inside a task whose checkpoint was loaded; by default as if it began.

        Args:
            model: As for `task_start`.
            task_index: As for `task_start`.
            steps_total: As for `task_start`.
        """
        self.task_start(model, task_index, steps_total)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of a batch, by default the model's own.

        Args:
            model: What `attach` returned.
            batch: The model's inputs, with labels.

        Returns:
            The loss, ().
        """
        return model(**batch).loss

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Say what becomes of the optimiser's steps; asked anew at every step.

        Args:
            model: What `attach` returned.

        Returns:
            For each parameter to be held, what turns its step; none by default.
        """
        return {}

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Say what becomes of the gradients before the optimiser sees them.

        Args:
            model: What `attach` returned.

        Returns:
            As `step_transforms`; none by default.
        """
        return {}

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Do what is due after an optimiser step.

        Args:
            model: What `attach` returned.
            step: How many steps of the task are done, from 1.
            steps_total: How many it will be.
        """

    def before_save(self, model: nn.Module) -> None:
        """Bring running state to where a checkpoint inside a task will find it.

        Args:
            model: What `attach` returned.
        """

    def task_end(self, model: nn.Module) -> None:
        """End a task: keep what later tasks need.

        Args:
            model: What `attach` returned.
        """

    @contextmanager
    def predicting(self, model: nn.Module, task: int | None = None) -> Iterator[None]:
        """Within this context the model is asked, not taught.

        Args:
            model: What `attach` returned.
            task: The number of the task that is asked about, from 1, where whoever asks knows it:
                for oracles, and for the accuracy of those who guess it; never for an answer
                otherwise.
        """
        before, self.asked = self.asked, task
        try:
            yield
        finally:
            self.asked = before

    @contextmanager
    def preparing(self, prepare: Prepare) -> Iterator[None]:
        """Within this context `prepare` makes the model's inputs of a trainer's batches.

        Elsewhere a batch of the trainer's loader is what the model takes.

        Args:
            prepare: Called with a batch of the loader.
        """
        before, self._inputs_of = self._inputs_of, prepare
        try:
            yield
        finally:
            self._inputs_of = before

    def facts(self) -> dict[str, Any]:
        """Tell what there is to know about the answers given since the last call.

        Returns:
            Numbers by name, such as how often the task was identified; nothing by default.
        """
        return {}

    def peft_config(self, model: nn.Module | None = None) -> Any:
        """Make the configuration of the adapter, for `get_peft_model` or a trainer.

        Args:
            model: Whose language model is adapted; it is looked up in the model that the
                configuration is put on where not given.

        Returns:
            A configuration of PEFT's.

        Raises:
            ConfigError: If the method has no adapter.
        """
        raise ConfigError(f"{self.name} trains nothing, so there is no adapter to configure")

    # ------------------------------------------------------------ what it costs

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh adapter to its size after so many tasks, to see what it will cost.

        Args:
            model: What `attach` returned; its tensors may have shapes only.
            tasks: How many tasks; nothing is done where the adapter does not grow.
        """

    def idle_parameters(self, model: nn.Module) -> int:
        """Count those of its parameters that a token is NOT multiplied with when the model answers.

        Args:
            model: What `attach` returned.

        Returns:
            By default 0.
        """
        return 0

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count what is saved after so many tasks beside the adapter's own file.

        Args:
            model: What `attach` returned, with room made; its tensors may have shapes only.
            tasks: How many tasks.

        Returns:
            Bytes of tensors; by default 0.
        """
        return 0

    def resting(self, model: nn.Module) -> dict[str, int] | None:
        """Count the experts that rest in the task which is learned; asked before the task ends.

        Args:
            model: What `attach` returned.

        Returns:
            By linear; None, the default, where no expert ever rests.
        """
        return None

    # ------------------------------------------------------------ as a callback of a trainer

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Begin the task, or resume it, and attach the transforms to the optimiser."""
        self._detach()
        self._check_alone(model, optimizer)
        check_trained(model)
        self._check_packing(args)
        row_major(model)
        if state.global_step:
            self.load_beside(model, checkpoint_folder(args, state))
            self._keep(model)
        else:
            self.take_up(model)
        if self.transforms_steps:
            check_steps_outside(optimizer, (p for p in model.parameters() if p.requires_grad))
        self._steps, self._flushed = state.max_steps, False
        start = self.task_resume if state.global_step else self.task_start
        start(model, self.task_index, state.max_steps)
        self._hooks = [
            StepHook(optimizer, lambda: self.gradient_transforms(model), "gradient").attach(),
            StepHook(optimizer, lambda: self.step_transforms(model)).attach(),
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Do what is due after a step, and before the checkpoint that may follow it."""
        for hook in self._hooks:
            hook.check_seen()
        self.step_end(model, state.global_step, state.max_steps)
        self._flushed = False
        if control.should_save:
            self.flush_all(model)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """End the task; the optimiser is as it was."""
        self.task_end(model)
        self._detach()
        self.task_index += 1
        self._steps = 0
        self._keep(model, anew=True)

    def _check_packing(self, args: Any) -> None:
        """Refuse rows of TRL's that do not say where their examples begin."""
        wrapped = getattr(args, "packing", False) and args.packing_strategy == "wrapped"
        if wrapped and getattr(self.config, "token_weights", None) == "share":
            raise ConfigError(
                'packing_strategy "wrapped" does not say where examples begin, and token_weights '
                'share counts by example: take packing_strategy "bfd", or token_weights="same"'
            )

    def _detach(self) -> None:
        while self._hooks:
            self._hooks.pop().detach()
