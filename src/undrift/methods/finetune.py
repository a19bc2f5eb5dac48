"""One LoRA, trained on task after task: what forgets. The floor of every comparison."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import LoraConfig, PeftModel
from torch import nn
from torch.nn import Parameter

from undrift.errors import ConfigError
from undrift.methods.base import Method
from undrift.tuner import LanguageLoraConfig, find_targets
from undrift.tuner.peft_internals import LoraLayer


class Finetune(Method):
    """One LoRA of rank `experts * rank`, trained on task after task."""

    name: ClassVar[str] = "finetune"
    paper: ClassVar[str] = "LoRA, Hu et al., ICLR 2022, arXiv:2106.09685"
    streams: ClassVar[bool] = True

    def peft_config(self, model: nn.Module | None = None) -> LoraConfig:
        """Make the configuration of the adapter, for `get_peft_model` or a trainer."""
        rank = self.config.experts * self.config.rank
        targets = self.config.targets
        return LanguageLoraConfig(
            r=rank,
            lora_alpha=self.config.alpha_over_rank * rank,  # pyright: ignore[reportArgumentType]
            target_modules=targets if model is None else find_targets(model, targets).expression,
        )


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


METHOD = Finetune
