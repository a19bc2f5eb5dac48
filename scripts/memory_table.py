"""Compute what a LLaVA-1.5-7B takes in memory: the table of docs/memory.md. Nothing is measured.

    python scripts/memory_table.py

The model is built without weights (torch's device "meta"), the adapters are those of the setting.
"""

from __future__ import annotations

import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from undrift.run.session import make_method

GIB = 2**30
NF4 = (
    1 / 2 + 1 / 64 + 4 / (64 * 256)
)  # bytes a weight: scales in 8 bits for 64, a float32 for 256 of these
ADAM = 4  # of a trained number there are itself, its gradient and two moments
METHODS = ("same", "steadylora", "finetune")
TOKENS = 700  # 576 of a picture, and a question with its answer


def seven_b() -> hf.LlavaForConditionalGeneration:
    """Build LLaVA-1.5-7B without weights, in bfloat16."""
    vision = hf.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(vocab_size=32064))
    with torch.device("meta"):
        return hf.LlavaForConditionalGeneration(config).to(torch.bfloat16)


def quantised(model: hf.LlavaForConditionalGeneration) -> tuple[int, int]:
    """Count the weights that quantising makes smaller, the language model's, and their rows."""
    layers = [m for m in model.model.language_model.modules() if isinstance(m, nn.Linear)]
    return sum(m.weight.numel() for m in layers), sum(m.out_features for m in layers)


def weights(model: hf.LlavaForConditionalGeneration) -> dict[str, float]:
    """Compute the bytes of the frozen base by how it is kept."""
    count = sum(p.numel() for p in model.parameters())
    small, rows = quantised(model)
    rest = 2 * (count - small)
    return {
        "float32": 4 * count,
        "bfloat16, float16": 2 * count,
        "8bit": rest + small + 4 * rows,
        "4bit": rest + NF4 * small,
    }


def trained(name: str) -> tuple[int, int]:
    """Count the bytes of a method's adapters while they are trained, and of its history.

    The history is V with its columns, and the sketch of the task that runs, of every input; what is
    smaller is left out.
    """
    method = make_method(name, {"experts": 8, "rank": 8})
    model = method.attach(seven_b())
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    inputs = sum(m.in_features for m in model.modules() if isinstance(m, BaseTunerLayer))
    columns = sum(getattr(method.config, key, 0) for key in ("max_components", "columns"))
    return ADAM * 4 * numbers, 4 * inputs * columns


def table() -> str:
    """Write the tables as they stand in docs/memory.md."""
    model = seven_b()
    lines = ["| base | its weights, GiB |", "|---|---:|"]
    lines += [f"| {name} | {size / GIB:.1f} |" for name, size in weights(model).items()]
    lines += [
        "",
        "| method | adapter, gradient and Adam, GiB | history and sketch, GiB |",
        "|---|---:|---:|",
    ]
    for name in METHODS:
        adapters, history = trained(name)
        lines.append(f"| `{name}` | {adapters / GIB:.2f} | {history / GIB:.2f} |")
    text = model.config.text_config
    inputs = TOKENS * text.hidden_size * text.num_hidden_layers * 2
    block = TOKENS * (4 * text.hidden_size + 3 * text.intermediate_size) * 2
    lines += ["", "| an example of 700 tokens, in bfloat16 | GiB |", "|---|---:|"]
    lines.append(
        f"| inputs of the blocks, kept by `train.activation_checkpointing` | {inputs / GIB:.2f} |"
    )
    lines.append(f"| about one block, computed again | {block / GIB:.2f} |")
    lines.append(
        "| all blocks, without checkpointing: at least | "
        f"{block * text.num_hidden_layers / GIB:.1f} |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
