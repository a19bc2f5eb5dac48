"""Answers lengthen whatever the processor says of tokens, and none is seen while it is learned."""

from __future__ import annotations

from random import Random

import pytest
import torch
import transformers as hf
from PIL import Image

from tests.run.causality import check_answers_unseen
from tests.run.families import (
    FRAME,
    READING,
    SEEING,
    SIDE,
    TOWER,
    Made,
    template,
    text,
    tokenizer,
)
from tests.run.tiny import PATCH
from undrift.data.collate import IGNORED, PixelCollator
from undrift.data.lengthen import lengthened
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.run.backbone import Backbone
from undrift.run.generate import greedy


def paligemma() -> Made:
    words = tokenizer(image_token="<image>")
    picture = hf.SiglipImageProcessorPil(size=FRAME)
    picture.image_seq_length = (SIDE // PATCH) ** 2
    processor = hf.PaliGemmaProcessor(picture, words, template("<image>"))
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.GemmaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=16,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def mllama() -> Made:
    words = tokenizer("<|image|>")
    picture = hf.MllamaImageProcessorPil(size=FRAME, max_image_tiles=2)
    processor = hf.MllamaProcessor(picture, words, template("<|image|>"))
    sizes = text(words, num_hidden_layers=3, cross_attention_layers=[1])
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_global_layers": 1, "attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
            "max_num_tiles": 2, "vision_output_dim": 48, "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={**sizes, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    return hf.MllamaForConditionalGeneration(config), processor


MORE = {"paligemma": paligemma, "mllama": mllama}


@pytest.fixture(scope="module")
def backbone_of():
    made: dict[str, Backbone] = {}

    def build(name: str) -> Backbone:
        if name not in made:
            torch.manual_seed(0)
            model, processor = (SEEING | READING | MORE)[name]()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.mul_(3.0)
                    elif not parameter.any():  # gates of cross-attention begin shut
                        parameter.add_(0.5)
            made[name] = Backbone.of(name, model, processor)
        return made[name]

    return build


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[Example]:
    root, random, examples = tmp_path_factory.mktemp("pictures"), Random(0), []
    for number, answer in enumerate(("yes", "red and white", "no")):
        path = root / f"{number}.png"
        size = (SIDE, SIDE) if number else (2 * SIDE, SIDE)
        Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1])).save(path)
        examples.append(Example(f"e{number}", "which?" + "!" * number, (answer,), (path,)))
    return examples


def of_family(family: str, asked: list[Example]) -> list[Example]:
    if family not in READING:
        return asked
    return [Example(e.id, e.question, e.answers) for e in asked]


@pytest.mark.foreign("6.1")
@pytest.mark.parametrize("family", [*SEEING, *READING, *MORE])
def test_no_logit_depends_on_a_later_answer_token(family, backbone_of, asked):
    backbone, examples = backbone_of(family), of_family(family, asked)
    check_answers_unseen(backbone, backbone.collator(), examples)
    check_answers_unseen(backbone, backbone.collator(), examples[:1])
