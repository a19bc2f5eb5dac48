"""Pools of experts on the linears of a whole model: a PEFT tuner, registered from outside PEFT."""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from undrift.errors import ConfigError, UndriftError, unknown
from undrift.tuner.gates import GateContext
from undrift.tuner.linear import OneAdapter, check_linear
from undrift.tuner.pool.config import NAME, POOL_LORA, PoolLoraConfig
from undrift.tuner.pool.layer import NOT_MERGEABLE, PoolLoraLayer
from undrift.tuner.targets import settle_targets
from undrift.tuner.upstream import BaseTuner, register_type, replace_module


class PoolLoraModel(OneAdapter, BaseTuner):
    """Puts a `PoolLoraLayer` around every target of a `PoolLoraConfig`.

    Use it through `peft.get_peft_model(model, PoolLoraConfig(...))`. While no step has been taken
    B is zero, and so is what the experts add; the model's output is the base model's up to
    rounding, for the base's own products are then folded into two dimensions.
    """

    prefix = f"{NAME}_"
    tuner_layer_cls = PoolLoraLayer
    context: GateContext

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if isinstance(peft_config, PoolLoraConfig):
            settle_targets(self.model, peft_config)
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        found = pool_layers(model)  # a model has one context, however its adapters came
        self.context = next(iter(found.values())).context if found else GateContext()

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: PoolLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, PoolLoraLayer):
            target.update_layer(adapter_name, peft_config)
            return
        check_linear(current_key, target)
        layer = PoolLoraLayer(target, current_key, self.context)
        layer.update_layer(adapter_name, peft_config)
        layer.train(target.training)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        replace_module(self, parent, target_name, layer, target)

    def _check_merge_allowed(self) -> NoReturn:
        raise UndriftError(NOT_MERGEABLE)


def pool_layers(model: nn.Module) -> dict[str, PoolLoraLayer]:
    """All linears that have a pool, by the name they have in the base model."""
    return {module.name: module for module in model.modules() if isinstance(module, PoolLoraLayer)}


def gate_context(model: nn.Module) -> GateContext:
    """Find where the gates of a model's pools are set.

    Args:
        model: A model with a `PoolLoraConfig` on it.

    Returns:
        The context of all its pools.

    Raises:
        ConfigError: If it has no pool.
    """
    for module in model.modules():
        if isinstance(module, PoolLoraLayer):
            return module.context
    raise ConfigError(
        "the model has no pool of experts: use the model that Method.attach returns, or give your "
        "trainer the method's peft_config()"
    )


def grow(model: PeftModel, adapter: str = "default", only: Collection[str] | None = None) -> None:
    """Let the newest experts become past ones, and begin new ones beside them.

    Args:
        model: A PeftModel with a pool.
        adapter: The adapter's name.
        only: The linears that keep their newest experts, by name; in all others these are thrown
            away, and others begin in their place. All keep them where not given.

    Raises:
        UnknownName: If no linear of that name has a pool.
    """
    found = pool_layers(model)
    for name in only or ():
        if name not in found:
            raise unknown("layer with a pool", name, found)
    for name, layer in found.items():
        if only is None or name in only:
            layer.grow(adapter)
        else:
            layer.begin_anew(adapter)
    note_past(model, adapter)


def make_room(model: PeftModel, past: int, adapter: str = "default") -> None:
    """Make room for so many past experts on every linear.

    Args:
        model: A PeftModel with a pool.
        past: How many.
        adapter: The adapter's name.
    """
    for layer in pool_layers(model).values():
        layer.make_room(adapter, past)
    note_past(model, adapter)


def note_past(model: PeftModel, adapter: str = "default") -> int:
    """Enter in the configuration how many experts are past, as after loading others.

    Args:
        model: A PeftModel with a pool.
        adapter: The adapter's name.

    Returns:
        Their number, on the linear that has the most.
    """
    counts = {n: len(layer.pool_lora_past_A[adapter]) for n, layer in pool_layers(model).items()}
    most, config = max(counts.values()), model.peft_config[adapter]
    if isinstance(config, PoolLoraConfig):
        config.num_past = most if min(counts.values()) == most else counts
    return most


def pools_to_float32(model: nn.Module) -> None:
    """Make the masters float32 again, where a trainer cast them (TRL does for 4-bit models)."""
    for layer in pool_layers(model).values():
        for name in (*layer.adapter_layer_names, "pool_lora_past_A", "pool_lora_past_B"):
            for master in getattr(layer, name).values():
                if isinstance(master, torch.Tensor) and master.dtype.itemsize < 4:
                    master.data = master.data.float()


def register() -> None:
    """Make PEFT know the type POOL_LORA; a second call does nothing."""
    register_type(POOL_LORA, PoolLoraConfig, PoolLoraModel)
