"""A pool of LoRA experts that grows with the tasks; importing this registers the type POOL_LORA."""

from __future__ import annotations

from undrift.tuner.pool.config import PoolLoraConfig
from undrift.tuner.pool.layer import PoolLoraLayer, generator_of
from undrift.tuner.pool.model import (
    PoolLoraModel,
    gate_context,
    grow,
    make_room,
    note_past,
    pool_layers,
    pools_to_float32,
    register,
)

register()

__all__ = [
    "PoolLoraConfig",
    "PoolLoraLayer",
    "PoolLoraModel",
    "gate_context",
    "generator_of",
    "grow",
    "make_room",
    "note_past",
    "pool_layers",
    "pools_to_float32",
]
