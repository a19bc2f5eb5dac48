"""Tiny random models of many families with their processors, built offline and saved as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.run.tiny import PATCH, SIDE, tiny_llava
from undrift.run.load_model import pictures_only

Made = tuple[hf.PreTrainedModel, Any]
FRAME = {"height": SIDE, "width": SIDE}
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
CORPUS = "which colour is the picture? what? user assistant, say yes or no"


def template(image: str) -> str:
    """A chat template that writes `image` for a picture."""
    return (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% if m.content is string %}"
        "{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'image' %}"
        + image
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


def tokenizer(*special: str, **named: str) -> hf.PreTrainedTokenizerFast:
    """A bytewise tokenizer with special tokens, some of them known by a name."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    all_special = ["<pad>", "<s>", "</s>", *special, *named.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=all_special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([CORPUS], trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=named or list(special),
    )  # fmt: skip


def text(words: hf.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """The sizes of a language model for a tokenizer."""
    ends = {
        f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    return {**TEXT, **ends, "vocab_size": len(words), **more}


def llava_next() -> Made:
    words = tokenizer("<image>")
    pins = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    picture = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=FRAME, image_grid_pinpoints=pins
    )
    processor = hf.LlavaNextProcessor(
        picture, words, PATCH, "default", template("<image>"), num_additional_image_tokens=1
    )
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER),
        text_config=hf.LlamaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Made:
    words = tokenizer("<image>", "<video>")
    pins = [[SIDE, SIDE], [SIDE, 2 * SIDE]]
    picture = hf.LlavaOnevisionImageProcessorPil(size=FRAME, image_grid_pinpoints=pins)
    processor = pictures_only(hf.LlavaOnevisionProcessor)(
        picture, words, num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full", chat_template=template("<image>"),
    )  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Qwen2Config(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def idefics3() -> Made:
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    picture = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    processor = hf.Idefics3Processor(picture, words, image_seq_len=1)
    processor.chat_template = template("<image>")
    config = hf.Idefics3Config(
        vision_config={**TOWER, "image_size": SIDE},
        text_config=hf.LlamaConfig(**text(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def gemma3() -> Made:
    words = tokenizer(
        boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end_of_image>"
    )
    picture = hf.Gemma3ImageProcessorPil(size=FRAME)
    processor = hf.Gemma3Processor(picture, words, template("<start_of_image>"), image_seq_length=1)
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**text(words, sliding_window=16)),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        mm_tokens_per_image=1,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def _qwen_words() -> tuple[hf.PreTrainedTokenizerFast, dict[str, int]]:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*marks)
    keys = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return words, dict(zip(keys, words.convert_tokens_to_ids(list(marks)), strict=True))


def _qwen_processor(kind: type, words: Any, patch: int) -> Any:
    area = {"shortest_edge": 4 * patch * patch, "longest_edge": 32 * patch * patch}
    picture = hf.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=area)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return pictures_only(kind)(picture, words, chat_template=template(image))


def qwen2_5_vl() -> Made:
    words, marks = _qwen_words()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 16, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config=text(words, rope_parameters=rope),
        **marks,
    )  # fmt: skip
    processor = _qwen_processor(hf.Qwen2_5_VLProcessor, words, 4)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> Made:
    words, marks = _qwen_words()
    rope = {
        "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        "rope_theta": 10000.0,
    }  # fmt: skip
    config = hf.Qwen3VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        text_config=text(words, rope_parameters=rope),
        **marks,
    )  # fmt: skip
    processor = _qwen_processor(hf.Qwen3VLProcessor, words, 4)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def internvl() -> Made:
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    picture = hf.GotOcr2ImageProcessorPil(size=FRAME, max_patches=2)
    processor = pictures_only(hf.InternVLProcessor)(
        picture, words, image_seq_length=1, chat_template=template("<IMG_CONTEXT>")
    )
    tower = {**TOWER, "image_size": (SIDE, SIDE), "patch_size": (PATCH, PATCH)}
    config = hf.InternVLConfig(
        vision_config=tower,
        text_config=hf.Qwen2Config(**text(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def llama() -> Made:
    """Text only."""
    words = tokenizer()
    words.chat_template = template("<image>")
    return hf.LlamaForCausalLM(hf.LlamaConfig(**text(words))), words


def llama_wide() -> Made:
    """Text only, wide enough for bitsandbytes."""
    words = tokenizer()
    words.chat_template = template("<image>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 64}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**text(words, **sizes))), words


def bloom() -> Made:
    """Text only; its forward takes no `position_ids`."""
    words = tokenizer()
    words.chat_template = template("<image>")
    known = {key: value for key, value in text(words).items() if key not in TEXT}
    sizes = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "tie_word_embeddings": False}
    return hf.BloomForCausalLM(hf.BloomConfig(**sizes, **known)), words


SEEING: dict[str, Callable[[], Made]] = {
    "llava": lambda: tiny_llava(),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
}
READING: dict[str, Callable[[], Made]] = {"llama": llama, "llama_wide": llama_wide, "bloom": bloom}


def save_family(name: str, folder: Path) -> Path:
    """Write the tiny model of a family, in safetensors, where `Backbone.load` can read it."""
    torch.manual_seed(0)
    model, processor = (SEEING | READING)[name]()
    model.generation_config.eos_token_id = model.config.get_text_config().eos_token_id
    model.generation_config.pad_token_id = model.config.get_text_config().pad_token_id
    if name != "llava":  # larger random weights, so that random answers differ between questions
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
