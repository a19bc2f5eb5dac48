"""Backbones by name, and what is said when there is none."""

from __future__ import annotations

import copy
from dataclasses import replace

import peft
import pytest
import torch

from undrift.data.collate import PixelCollator
from undrift.data.prompts import Renderer
from undrift.errors import ConfigError, UnknownName
from undrift.run.backbone import Backbone
from undrift.tuner import ForwardContext


def test_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownName, match="unknown backbone 'pokcet'; did you mean 'pocket'"):
        Backbone.load("pokcet")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        Backbone.load(str(tmp_path))


def test_hub_name_that_cannot_be_had_offline():
    with pytest.raises(ConfigError, match="cannot load the backbone 'nobody/nothing'"):
        Backbone.load("nobody/nothing")


def test_folder_with_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ConfigError, match=r"has no decoder that answers: its config\.json says bert"
    ):
        Backbone.load(str(tmp_path))


def test_unknown_dtype_and_device(backbone_folder):
    with pytest.raises(ConfigError, match="no dtype is called 'float33'"):
        Backbone.load(str(backbone_folder), dtype="float33")
    with pytest.raises(ConfigError, match="no device is called 'gpux'"):
        Backbone.load(str(backbone_folder), device="gpux")


def test_loaded_frozen_in_float32_on_a_cpu(backbone):
    assert backbone.model.dtype == torch.float32
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training
    assert backbone.stop_ids == (backbone.processor.tokenizer.eos_token_id,)


def test_half_precision_backbone_takes_kept_features(backbone_folder, tiny):
    backbone = Backbone.load(str(backbone_folder), dtype="bfloat16", device="cpu")
    examples = tiny.tasks[0].train[:2]
    backbone.prepare([path for e in examples for path in e.images])
    collator = backbone.collator()
    batch = backbone.inputs(collator.collate(collator.encode(examples, answered=True)))
    assert batch["inputs_embeds"].dtype == torch.bfloat16
    assert torch.isfinite(backbone.model(**batch).loss)


def test_kept_features_and_pixels_show_the_same_prompt(backbone, tiny):
    examples = tiny.tasks[0].train[:3]
    seen = []
    ForwardContext.attach(backbone.model).on_prompt = seen.append
    pixels = PixelCollator(Renderer(backbone.processor, backbone.stop_ids))
    backbone.prepare([path for e in examples for path in e.images])
    for collator in (pixels, backbone.collator()):
        for taught in (False, True):
            batch = collator.collate(collator.encode(examples, answered=taught))
            with backbone.reading(batch) as inputs:
                backbone.model(**inputs)
    shown = [[rows[mask] for rows, mask in zip(p.embeds, p.mask, strict=True)] for p in seen]
    images = [p.image_mask.sum(1).tolist() for p in seen]
    assert len(seen) == 4 and all(counts == images[0] and min(counts) > 0 for counts in images)
    for other in shown[1:]:
        for ours, theirs in zip(shown[0], other, strict=True):
            torch.testing.assert_close(
                ours, theirs, atol=2e-3, rtol=2e-3
            )  # features kept in halves


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"target_modules": r".*language_model.*q_proj"}, True),
        ({"target_modules": r".*vision_tower.*q_proj"}, False),
        ({"target_modules": r".*linear_1"}, False),  # the projector's
        ({"target_modules": r".*language_model.*q_proj", "bias": "all"}, False),
    ],
)
def test_features_are_kept_only_of_pictures_as_the_base_sees_them(backbone, options, kept):
    assert backbone.keeps_features
    model = peft.get_peft_model(copy.deepcopy(backbone.model), peft.LoraConfig(r=2, **options))
    adapted = replace(backbone, model=model.get_base_model())
    assert adapted.keeps_features is kept
