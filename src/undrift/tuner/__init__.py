"""Adapters for PEFT; importing this package registers MOE_LORA, POOL_LORA and SOFT_PROMPT."""

from __future__ import annotations

import importlib

from undrift.core.routing import observed_identity
from undrift.tuner.config import MoeLoraConfig
from undrift.tuner.gates import GateContext, Gates
from undrift.tuner.layer import MoeLoraLayer
from undrift.tuner.lora import LanguageLoraConfig
from undrift.tuner.lora import register as register_lora
from undrift.tuner.model import (
    MoeLoraModel,
    as_trained,
    layers,
    register,
    restore_float32,
    statistics,
)
from undrift.tuner.observe import LayerStatistics
from undrift.tuner.prompt import Prompt, PromptContext
from undrift.tuner.ranks import summed
from undrift.tuner.targets import Targets, adapted, adapted_names, find_targets, language_targets
from undrift.tuner.tokens import TokenContext

register()
register_lora()
for _each in ("pool", "soft_prompt"):  # they register themselves, and import what is above
    importlib.import_module(f"undrift.tuner.{_each}")

__all__ = [
    "GateContext",
    "Gates",
    "LanguageLoraConfig",
    "LayerStatistics",
    "MoeLoraConfig",
    "MoeLoraLayer",
    "MoeLoraModel",
    "Prompt",
    "PromptContext",
    "Targets",
    "TokenContext",
    "adapted",
    "adapted_names",
    "as_trained",
    "find_targets",
    "language_targets",
    "layers",
    "observed_identity",
    "register",
    "restore_float32",
    "statistics",
    "summed",
]
