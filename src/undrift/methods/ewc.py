"""The LoRA of `finetune`, pulled back to where past tasks left it, by its Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core.stepping import StepTransform
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.finetune import Finetune
from undrift.methods.parts.adapter import active_adapter, peft_model
from undrift.methods.parts.fisher import batch_fisher, sample_fisher
from undrift.methods.parts.penalty import QuadraticPenalty
from undrift.methods.parts.state_file import restore_tensors, save_tensors
from undrift.methods.parts.watch import lora_layers

STATE_FILE = "ewc_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Config(base.Config):
    """The options of `base.Config`, and those of the pull.

    Attributes:
        strength: lambda. What it means depends on `normalise`.
        normalise: Scale each task's Fisher to a mean of 1 over all parameters of the LoRA, so that
            one `strength` serves models and tasks of any size.
        gamma: What the Fisher of earlier tasks is multiplied by at the end of a task, in [0, 1].
        anchor: "last", the online form: the pull is towards where the last task ended. "each",
            towards where each task ended, with that task's Fisher; the state is no larger.
        fisher: "sample" squares the gradient of each example's log-likelihood. "batch" squares
            that of a whole batch's loss, as public code does.
        samples: From how many examples it is computed, with fisher="sample".
        batches: From how many batches, with fisher="batch".
    """

    strength: float = 0.1
    normalise: bool = True
    gamma: float = 1.0
    anchor: Literal["last", "each"] = "last"
    fisher: Literal["sample", "batch"] = "sample"
    samples: int = 200
    batches: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "samples", "batches"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma is {self.gamma}, expected one from 0 to 1")


class Ewc(Finetune):
    """Sequential LoRA with elastic weight consolidation on A and B.

    At the end of a task the finished model is asked about examples from the trainer's own data
    loader, in evaluation mode: about one forward and one backward pass for each of `samples`
    examples, without activation checkpointing. Later tasks pay one elementwise product a
    parameter and step: lambda F (theta - theta*) is added to the gradient once per optimiser step,
    after clipping, and is not part of the reported loss. F is that of A and of B, though B A does
    not change when A is turned by a matrix and B by its inverse.

    The setting "public" is what public code does: lambda 5000 on squared gradients of 50 whole
    batches, as they are, with one anchor for each task.
    """

    name: ClassVar[str] = "ewc"
    paper: ClassVar[str] = "EWC, Kirkpatrick et al., PNAS 2017, arXiv:1612.00796"
    Config: ClassVar[type[base.Config]] = Config
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "public": {
                "strength": 5000.0,
                "normalise": False,
                "anchor": "each",
                "fisher": "batch",
                "batches": 50,
            }
        }
    )
    beside: ClassVar[tuple[str, ...]] = (STATE_FILE,)
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._linears: dict[str, nn.Linear] = {}
        self._penalty = QuadraticPenalty({})
        self._pulls = False
        self._loader: Iterable[Mapping[str, Any]] | None = None

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task; the first has nothing that pulls.

        Args:
            model: What `attach` returned, or a user's model with a `LoraConfig` on it.
            task_index: The number of the task, from 1.
            steps_total: How many optimiser steps the task will take.
        """
        self._bind(model)
        self._pulls = any(bool(each.any()) for each in self._penalty.weight.values())

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Add the gradient of the penalty.

        Args:
            model: What `attach` returned.

        Returns:
            The transforms of every A and B, from the second task on.
        """
        return self._penalty.transforms(self.config.strength) if self._pulls else {}

    def on_train_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """End the task, with the trainer's data at hand."""
        self._loader = train_dataloader
        super().on_train_end(args, state, control, model)
        self._loader = None

    def task_end(self, model: nn.Module) -> None:
        """Compute the task's Fisher information, and put the anchor where the parameters are.

        Args:
            model: What `attach` returned.

        Raises:
            ConfigError: If the trainer does not hand over its data loader.
        """
        if self._loader is None:
            raise ConfigError(
                "ewc computes its Fisher information from the trainer's data at the end of a "
                "task: call on_train_end with train_dataloader, as transformers' Trainer does"
            )
        config, batches = self.config, self._batches(self._loader)
        if config.fisher == "sample":
            found = sample_fisher(model, self._linears, batches, config.samples)
        else:
            found = batch_fisher(model, self._linears, batches, config.batches)
        if config.normalise:
            found = normalised(found)
        self._penalty.add(found, config.anchor, config.gamma)

    def _batches(self, loader: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        if hasattr(loader, "set_epoch"):  # the first epoch's order, however training was resumed
            loader.set_epoch(0)  # pyright: ignore[reportAttributeAccessIssue]
        return (self.inputs(batch) for batch in loader)

    # ------------------------------------------------------------ state

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write Fisher information and anchor: twice the LoRA's size.

        Args:
            model: What `attach` returned.
            directory: The adapter's folder.
        """
        if not self._linears:
            self._bind(model)
        save_tensors(self._penalty.tensors, directory / STATE_FILE)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read the file beside the LoRA.

        Args:
            model: What `attach` returned, or a PeftModel with a LoRA.
            directory: The adapter's folder.
        """
        self._bind(model)
        restore_tensors(self._penalty.tensors, directory / STATE_FILE)

    def forget(self, model: nn.Module) -> None:
        """Begin without Fisher information.

        Args:
            model: What `attach` returned, or a PeftModel with a LoRA.
        """
        self._linears = {}
        self._bind(model)

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count the file beside the LoRA.

        Args:
            model: What `attach` returned.
            tasks: Not used; the file keeps its size.

        Returns:
            Bytes of tensors.
        """
        self._bind(model)
        return sum(t.numel() * t.element_size() for t in self._penalty.tensors.values())

    def _bind(self, model: nn.Module) -> None:
        """Find A and B of the active LoRA; what is known of the same one stays."""
        wrapped = peft_model(model)
        adapter = active_adapter(wrapped)
        found: dict[str, nn.Linear] = {
            f"{name}.{factor}": getattr(layer, factor)[adapter]
            for name, layer in lora_layers(wrapped, adapter).items()
            for factor in ("lora_A", "lora_B")
        }
        if found == self._linears:
            return
        self._linears = found
        weights: Any = {name: each.weight for name, each in self._linears.items()}
        self._penalty = QuadraticPenalty(weights)


def normalised(fisher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale to a mean of 1 over all parameters.

    Args:
        fisher: By the parameter's name, not all zero.

    Returns:
        Likewise.
    """
    total = sum(float(each.double().sum()) for each in fisher.values())
    count = sum(each.numel() for each in fisher.values())
    return {name: each * (count / total) for name, each in fisher.items()}


METHOD = Ewc
