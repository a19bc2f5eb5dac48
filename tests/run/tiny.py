"""A tiny random LLaVA with its processor, and a tiny benchmark of coloured squares, all offline."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from undrift.data.types import Benchmark, Example, Task

SIDE, PATCH = 12, 6  # pixels; 4 image tokens
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250,) * 3}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: "
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["which colour is the picture? user assistant"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def tiny_llava(
    seed: int = 0, layers: int = 2
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    tokenizer = tiny_tokenizer()
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=16,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():  # larger random weights, so that random answers differ between questions
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model, processor


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """Write a tiny backbone that `Backbone.load` can read."""
    model, processor = tiny_llava(seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(folder: Path, name: str, colour: tuple[int, ...], random: Random) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    image = Image.new("RGB", (SIDE, SIDE), colour)
    image.putpixel((random.randrange(SIDE), random.randrange(SIDE)), (0, 0, 0))
    image.save(path)
    return path


def tiny_benchmark(root: Path, train: int = 12, test: int = 6, tasks: int = 3) -> Benchmark:
    """Colours asked for in up to three forms: lower case, capitals, yes or no."""
    forms = {
        "lower": ("which colour is the picture?", lambda name: name),
        "upper": ("which colour is it?", lambda name: name.upper()),
        "isred": ("is the picture red? say yes or no, please", lambda name: str(name == "red")),
    }
    made = []
    for task, (question, form) in list(forms.items())[:tasks]:
        random = Random(task)
        examples = []
        for i in range(train + test):
            name = list(COLOURS)[i % len(COLOURS)]
            path = picture(root / task, str(i), COLOURS[name], random)
            examples.append(Example(f"{task}-{i}", question, (form(name),), (path,)))
        made.append(Task(task, tuple(examples[:train]), (), tuple(examples[train:]), "exact", 6))
    names = tuple(task.name for task in made)
    return Benchmark("tiny", "1", tuple(made), "CC0", {"reversed": names[::-1]}, "tiny-1")
