"""What a method knows of an adapter from one training to the next: saved and loaded with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist
from torch import nn

from undrift.core.step_hook import innermost
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.shared.adapter import (
    active_adapter,
    has_learned,
    load_adapter,
    peft_model,
    save_adapter,
)
from undrift.methods.shared.model_card import RECORD, MethodState
from undrift.methods.shared.sidecar import Sidecar, sidecars
from undrift.rundir import read_record


class Carried:
    """The part of a `Method` that is about the state of its adapters.

    Attributes:
        ends_itself: Whether the next task can begin although the last was cut off.
        beside: The files in which `save_beside` keeps what the adapter itself does not hold.
    """

    name: ClassVar[str]
    Config: ClassVar[Any]
    beside: ClassVar[tuple[str, ...]] = ()
    ends_itself: ClassVar[bool] = False
    config: Any
    task_index: int

    _kept: Sidecar | None = None
    _steps = 0  # of the task that is being learned; 0 between tasks
    _flushed = False  # since the last step, by all processes

    before_save: Callable[[nn.Module], None]  # of `Method`

    @property
    def transforms_steps(self) -> bool:
        """Whether anything becomes of steps or gradients."""
        return self._overrides("step_transforms", "gradient_transforms")

    @property
    def remembers(self) -> bool:
        """Whether a task is learned with regard to those before."""
        return self.transforms_steps or self._overrides("task_end", "examples")

    def _overrides(self, *names: str) -> bool:
        """Whether a method does something of its own where `Method` itself does nothing."""
        return any(getattr(type(self), n).__qualname__ != f"Method.{n}" for n in names)

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write what learning one more task needs and the adapter itself does not hold.

        Whatever saves the adapter calls this: `save_state`, a trainer's checkpoints, the model's
        own `save_pretrained`.

        Args:
            model: What `attach` returned, or a user's model.
            directory: The adapter's folder.
        """

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read what `save_beside` has written; the adapter is loaded already.

        Args:
            model: As for `save_beside`.
            directory: The adapter's folder.
        """

    def forget(self, model: nn.Module) -> None:
        """Begin with an adapter that has learned nothing yet; what is known of others goes.

        Args:
            model: As for `save_beside`.
        """

    def in_adapter(self, model: nn.Module) -> int | None:
        """Say how many tasks an adapter has learned that holds all of its own history.

        Args:
            model: As for `save_beside`.

        Returns:
            The number; None where the adapter alone is not enough to learn one more task.
        """
        return None

    # ------------------------------------------------------------ saving and loading

    def save_state(self, model: nn.Module, directory: Path) -> None:
        """Save the adapter in PEFT's format, and all that learning one more task needs.

        Args:
            model: What `attach` returned.
            directory: A folder; it is made.
        """
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
        self._steps = 0
        self._keep(model, anew=True)

    def take_up(self, model: nn.Module) -> None:
        """Go on with a model's active adapter where it has come to, whoever holds its history.

        `on_train_begin` does it. It is needed before only where `examples` has to know the past.

        Args:
            model: A PeftModel: from `attach`, `get_peft_model`, `PeftModel.from_pretrained`, or a
                copy of one.

        Raises:
            ConfigError: If the adapter has learned something, and nothing is known of its past, or
                not of all of it.
            AdapterMismatch: If another method has trained it.
        """
        wrapped = peft_model(model)
        name = active_adapter(wrapped)
        kept = sidecars(wrapped).get(name)
        if kept is not None and self.remembers:
            kept.check_unchanged(wrapped)
        if kept is not None and kept is self._kept:
            return
        moved = self._leave(model)
        self._steps = 0
        if kept is not None and kept.keeper is not None:
            kept.keeper.flush(wrapped)
            kept.freeze()  # another object of a method's has it
        kept = kept or Sidecar()
        with kept.folder() as folder:
            if folder is not None:
                self._resume(model, folder)
            elif not (self.remembers and has_learned(wrapped, name, loaded=kept.loaded)):
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
        """Go on with an adapter of which nothing is known; what it has learned is not protected.

        Args:
            model: A PeftModel.
        """
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
        if not (self.learning and self._overrides("before_save")):
            return
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            self.before_save(model)
        elif not self._flushed:
            raise ConfigError(
                f"the adapter cannot be saved here: what {self.name} has seen in this task lies in "
                f"{dist.get_world_size()} processes and was not summed after the last step; save "
                'with save_strategy "steps", "epoch" or "best", or put the callback that asks for '
                "a save before the method"
            )

    def flush_all(self, model: nn.Module) -> None:
        """Do the same where all processes come by.

        Args:
            model: As for `flush`.
        """
        self.before_save(model)
        self._flushed = True

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Do what is due before the checkpoint that may follow an evaluation."""
        if self.learning and getattr(args, "save_strategy", None) == "best":
            self.flush_all(model)

    def on_epoch_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Do what is due before the checkpoint that may follow an epoch."""
        if control.should_save:
            self.flush_all(model)

    def record(self) -> dict[str, Any]:
        """Say what lies beside an adapter: the method, its options, how far it has come."""
        own, plain = self.config, self.Config()
        names = [field.name for field in fields(own)]
        options = {n: v for n in names if (v := getattr(own, n)) != getattr(plain, n)}
        return {
            "method": self.name,
            "options": options,
            "tasks": self.task_index - 1,
            "learning": self.learning,
            "steps": self._steps,
            "files": list(self.beside),
        }

    def _resume(self, model: nn.Module, folder: Path) -> None:
        """Take over an adapter with the files that lie beside it."""
        record = read_record(folder / RECORD, MethodState)
        if record["method"] != self.name and not self.remembers:
            return self.forget(model)
        if record["method"] != self.name:
            raise AdapterMismatch(
                f"the adapter was trained with {record['method']}, and this is {self.name}: go on "
                "with the method that trained it, or call method.start_history(model) to go on "
                "without its history"
            )
        self.load_beside(model, folder)
        self.task_index = record["tasks"] + 1
        if record["learning"]:
            self.finish(model, record["steps"])
            self.task_index += 1
        return None

    def finish(self, model: nn.Module, steps_total: int) -> None:
        """End a task inside which an adapter was saved, so that the next can begin.

        Args:
            model: The model, with the adapter and what lies beside it.
            steps_total: How many steps the task had.

        Raises:
            ConfigError: If the method cannot.
        """
        if self.remembers and not self.ends_itself:
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
        name = active_adapter(wrapped)
        if anew or self._kept is None or sidecars(wrapped).get(name) is not self._kept:
            self._leave(model)
            self._kept = sidecars(wrapped)[name] = Sidecar(wrapped, name, keeper=self)

    def _check_alone(self, model: nn.Module, optimizer: Any) -> None:
        """Refuse a second method in one training: the history would be of half of it."""
        wrapped = peft_model(model)
        kept = sidecars(wrapped).get(active_adapter(wrapped))
        other: Any = kept.keeper if kept is not None else None
        if other is None or other is self or not other.learning:
            return
        if any(hook.optimizer is innermost(optimizer) for hook in other._hooks):
            raise ConfigError(
                f"two methods, {other.name} and {self.name}, are callbacks of one training: one "
                "adapter can be trained by one of them; leave the other out"
            )

    def _leave(self, model: nn.Module) -> bool:
        """Leave what is known of another adapter with that one; say whether there was one."""
        wrapped, kept = peft_model(model), self._kept
        if kept is None or kept is sidecars(wrapped).get(active_adapter(wrapped)):
            return False
        if kept.keeper is self:
            kept.freeze()
        self._kept = None
        return True
