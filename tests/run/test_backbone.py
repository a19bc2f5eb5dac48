"""Backbones by name, and what is said when there is none."""

from __future__ import annotations

import pytest
import torch

from undrift.errors import ConfigError, UnknownName
from undrift.run.backbone import Backbone


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
