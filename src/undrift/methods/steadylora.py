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

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.core import Metrics, steps
from undrift.core.step_hook import StepTransform
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods import base
from undrift.methods.finetune import Finetune, factors, lora_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.history import (
    Basis,
    Histories,
    a_turn,
    make_statistics,
    statistics_options,
    z_metric,
)
from undrift.methods.shared.tensor_files import load_tensors, save_tensors
from undrift.tuner import ForwardContext, LayerStatistics, observed_identity
from undrift.tuner.peft_internals import LoraLayer

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
        self._histories = Histories({}, self.config)
        self._linears: list[_Linear] = []

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the LoRA on a model, and watch its inputs."""
        wrapped = super().attach(model)
        self._observe(wrapped)
        return wrapped

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task: fresh sums, the history's metrics made ready."""
        self._observe(model)
        self._histories.start()
        self._prepare()

    def task_resume(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Go on with the sums that the checkpoint brought."""
        self._observe(model)
        self._histories.start(resumed=True)
        self._prepare()

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Re-base the sketches when it is due."""
        seen = (each.usage.tokens for each in self._histories.statistics.values())
        if step == 1 and not any(bool(tokens > 0) for tokens in seen):
            raise ConfigError(
                "a step was taken, and no input of the LoRA was seen: its forward pass goes round "
                "the modules lora_A and lora_B, as fused kernels do; train with PEFT's own"
            )
        self._histories.step_end(step, steps_total)

    def before_save(self, model: nn.Module) -> None:
        """Bring the running sums to where `on_save` finds them."""
        self._histories.flush()

    def task_end(self, model: nn.Module) -> None:
        """Merge the task into the history."""
        self._histories.end()
        self._linears = []

    # ------------------------------------------------------------ what becomes of a step

    def step_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the steps of A and B."""
        return dict(self._turns()) if self.config.space != "gradient" else {}

    def gradient_transforms(self, model: nn.Module) -> Mapping[Parameter, StepTransform]:
        """Turn the gradients, instead or as well, where the setting says so."""
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
        bases = self._histories.bases()
        self._linears = [
            _Linear(
                layer,
                bases[name],
                turn_a=a_turn(bases[name], self.config),
                b_metric=z_metric(self._histories.statistics[name], self.config),
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
        self._histories = Histories(statistics, self.config)

    def save_beside(self, model: nn.Module, directory: Path) -> None:
        """Write the file that learning one more task needs."""
        save_statistics(self._histories.statistics, directory / STATE_FILE)

    def load_beside(self, model: nn.Module, directory: Path) -> None:
        """Read the file beside the LoRA."""
        self._observe(model)
        load_statistics(self._histories.statistics, directory / STATE_FILE)

    def forget(self, model: nn.Module) -> None:
        """Begin with an empty history."""
        self._factors = ()
        self._observe(model)

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count the second file."""
        kept = (
            t for each in self._histories.statistics.values() for t in each.state_dict().values()
        )
        return sum(t.numel() * t.element_size() for t in kept)


def _turn_b_z(dB: Tensor, P: Tensor) -> Tensor:
    return dB @ P  # P is symmetric


def _turn_b_aca(dB: Tensor, A: Tensor, V: Tensor, s: Tensor, mu_b: float) -> Tensor:
    return steps.expert_b_step_aca(dB.mT[None], A[None], V, s, mu_b)[0].mT


# --------------------------------------------- watching the inputs of a plain LoRA


def watch(
    model: PeftModel, adapter: str, **options: Any
) -> tuple[ExitStack, dict[str, LayerStatistics]]:
    """Watch what each linear's A reads and gives, from now on, in every backward pass.

    Args:
        model: A PeftModel with a LoRA; nothing is added that would be saved with it.
        adapter: The adapter's name.
        **options: As for `LayerStatistics`.

    Returns:
        What ends it when it is closed; and the statistics of every linear, one expert each, by
        name.

    Raises:
        ConfigError: If the linears have different ranks, or the adapter trains anything else.
    """
    layers = lora_layers(model, adapter)
    _check_all_watched(model, adapter, layers)
    weights = {name: factors(layer, adapter)[0] for name, layer in layers.items()}
    ranks = {weight.shape[0] for weight in weights.values()}
    if len(ranks) > 1:
        raise ConfigError(f"expected one rank for all linears, not {sorted(ranks)}")
    statistics = make_statistics(
        {name: (weight.shape[1], weight.device) for name, weight in weights.items()},
        experts=1,
        rank=ranks.pop(),
        **options,
    )
    watching = ExitStack()
    context = watching.enter_context(ForwardContext.attached(model))
    for name, layer in layers.items():
        eye = _Eye(statistics[name], context)
        for hook, factor in ((eye.see_input, "lora_A"), (eye.see_output, "lora_B")):
            module: nn.Module = getattr(layer, factor)[adapter]
            watching.callback(module.register_forward_hook(hook).remove)
    return watching, statistics


def _check_all_watched(model: PeftModel, adapter: str, layers: Mapping[str, LoraLayer]) -> None:
    """Refuse what an adapter trains beside A and B: no history of it is kept.

    Copies of whole modules (modules_to_save) are the user's own wish, and are left alone.
    """
    held = {id(p) for layer in layers.values() for p in factors(layer, adapter) if p.dim() == 2}
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in held and "modules_to_save" not in name.split("."):
            raise ConfigError(
                f"{name} is trained as well, and this method protects only the factors A and B of "
                "linears: make the LoRA without DoRA, biases, token indices, embeddings and "
                "convolutions"
            )


class _Eye:
    """Hooks on A and B of one LoRA: what A read is kept until B has answered."""

    def __init__(self, statistics: LayerStatistics, context: ForwardContext) -> None:
        self.statistics, self.context = statistics, context
        self.x: Tensor | None = None

    def see_input(self, module: nn.Module, x: Any, z: Tensor) -> None:
        self.x = x[0]

    def see_output(self, module: nn.Module, z: Any, y: Tensor) -> Tensor:
        x, self.x = self.x, None
        if x is None or not (module.training and torch.is_grad_enabled() and y.requires_grad):
            return y
        return observed_identity(y, x, z[0], self.statistics.observer(self.context.tokens))


def save_statistics(statistics: Mapping[str, LayerStatistics], path: Path) -> None:
    """Save the statistics of all linears in one safetensors file.

    Args:
        statistics: By the linear's name.
        path: The file.
    """
    tensors = {
        f"{name}.{key}": value
        for name, each in statistics.items()
        for key, value in each.state_dict().items()
    }
    save_tensors(tensors, path)


def load_statistics(statistics: Mapping[str, LayerStatistics], path: Path) -> None:
    """Load what `save_statistics` saved.

    Args:
        statistics: By the linear's name; they are overwritten.
        path: The file.

    Raises:
        RunDirError: If there is no such file.
        AdapterMismatch: If a tensor is missing, left over or of another shape.
    """
    if not path.is_file():
        raise RunDirError(
            f"{path} is missing; without it a plain LoRA can be used but not go on learning. "
            "It is written by save_state, and into every checkpoint"
        )
    tensors = load_tensors(path)
    for name, each in statistics.items():
        own = {key: tensors.pop(f"{name}.{key}", None) for key in each.state_dict()}
        lost = [key for key, value in own.items() if value is None]
        if lost:
            raise AdapterMismatch(f"{path} is of another adapter: it lacks {name}.{lost[0]}")
        try:
            each.load_state_dict(own)
        except RuntimeError as error:
            raise AdapterMismatch(f"{path} is of another adapter: {error}") from error
    if tensors:
        raise AdapterMismatch(f"{path} is of another adapter: it has {next(iter(tensors))}")


METHOD = SteadyLora
