"""A tiny random LLaVA, built offline."""

from __future__ import annotations

import peft
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from undrift.tuner import MoeLoraConfig, layers
from undrift.tuner.peft_internals import BaseTunerLayer

IMAGE_TOKEN = 63


def tiny_llava(seed: int = 0, **text) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=16,
    )  # fmt: skip
    llama = {
        "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**(llama | text)),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()


def tiny_batch(lengths=(9, 12, 7), side: str = "right", seed: int = 0) -> dict[str, torch.Tensor]:
    """Examples of several lengths, each of one picture (4 tokens) and some text, padded."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        text = torch.randint(3, IMAGE_TOKEN, (length - 4,), generator=generator)
        whole = torch.cat([torch.full((4,), IMAGE_TOKEN), text])
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, place], mask[row, place] = whole, 1
    pixels = torch.randn(len(lengths), 3, 8, 8, generator=generator)
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "labels": labels}


def tiny_experts(
    seed: int = 0, adapter: str = "default", trained: bool = True, **config
) -> peft.PeftModel:
    """A tiny LLaVA with experts on its language model; B is not zero where `trained`."""
    torch.manual_seed(seed)
    options = {"num_experts": 4, "r": 3, "columns": 16, "collect": True} | config
    model = peft.get_peft_model(tiny_llava(seed), MoeLoraConfig(**options), adapter)
    if trained:
        randomise(model, adapter)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module, adapter: str = "default", seed: int = 1) -> None:
    """Give every master of an adapter random values, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        for masters in (layer.moe_lora_A, layer.moe_lora_B, layer.moe_lora_G):
            masters[adapter].copy_(torch.randn(masters[adapter].shape, generator=generator) * 0.3)


def adapted_names(model) -> list[str]:
    """The modules of a PeftModel that carry an adapter, by their names in the base model."""
    found = model.get_base_model().named_modules()
    names = [name for name, module in found if isinstance(module, BaseTunerLayer)]
    return [name for name in names if not name.endswith(".base_layer")]
