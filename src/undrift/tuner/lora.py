"""A plain LoRA whose targets are looked up in the language model that it is put on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, LoraModel, PeftType
from torch import nn

from undrift.errors import ConfigError
from undrift.tuner.targets import settle_targets


@dataclass
class LanguageLoraConfig(LoraConfig):
    """A `LoraConfig` whose `target_modules` may be "ffn", "attention" or "all".

    What they stand for is looked up in the model, and stored as a regular expression: what is saved
    is an ordinary LoRA. They are "ffn" where not given.
    """

    def __post_init__(self) -> None:
        """Check the values as PEFT does, which knows no layers of targets that are words."""
        if self.target_modules is None:
            self.target_modules = "ffn"
        layers, pattern = self.layers_to_transform, self.layers_pattern
        if layers is not None:
            self.layers_to_transform = self.layers_pattern = None
        super().__post_init__()
        self.layers_to_transform, self.layers_pattern = layers, pattern


class LanguageLoraModel(LoraModel):
    """PEFT's tuner of LoRA, which knows what the targets of a `LanguageLoraConfig` stand for."""

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Put an adapter on a model, as PEFT does; refuse it if PEFT puts it elsewhere.

        It takes some targets of mixtures of experts for fused experts, and would do so again
        whenever the adapter is loaded.
        """
        config: Any = self.peft_config[adapter_name]
        if not isinstance(config, LanguageLoraConfig):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            return
        found = settle_targets(model, config)
        config.fan_in_fan_out = found.transposed
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = model.named_modules()
        have = {name for name, layer in layers if adapter_name in getattr(layer, "lora_A", ())}
        if have != set(found.names):
            raise ConfigError(
                f"PEFT takes these targets of {type(model).__name__} for its fused experts, by "
                "their names in transformers 4, and adapts other weights; method same adapts the "
                "linears, or choose targets: attention"
            )


PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = LanguageLoraModel  # for any other config as PEFT's own
