"""A plain LoRA whose targets are looked up in the language model that it is put on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, LoraModel, PeftConfig, PeftType

from undrift.tuner.model import language_targets


@dataclass
class LanguageLoraConfig(LoraConfig):
    """A `LoraConfig` whose `target_modules` may be "ffn" or "all", as in `MoeLoraConfig`.

    What they stand for is looked up in the model, and stored as a regular expression: what is saved
    is an ordinary LoRA.
    """


class LanguageLoraModel(LoraModel):
    """PEFT's tuner of LoRA, which knows what the targets of a `LanguageLoraConfig` stand for."""

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if isinstance(peft_config, LanguageLoraConfig):
            targets: Any = peft_config.target_modules
            peft_config.target_modules = language_targets(self.model, targets)
        return super()._prepare_adapter_config(peft_config, model_config)


def register() -> None:
    """Let PEFT use this tuner for LoRA; for every other `LoraConfig` it is PEFT's own."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = LanguageLoraModel
