"""The experts on the linears of a whole model: a PEFT tuner, registered from outside PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from peft import PeftConfig
from torch import nn

from undrift.errors import UndriftError
from undrift.tuner.config import MOE_LORA, NAME, MoeLoraConfig
from undrift.tuner.layer import NOT_MERGEABLE, MoeLoraLayer
from undrift.tuner.linear import OneAdapter, check_linear
from undrift.tuner.observe import LayerStatistics
from undrift.tuner.targets import settle_targets
from undrift.tuner.tokens import TokenContext
from undrift.tuner.upstream import BaseTuner, register_type, replace_module

SAME_INPUT = (("gate_proj", "up_proj"), ("w1", "w3"), ("q_proj", "k_proj", "v_proj"))


class MoeLoraModel(OneAdapter, BaseTuner):
    """Puts a `MoeLoraLayer` around every target of a `MoeLoraConfig`.

    Use it through `peft.get_peft_model(model, MoeLoraConfig(...))`. The model's own `add_adapter`
    and `load_adapter` do it too, except in transformers 5.24, which asks for a later PEFT than
    there is. While no step has been taken B is zero, and so is what the experts add; the model's
    output is the base model's up to rounding, for the base's own products are then folded into
    two dimensions.
    """

    prefix = f"{NAME}_"
    tuner_layer_cls = MoeLoraLayer
    context: TokenContext

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if isinstance(peft_config, MoeLoraConfig):
            settle_targets(self.model, peft_config)
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        for module in model.modules():  # a model has one context, however its adapters came
            if isinstance(module, MoeLoraLayer):
                self.context = module.context
                return
        self.context = TokenContext.attach(model)

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: MoeLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        shared = None
        if peft_config.share_inputs:
            shared = _shared_statistics(parent, target_name, adapter_name)
        if isinstance(target, MoeLoraLayer):
            target.update_layer(adapter_name, peft_config, shared)
            return
        check_linear(current_key, target)
        layer = MoeLoraLayer(target, current_key, self.context)
        layer.update_layer(adapter_name, peft_config, shared)
        layer.train(target.training)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        replace_module(self, parent, target_name, layer, target)

    def _check_merge_allowed(self) -> NoReturn:
        raise UndriftError(NOT_MERGEABLE)


def _shared_statistics(parent: nn.Module, name: str, adapter: str) -> LayerStatistics | None:
    """The statistics of an earlier linear of the same block that reads the same input."""
    for group in SAME_INPUT:
        for sibling in group if name in group else ():
            layer = getattr(parent, sibling, None)
            if sibling != name and isinstance(layer, MoeLoraLayer):
                found = layer.statistics(adapter)
                if found is not None:
                    return found.owner
    return None


def layers(model: nn.Module) -> dict[str, MoeLoraLayer]:
    """All linears that have experts, by the name they have in the base model."""
    return {module.name: module for module in model.modules() if isinstance(module, MoeLoraLayer)}


def statistics(model: nn.Module, adapter: str = "default") -> dict[str, LayerStatistics]:
    """The statistics of an adapter, by the name that the linear has in the base model.

    Args:
        model: With or without a PeftModel around it.
        adapter: The adapter's name; it must have been made with `collect=True`.

    Returns:
        By name, in the order of the model; empty where nothing is collected.
    """
    found = {name: layer.statistics(adapter) for name, layer in layers(model).items()}
    return {name: each for name, each in found.items() if each is not None}


@contextmanager
def as_trained(model: nn.Module) -> Iterator[None]:
    """Within this context evaluation leaves frozen experts out, as the task's training does."""
    wrapped = layers(model).values()
    try:
        for layer in wrapped:
            layer.as_trained = True
        yield
    finally:
        for layer in wrapped:
            layer.as_trained = False


def restore_float32(model: nn.Module) -> None:
    """Make the masters float32 again, where a trainer cast them (TRL does for 4-bit models)."""
    for layer in layers(model).values():
        for masters in (layer.moe_lora_A, layer.moe_lora_B, layer.moe_lora_G):
            for master in masters.values():
                if isinstance(master, torch.Tensor) and master.dtype.itemsize < 4:
                    master.data = master.data.float()


def register() -> None:
    """Make PEFT know the type MOE_LORA; a second call does nothing."""
    register_type(MOE_LORA, MoeLoraConfig, MoeLoraModel)
