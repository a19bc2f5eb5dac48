"""The inputs of a plain LoRA, watched from outside: its modules and its files stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import Parameter

from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.parts.past import make_statistics
from undrift.methods.parts.state_file import load_tensors, save_tensors
from undrift.tuner import LayerStatistics, TokenContext, observed_identity
from undrift.tuner.upstream import LoraLayer


def lora_layers(model: PeftModel, adapter: str) -> dict[str, LoraLayer]:
    """Find the linears that an adapter of LoRA is on.

    Args:
        model: A PeftModel.
        adapter: The adapter's name.

    Returns:
        By the name they have in the base model, at least one.

    Raises:
        ConfigError: If there is none.
    """
    found = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }
    if not found:
        raise ConfigError(
            "the model has no LoRA to train: use the model that Method.attach returns, or give "
            "your trainer a peft.LoraConfig"
        )
    return found


def factors(layer: LoraLayer, adapter: str) -> tuple[Parameter, Parameter]:
    """A (R, d_in) and B (d_out, R) of an adapter."""
    A: Any = layer.lora_A[adapter]
    B: Any = layer.lora_B[adapter]
    return A.weight, B.weight


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
    context, watching = TokenContext.attach(model.get_base_model()), ExitStack()
    if context.handle is not None:
        watching.callback(context.handle.remove)
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

    def __init__(self, statistics: LayerStatistics, context: TokenContext) -> None:
        self.statistics, self.context = statistics, context
        self.x: Tensor | None = None

    def see_input(self, module: nn.Module, x: Any, z: Tensor) -> None:
        self.x = x[0]

    def see_output(self, module: nn.Module, z: Any, y: Tensor) -> Tensor:
        x, self.x = self.x, None
        if x is None or not (module.training and torch.is_grad_enabled() and y.requires_grad):
            return y
        return observed_identity(y, x, z[0], self.statistics.observer(self.context.current))


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
