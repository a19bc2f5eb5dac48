"""A tiny random LLaVA, built offline."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

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


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    return tiny_llava()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return tiny_batch()
