"""A plain LoRA whose steps go through the same two metrics: no router, no experts, mergeable.

The adapter is an ordinary LoRA that every server can serve. What learning one more task needs (the
histories and C_z) lies beside it in a second file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from undrift.core import Metrics, steps
from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.finetune import Finetune, factors, lora_layers
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.history import HistoryMethod, make_statistics
from undrift.methods.shared.state import State
from undrift.tuner import ForwardContext, LayerStatistics, observed_identity
from undrift.tuner.input_statistics import statistics_options
from undrift.tuner.peft_internals import LoraLayer


@dataclass(frozen=True, kw_only=True)
class Config(base.Config, Metrics):
    """The options of `base.Config`, and all of `core.Metrics`."""

    def __post_init__(self) -> None:
        base.Config.__post_init__(self)
        Metrics.__post_init__(self)


class SteadyLora(HistoryMethod, Finetune):
    """One mergeable LoRA with the A metric and the B metric on its steps [Eq. 14, 15]."""

    name: ClassVar[str] = "steadylora"
    paper: ClassVar[str] = "ours"
    Config: ClassVar[type[base.Config]] = Config
    state_name: ClassVar[str] = "steadylora_state"
    streams: ClassVar[bool] = True
    watches_b: ClassVar[bool] = True  # whether the moment of B's own input is kept as well
    config: Config

    def __init__(self, setting: str | None = None, **options: Any) -> None:
        super().__init__(setting, **options)
        self._watched: tuple[nn.Module, ...] = ()  # lora_A of every linear
        self._watch = ExitStack()
        self._adapter = "default"
        self._layers: dict[str, LoraLayer] = {}

    def attach(self, model: nn.Module) -> nn.Module:
        """Put the adapter on a model, and watch its inputs."""
        wrapped = super().attach(model)
        self.bind(wrapped)
        return wrapped

    def bind(self, model: nn.Module) -> None:
        """Watch what A and B of the active LoRA read and give, in every backward pass from now on.

        One that is watched already stays as it is; what is known of it follows it to where the
        model was moved. Nothing is added to the model that would be saved with it.

        Args:
            model: A PeftModel with a LoRA.

        Raises:
            ConfigError: If the linears have different ranks, or the adapter trains anything else.
        """
        wrapped = peft_model(model)
        adapter = active_adapter(wrapped)
        layers = lora_layers(wrapped, adapter)
        watched = tuple(layer.lora_A[adapter] for layer in layers.values())
        found = tuple(factors(layer, adapter)[0] for layer in layers.values())
        if watched == self._watched:  # not their parameters, which FSDP2 replaces
            for name, A in zip(layers, found, strict=True):
                self.statistics[name].to(A.device)
            return
        _check_all_watched(wrapped, adapter, layers)
        ranks = {A.shape[0] for A in found}
        if len(ranks) > 1:
            raise ConfigError(f"expected one rank for all linears, not {sorted(ranks)}")
        self._adapter, self._layers, self._watched = adapter, layers, watched
        self.statistics = make_statistics(
            {name: (A.shape[1], A.device) for name, A in zip(layers, found, strict=True)},
            experts=1,
            rank=ranks.pop() if self.watches_b else 0,
            **statistics_options(self.config),
        )
        self._watch.close()
        context = self._watch.enter_context(ForwardContext.attached(wrapped))
        for name, layer in layers.items():
            self.statistics[name].collecting_z = self.watches_b
            eye = _Eye(self.statistics[name], context)
            for hook, factor in ((eye.see_input, "lora_A"), (eye.see_output, "lora_B")):
                module: nn.Module = getattr(layer, factor)[adapter]
                self._watch.callback(module.register_forward_hook(hook).remove)

    # ------------------------------------------------------------ the moments of a task

    def task_start(self, model: nn.Module, task_index: int, steps_total: int) -> None:
        """Begin a task, or go on with the sums there are; the history's metrics are made ready."""
        self.bind(model)
        self._restore_float32()
        self.begin(steps_total, resumed=self._step > 0)
        self.hold()

    def _restore_float32(self) -> None:
        """Make A and B float32 again, also in a loop of somebody's own, see `adapter.settle`."""
        for layer in self._layers.values():
            for p in factors(layer, self._adapter):
                if p.dtype.itemsize < 4:
                    p.data = p.data.float()

    def hold(self) -> None:
        """Turn A and B of every linear by what its history says."""
        bases = self.bases()
        for name, layer in self._layers.items():
            A, B = factors(layer, self._adapter)
            self.turn(A, self.turn_a(bases[name]))
            statistics = self.statistics[name]
            self.turn(B, self.turn_b(A, bases[name], statistics, z=_turn_z, aca=_turn_aca))

    def step_end(self, model: nn.Module, step: int, steps_total: int) -> None:
        """Re-base the sketches; a first step that went past all that is watched is an error."""
        seen = (each.usage.tokens for each in self.statistics.values())
        if step == 1 and not any(bool(tokens > 0) for tokens in seen):
            raise ConfigError(
                "a step was taken, and no input of the LoRA was seen: its forward pass goes round "
                "the modules lora_A and lora_B, as fused kernels do; train with PEFT's own"
            )
        super().step_end(model, step, steps_total)

    # ------------------------------------------------------------ state

    def state(self, model: nn.Module) -> State:
        """Name the statistics of all linears."""
        tensors = {
            f"{name}.{key}": value
            for name, each in self.statistics.items()
            for key, value in each.state_dict().items()
        }
        return replace(super().state(model), tensors=tensors)

    def restore(self, model: nn.Module, saved: State) -> None:
        """Take back the statistics; their running sums may be there or not."""
        tensors = dict(saved.tensors or {})
        for name, each in self.statistics.items():
            own = {key: tensors.pop(f"{name}.{key}", None) for key in each.state_dict()}
            lost = [key for key, value in own.items() if value is None]
            if lost:
                raise saved.mismatch(f"it lacks {name}.{lost[0]}")
            try:
                each.load_state_dict(own)
            except RuntimeError as error:
                raise saved.mismatch(str(error)) from error
        if tensors:
            raise saved.mismatch(f"it has {next(iter(tensors))}")

    def forget(self, model: nn.Module) -> None:
        """Begin with an empty history."""
        self._watched = ()
        self.bind(model)


def _turn_z(dB: Tensor, P: Tensor) -> Tensor:
    return dB @ P  # P is symmetric


def _turn_aca(dB: Tensor, A: Tensor, V: Tensor, s: Tensor, mu_b: float) -> Tensor:
    return steps.expert_b_step_aca(dB.mT[None], A[None], V, s, mu_b)[0].mT


# --------------------------------------------- watching the inputs of a plain LoRA


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
        return observed_identity(y, x, z[0], partial(self.statistics.observe, self.context.tokens))


METHOD = SteadyLora
