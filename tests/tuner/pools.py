"""A pool of experts on the tiny LLaVA, with values in all of them."""

from __future__ import annotations

import peft
import torch

from tests.tuner.llava import tiny_llava
from undrift.tuner.pool_lora import PoolLoraConfig, grow, pool_layers


def tiny_pool(tasks: int = 3, seed: int = 0, trained: bool = True, **config) -> peft.PeftModel:
    """A tiny LLaVA after so many tasks; B is not zero where `trained`."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        tiny_llava(seed), PoolLoraConfig(**{"r": 3, "gates": "all"} | config)
    )
    for task in range(tasks):
        if task:
            grow(model)
        if trained:
            randomise_newest(model, seed=task)
    return model


@torch.no_grad()
def randomise_newest(model: torch.nn.Module, seed: int = 1) -> None:
    """Give the newest experts random values, as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for layer in pool_layers(model).values():
        for masters in (layer.pool_lora_A, layer.pool_lora_B):
            for master in masters.values():
                master.copy_(torch.randn(master.shape, generator=generator) * 0.3)
