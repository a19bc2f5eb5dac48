"""What a method is: an object that the training loop, anyone's training loop, calls at its moments.

Only `peft_config`, or `attach`, is required. A method never calls backward or step: precision,
accumulation and ranks stay the trainer's business. It is a `TrainerCallback`, so the same object
serves undrift's own run and a user's `Trainer` or `SFTTrainer`::

    for task in tasks:
        Trainer(model, args, train_dataset=task, callbacks=[method]).train()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import TrainerCallback

from undrift.core.settings import check_choices
from undrift.core.step_hook import StepHook, StepTransform, check_steps_outside, innermost
from undrift.data.types import Example
from undrift.errors import AdapterMismatch, ConfigError, unknown
from undrift.methods.shared.adapter import (
    active_adapter,
    check_buffers_stay,
    check_own,
    check_packing,
    check_trained,
    has_learned,
    load_adapter,
    peft_model,
    save_adapter,
    settle,
    transformer,
)
from undrift.methods.shared.model_card import RECORD, MethodState
from undrift.methods.shared.plain_lora import PlainLora, plain_lora
from undrift.methods.shared.sidecar import Sidecar, sidecars
from undrift.methods.shared.state import State, check_protocol, checkpoint_folder
from undrift.rundir import read_record
from undrift.tuner.distributed import is_sharded, processes, rank, summed

Prepare = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
CutOff = Literal["refuse", "end", "go on"]
Schedule = Literal["sequential", "joint", "none"]
Settings = Mapping[str, Mapping[str, Any]]
Parts = Literal["experts", "router", "router and experts", "entangled"]
T = TypeVar("T")
Allowed = tuple[str, Callable[[Any], bool]]
"""What the values of an option must be, in words for the message, and a test."""

POSITIVE: Allowed = ("a positive number", lambda v: v > 0)
NOT_NEGATIVE: Allowed = ("0 or more", lambda v: v >= 0)
SHARE: Allowed = ("one from 0 to 1", lambda v: 0 <= v <= 1)


def option(default: T, allowed: Allowed) -> T:
    """Make a field of a `Config` whose values are checked."""
    return field(default=default, metadata={"allowed": allowed})


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

    experts: int = option(8, POSITIVE)
    rank: int = option(8, POSITIVE)
    alpha_over_rank: float = option(2.0, POSITIVE)
    targets: str = "ffn"

    def __post_init__(self) -> None:
        check_choices(self)
        for each in fields(self):
            if "allowed" in each.metadata:
                self.require(each.name, each.metadata["allowed"])

    def require(self, name: str, allowed: Allowed) -> None:
        """Check an option; a ConfigError if its value is not allowed."""
        expected, test = allowed
        if not test(value := getattr(self, name)):
            raise ConfigError(f"{name} is {value}, expected {expected}")


class Method(TrainerCallback):
    """One way to learn a sequence of tasks.

    Everywhere below `model` is what `attach` returned, or a user's model with the `peft_config` on
    it; `task_index` is the number of a task, from 1, and `steps_total` how many optimiser steps it
    takes.

    Args:
        setting: One of the method's named settings; its default where None.
        **options: Fields of the method's `Config`, which win over the setting.

    Attributes:
        name: The method's name, the stem of its file.
        paper: The paper it follows, in one line.
        Config: The frozen dataclass of its options.
        schedule: "sequential", one training per task; "joint", one on the union of all; "none".
        parts: What later tasks change, and so what can drift: "experts", one adapter, no router;
            "router", who answers, while what was taught stays bit for bit; "router and experts",
            each of which can be put back for itself; "entangled", both, not to be told apart.
        learning_rate: The rate it is trained with where nothing else is said.
        settings: Its named settings, each a mapping of options.
        alone: Whether PEFT alone can answer with its adapters.
        keeps_examples: Whether what it saves holds examples that it was trained on.
        state_name: The stem of the file beside the adapter that holds its `state`; empty for none.
        why_not_sharded: Why it cannot learn where FSDP2 has sharded the model; empty where it can.
        cut_off: What becomes of a task whose training was cut off when the next one begins:
            "refuse" to go on, "end" it with what it had seen, or "go on" where nothing is due.
        streams: Whether it can learn a stream without ends of tasks; never inherited.
        config: The options it has.
        task_index: The number of the task to learn next, or now, from 1.
        asked: The number of the task that is asked about, inside `predicting`; else None.
        example_share: What a mean over a micro-batch's examples counts beside one over its labelled
            tokens, inside `sharing`; else 1.

    Raises:
        UnknownName: If there is no such setting or option; the nearest is named.
        ConfigError: If an option has a value that cannot be used.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    Config: ClassVar[type[Config]] = Config
    schedule: ClassVar[Schedule] = "sequential"
    parts: ClassVar[Parts] = "experts"
    learning_rate: ClassVar[float] = 2e-4
    settings: ClassVar[Settings] = {}
    alone: ClassVar[bool] = True
    keeps_examples: ClassVar[bool] = False
    state_name: ClassVar[str] = ""
    why_not_sharded: ClassVar[str] = ""
    cut_off: ClassVar[CutOff] = "refuse"
    streams: ClassVar[bool] = False
    config: Any

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_protocol(cls)
        cls.streams = cls.__dict__.get("streams", False)

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        if setting is not None and setting not in self.settings:
            raise unknown(f"setting of {self.name}", setting, self.settings)
        known = [each.name for each in fields(self.Config)]
        for key in options:
            if key not in known:
                raise unknown(f"key of {self.name}", key, known)
        self.config = self.Config(**{**self.settings.get(setting or "", {}), **options})
        self.task_index = 1
        self.asked: int | None = None
        self.example_share = 1.0
        self._inputs_of: Prepare = dict
        self._hooks: list[StepHook] = []
        self._sidecar: Sidecar | None = None
        self._args: Any = None  # the trainer's, and its optimiser
        self._optimizer: Any = None
        self._loader: Iterable[Mapping[str, Any]] | None = None  # at the end of a task
        self._step = self._steps = 0  # done, and in all, of the task that is learned; 0 between
        self._flushed = False  # since the last step, by all processes
        self._gathered: Mapping[str, Tensor] = {}  # what of the state is sharded

    @classmethod
    def summary(cls) -> str:
        """Say the method's idea in one sentence: the first line of its docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def needs_training(self) -> bool:
        """Whether there is anything to train."""
        return self.schedule != "none"

    @property
    def transforms_steps(self) -> bool:
        """Whether anything becomes of steps or gradients."""
        return self._overrides("step_transforms", "gradient_transforms")

    @property
    def remembers(self) -> bool:
        """Whether a task is learned with regard to those before."""
        return self.transforms_steps or self._overrides("task_end", "examples")

    @property
    def must_be_told(self) -> bool:
        """Whether it answers only who names the task of a question, see `predicting`."""
        return bool(getattr(self.config, "oracle", False))

    def _overrides(self, *names: str) -> bool:
        """Whether a method does something of its own where `Method` itself does nothing."""
        return any(getattr(type(self), n).__qualname__ != f"Method.{n}" for n in names)

    # ------------------------------------------------------------ what a method may override

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the method's adapters on a model, by default one of its `peft_config`.

        Args:
            model: The backbone, frozen or not.

        Returns:
            The model to train. Until the first step it answers as before, up to rounding.
        """
        return get_peft_model(transformer(model), self.peft_config(model))

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
        """Begin a task."""

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on inside a task whose checkpoint was loaded; by default as if it began."""
        self.task_start(model, task_index, steps_total)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of a batch with labels, (); by default the model's own."""
        return model(**batch).loss

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Say what turns the step of each parameter to be held; asked anew at every step."""
        return {}

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Say likewise what becomes of the gradients before the optimiser sees them."""
        return {}

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Do what is due after an optimiser step, the `step`th of the task, from 1."""

    def task_end(self, model: nn.Module) -> None:
        """End a task: keep what later tasks need."""

    @contextmanager
    def predicting(self, model: nn.Module, task: int | None = None) -> Iterator[None]:
        """Within this context the model is asked, not taught.

        Args:
            model: What `attach` returned.
            task: The number of the task that is asked about, from 1, where whoever asks knows it:
                for oracles, and for how often a guess is right; never for an answer otherwise.
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
            prepare: Called with a batch of the loader; returns None for one that does not count.
        """
        before, self._inputs_of = self._inputs_of, prepare
        try:
            yield
        finally:
            self._inputs_of = before

    @contextmanager
    def sharing(self, example_share: float) -> Iterator[None]:
        """Within this context micro-batches are parts of a step, by tokens and by examples.

        Args:
            example_share: The micro-batch's share of the step's examples, by its share of tokens.
        """
        before, self.example_share = self.example_share, example_share
        try:
            yield
        finally:
            self.example_share = before

    @property
    def parts_of_step(self) -> int:
        """Into how many parts a step's batch is cut whose losses the trainer adds up."""
        args = self._args
        number = args.world_size if getattr(args, "average_tokens_across_devices", False) else 1
        return getattr(args, "gradient_accumulation_steps", 1) * number

    def facts(self) -> dict[str, Any]:
        """Tell numbers about the answers since the last call, such as how many were told apart."""
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

    # ------------------------------------------------------------ what it knows of past tasks

    def bind(self, model: nn.Module) -> None:
        """Find in a model what the method works with; what is known of the same adapter stays."""

    def forget(self, model: nn.Module) -> None:
        """Begin with an adapter that has learned nothing yet; what is known of others goes."""
        self.bind(model)

    def state(self, model: nn.Module) -> State:
        """Name what learning one more task needs and the adapter's own file does not hold.

        Args:
            model: As for `bind`. What is bound already stays so, whichever adapter is active.

        Returns:
            It; by default there is nothing.
        """
        return State()

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back what `state` named, of any number of tasks; the adapter is loaded already.

        Args:
            model: As for `state`.
            saved: What was read. By default it must have the names and shapes of what is there.
        """
        self.state(model).fill(saved)

    def in_adapter(self, model: nn.Module) -> int | None:
        """Count the tasks of an adapter that holds all of its own history; None where none does."""
        return None

    def before_save(self, model: nn.Module) -> None:
        """Add up the sums of all processes; every save inside a task calls it in all of them."""
        with self.summed(model):
            pass

    @contextmanager
    def summed(self, model: nn.Module) -> Iterator[None]:
        """Within this context the sums are those of all processes; then only the first has them."""
        with summed([self.state(model)]):
            yield

    # ------------------------------------------------------------ what it costs

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh adapter to its size after so many tasks, to see what it will cost.

        Args:
            model: What `attach` returned; its tensors may have shapes only.
            tasks: How many tasks; nothing is done where the adapter does not grow.
        """

    def idle_parameters(self, model: nn.Module) -> int:
        """Count those that a token is NOT multiplied with when the model answers."""
        return 0

    def resting(self, model: nn.Module) -> dict[str, int] | None:
        """Count by linear the experts that rest in the task; None where none ever rests."""
        return None

    # ------------------------------------------------------------ saving and loading

    def as_lora(self, model: nn.Module, task: int | None = None) -> PlainLora:
        """Name the plain LoRA that answers every input alike; by default read off the layers.

        Args:
            model: What `attach` returned, in evaluation mode.
            task: The number of a task, from 1, whose own LoRA is wanted.

        Returns:
            It.

        Raises:
            ConfigError: If what is added depends on what is read, so that there is none.
        """
        if task:
            raise ConfigError("no task has a LoRA of its own; leave out --task")
        return plain_lora(model)

    def save_state(self, model: nn.Module, directory: Path) -> None:
        """Save the adapter in PEFT's format, and all that learning one more task needs."""
        self._keep(model)
        save_adapter(model, directory)

    def load_state(self, model: nn.Module, directory: Path) -> None:
        """Load what `save_state` or `save_pretrained` saved into a model that `attach` made.

        Args:
            model: What `attach` returned.
            directory: The folder.

        Raises:
            RunDirError: If there is no adapter in it.
            AdapterMismatch: If it was made for another model or with other options.
        """
        self._leave(model)
        load_adapter(model, directory)
        self.load_beside(model, directory)
        if (directory / RECORD).is_file():  # not beside a snapshot of old
            self.task_index = read_record(directory / RECORD, MethodState)["tasks"] + 1
        self._steps = 0
        self._keep(model, anew=True)

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write the state into the adapter's folder; whatever saves the adapter calls this."""
        self.state(model).save(directory, self.state_name, self._gathered)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read what `save_beside` has written; the adapter is loaded already."""
        self._gathered = {}
        self.bind(model)
        self.restore(model, self.state(model).read(directory, self.state_name))
        if rank() > 0:  # the sums of all processes are in one file, and the first goes on with them
            for each in self.state(model).sums:
                each.zero_()

    def take_up(self, model: nn.Module) -> None:
        """Go on with a model's active adapter where it has come to, whoever holds its history.

        `on_train_begin` does it. It is needed before only where `examples` has to know the past.

        Args:
            model: A PeftModel, whoever has made it, or a copy of one.

        Raises:
            ConfigError: If the adapter has learned something, and nothing is known of its past, or
                not of all of it.
            AdapterMismatch: If another method has trained it.
        """
        wrapped = peft_model(model)
        name, sidecar = active_adapter(wrapped), _active_sidecar(wrapped)
        if sidecar is not None and self.remembers:
            sidecar.check_unchanged(wrapped)
        if sidecar is not None and sidecar is self._sidecar:
            return
        moved = self._leave(model)
        self._steps = 0
        if sidecar is not None and sidecar.method is not None:
            sidecar.method.flush(wrapped)
            sidecar.freeze()  # another object of a method's has it
        sidecar = sidecar or Sidecar()
        with sidecar.folder() as folder:
            if folder is not None:
                self._resume(model, folder)
            elif not (self.remembers and has_learned(wrapped, name, loaded=sidecar.loaded)):
                self.forget(model)
                self.task_index = 1 if moved else self.task_index
            elif (tasks := self.in_adapter(model)) is not None:
                self.forget(model)
                self.task_index = tasks + 1
            else:
                raise ConfigError(
                    f"the adapter {name!r} has learned something, and {self.name} has no history "
                    "of it, so nothing of it would be protected: load it with method.load_state("
                    "model, folder), or call method.start_history(model) to go on without"
                )
        self._keep(model)

    def start_history(self, model: nn.Module) -> None:
        """Go on with an adapter of unknown history; what it has learned is not protected."""
        self._leave(model)
        self.forget(model)
        self._keep(model, anew=True)

    @property
    def learning(self) -> bool:
        """Whether a task is being learned, or its training was cut off."""
        return bool(self._steps)

    def flush(self, model: nn.Module) -> None:
        """Inside a task, bring running state to where a save finds it; whatever saves calls this.

        Args:
            model: What `attach` returned, or a user's model.

        Raises:
            ConfigError: If it lies in several processes, of which only one may be here.
        """
        state = self.state(model)
        if not (self.learning and (state.sums or state.is_sharded)):
            return
        if processes() == 1:
            self.before_save(model)
        elif not self._flushed:
            raise ConfigError(
                f"the adapter cannot be saved here: what {self.name} has seen in this task lies in "
                f"{processes()} processes and was not summed after the last step; save "
                'with save_strategy "steps", "epoch" or "best", or put the callback that asks for '
                "a save before the method"
            )

    def record(self, model: nn.Module) -> dict[str, Any]:
        """Say what lies beside an adapter: the method, its options, how far it has come."""
        own, plain = self.config, self.Config()
        names = [each.name for each in fields(own)]
        options = {n: v for n in names if (v := getattr(own, n)) != getattr(plain, n)}
        return {
            "method": self.name,
            "options": options,
            "tasks": self.task_index - 1,
            "learning": self.learning,
            "steps": self._steps,
            "files": [file] if (file := self.state(model).file(self.state_name)) else [],
        }

    def _resume(self, model: nn.Module, folder: Path) -> None:
        """Take over an adapter with the files that lie beside it."""
        record = read_record(folder / RECORD, MethodState)
        if record["method"] != self.name and not self.remembers:
            return self.forget(model)
        if record["method"] != self.name:
            raise AdapterMismatch(
                f"the adapter was trained with {record['method']}, and this is {self.name}: go on "
                "with that one, or without its history, behind method.start_history(model)"
            )
        self.load_beside(model, folder)
        self.task_index = record["tasks"] + 1
        if record["learning"]:
            self._end_cut_off(model)
            self.task_index += 1
        return None

    def _end_cut_off(self, model: nn.Module) -> None:
        """End a task inside which an adapter was saved, so that the next can begin."""
        if self.cut_off == "end":
            self.task_end(model)
        elif self.remembers and self.cut_off == "refuse":
            raise ConfigError(
                f"the adapter was saved inside task {self.task_index}, and {self.name} can end a "
                "task only in its own training: resume that from this checkpoint, or load the "
                "adapter that was saved after it"
            )

    def _keep(self, model: nn.Module, *, anew: bool = False) -> None:
        """Let whatever saves the active adapter save what this method knows of it.

        Anew, where the weights are others by the method's own doing.
        """
        wrapped = peft_model(model)
        if anew or self._sidecar is None or _active_sidecar(wrapped) is not self._sidecar:
            name = active_adapter(wrapped)
            self._leave(model)
            self._sidecar = sidecars(wrapped)[name] = Sidecar(wrapped, name, method=self)

    def _check_alone(self, model: nn.Module, optimizer: Any) -> None:
        """Refuse a second method in one training: the history would be of half of it."""
        sidecar = _active_sidecar(model)
        other: Any = sidecar.method if sidecar is not None else None
        if other is None or other is self or not other.learning:
            return
        if any(hook.optimizer is innermost(optimizer) for hook in other._hooks):
            raise ConfigError(
                f"two methods, {other.name} and {self.name}, are callbacks of one training: one "
                "adapter can be trained by one of them; leave the other out"
            )

    def _leave(self, model: nn.Module) -> bool:
        """Leave what is known of another adapter with that one; say whether there was one."""
        sidecar = self._sidecar
        if sidecar is None or sidecar is _active_sidecar(model):
            return False
        if sidecar.method is self:
            sidecar.freeze()
        self._sidecar = None
        return True

    # ------------------------------------------------------------ as a callback of a trainer

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Refuse ways of sharding that lose buffers; optimisers and DDP then find float32."""
        check_buffers_stay(model, self.name)
        settle(model)

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
        check_packing(args, self.config)
        if self.why_not_sharded and is_sharded(model):
            raise ConfigError(
                f"{self.name} cannot learn under FSDP2: {self.why_not_sharded}; train it under DDP"
            )
        settle(model)
        if state.global_step:
            self.load_beside(model, checkpoint_folder(args, state))
            self._keep(model)
        else:
            self.take_up(model)
        if self.transforms_steps:
            check_steps_outside(optimizer, (p for p in model.parameters() if p.requires_grad))
        self._step, self._steps = state.global_step, state.max_steps
        self._flushed, self._gathered = False, {}
        self._args, self._optimizer = args, optimizer
        start = self.task_resume if state.global_step else self.task_start
        start(model, self.task_index, state.max_steps)
        transforms = *self.step_transforms(model), *self.gradient_transforms(model)
        check_own(model, transforms, self.name)
        self._hooks = [
            StepHook(optimizer, lambda: self.gradient_transforms(model), "gradient").attach(),
            StepHook(optimizer, lambda: self.step_transforms(model)).attach(),
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Do what is due after a step, and before the checkpoint that may follow it."""
        for hook in self._hooks:
            hook.check_seen()
        self._step = state.global_step
        self.step_end(model, state.global_step, state.max_steps)
        self._flushed, self._gathered = False, {}
        if control.should_save:
            self._flush_all(model)

    def on_epoch_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Do what is due before the checkpoint that may follow an epoch."""
        if control.should_save:
            self._flush_all(model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Do what is due before the checkpoint that may follow an evaluation."""
        if self.learning and getattr(args, "save_strategy", None) == "best":
            self._flush_all(model)

    def on_train_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """End the task, with the trainer's data at hand; the optimiser is as it was."""
        self._loader = train_dataloader
        self.task_end(model)
        self._detach()
        self._loader = self._args = self._optimizer = None
        self._gathered = self.state(model).gathered()  # a trainer saves in one process only
        self.task_index += 1
        self._step = self._steps = 0
        self._keep(model, anew=True)

    def _flush_all(self, model: nn.Module) -> None:
        """Add up the sums where all processes come by, for a save that only one of them may see."""
        self.before_save(model)
        self._gathered = self.state(model).gathered()
        self._flushed = True

    def _detach(self) -> None:
        while self._hooks:
            self._hooks.pop().detach()


def _active_sidecar(model: nn.Module) -> Sidecar | None:
    """What is kept with a model's active adapter."""
    wrapped = peft_model(model)
    return sidecars(wrapped).get(active_adapter(wrapped))
