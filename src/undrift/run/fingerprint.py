"""A digest of all that decides a backbone's answers, so that an adapter finds its own again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from undrift.data.processor import text_only, tokenizer_of

_DECISIVE = ("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads")
_PICTURES = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_normalize",
             "image_mean", "image_std", "rescale_factor")  # fmt: skip
_SAMPLE = 4096  # values of each tensor that enter the fingerprint


def digest(model: Any, processor: Any) -> str:
    """Digest what decides the model's answers, sampling the values of large tensors.

    Only fields that are part of every saved model enter, so that another version of transformers,
    which may know more fields, finds the same.

    Args:
        model: The backbone's model.
        processor: Its processor, or a text-only model's tokenizer.

    Returns:
        A hexadecimal digest.
    """
    config = model.config.to_dict()
    pictures = None if text_only(processor) else processor.image_processor
    facts = {
        "config": {
            part: {key: fields.get(key) for key in _DECISIVE}
            for part, fields in [("", config), *config.items()]
            if isinstance(fields, dict)
        },
        "pictures": {key: getattr(pictures, key, None) for key in _PICTURES},
        "template": processor.chat_template,
        "vocabulary": sorted(tokenizer_of(processor).get_vocab().items()),
    }
    made = hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode())
    for name, tensor in sorted(model.state_dict().items()):
        step = max(1, tensor.numel() // _SAMPLE)
        values = tensor.detach().flatten()[::step].to("cpu", torch.float32)
        made.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return made.hexdigest()


def _plain(value: Any) -> Any:
    """Write what JSON does not know: a size as the sides that are given, an enum as its value."""
    if hasattr(value, "items"):
        return {key: side for key, side in value.items() if side is not None}
    return str(getattr(value, "value", value))
