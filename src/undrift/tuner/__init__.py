"""Adapters for PEFT; importing this package registers MOE_LORA, POOL_LORA and SOFT_PROMPT."""

from __future__ import annotations

from undrift.core.routing import observed_identity
from undrift.tuner.adapted_linear import restore_float32
from undrift.tuner.distributed import summed
from undrift.tuner.forward import ForwardContext, Gates, Prompt
from undrift.tuner.input_statistics import LayerStatistics
from undrift.tuner.lora import LanguageLoraConfig
from undrift.tuner.moe_lora import (
    MoeLoraConfig,
    MoeLoraLayer,
    MoeLoraModel,
    layers,
    statistics,
)
from undrift.tuner.pool_lora import PoolLoraConfig, PoolLoraLayer
from undrift.tuner.soft_prompt import SoftPromptConfig
from undrift.tuner.targets import Targets, adapted, find_targets

__all__ = [
    "ForwardContext",
    "Gates",
    "LanguageLoraConfig",
    "LayerStatistics",
    "MoeLoraConfig",
    "MoeLoraLayer",
    "MoeLoraModel",
    "PoolLoraConfig",
    "PoolLoraLayer",
    "Prompt",
    "SoftPromptConfig",
    "Targets",
    "adapted",
    "find_targets",
    "layers",
    "observed_identity",
    "restore_float32",
    "statistics",
    "summed",
]
