"""What a prompt looks like to a task matcher: one vector for its pictures, one for its text.

By default both come from the model itself: the picture's from what the frozen vision tower and
projector put in the place of the image tokens, the text's from the input embeddings. They are
computed in float64, so that neither padding nor the rest of the batch can be seen in them. With
the option `encoder` another model makes both: CLIP, as published, or a sentence encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from undrift.errors import ConfigError
from undrift.methods import base
from undrift.methods.shared.adapter import peft_model
from undrift.tuner.distributed import opened_embedding
from undrift.tuner.forward import Prompt
from undrift.tuner.peft_internals import BaseTunerLayer, switch_layers

MODALITIES = ("image", "text")
_ROWS = 4096  # of the embedding table at a time


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(base.Config):
    """The options of `base.Config`, and who looks at the prompts.

    Attributes:
        encoder: A folder or Hub name of a CLIP-like model or of a sentence encoder, whose features
            of the picture and the question are compared; the model's own where None.
    """

    encoder: str | None = None


@dataclass(frozen=True)
class Features:
    """Unit vectors of a batch of prompts.

    Attributes:
        of: By modality, (B, d) float32; a row is zero where the prompt lacks the modality.
        present: By modality, (B,) bool.
    """

    of: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


def features(prompt: Prompt, centre: Tensor, encoder: str | None = None) -> Features:
    """Average the embeddings of a prompt's pictures and of its text, or take an encoder's features.

    The image feature is taken after the projector, where image features that are kept on disk
    begin [OURS; the specification's default is the tower's output before it]. A text without a
    token and a prompt without a picture are marked as not present.

    Args:
        prompt: What the language model is given.
        centre: The mean row of the embedding table, which every text shares, (d,).
        encoder: The method's option.

    Returns:
        The features, without a graph; those of an encoder end in zeros, which no cosine sees.

    Raises:
        ConfigError: If the encoder's features are missing, or longer than d.
    """
    if encoder is not None:
        return _encoded(prompt, centre, encoder)
    shifts = {"image": torch.zeros_like(centre), "text": centre}
    masks = {"image": prompt.image_mask, "text": prompt.text_mask}
    embeds = prompt.embeds.detach().double()
    of, present = {}, {}
    for name in MODALITIES:
        mask = masks[name]
        mean = (mask.double()[:, None] @ embeds).squeeze(1) / mask.sum(1, keepdim=True).clamp_min(1)
        present[name] = mask.any(1)
        unit = functional.normalize(mean - shifts[name].double(), dim=1)
        of[name] = (unit * present[name][:, None]).float()
    return Features(of, present)


def _encoded(prompt: Prompt, centre: Tensor, encoder: str) -> Features:
    """What the encoder has made of a prompt, brought to the length of the model's embeddings."""
    if prompt.encoded is None:
        raise ConfigError(
            f"the features of the encoder {encoder!r} are missing: `undrift run` hands them over; "
            "in a trainer of your own call the model within "
            "ForwardContext.of(model).given(encoded=...)"
        )
    spare = len(centre) - prompt.encoded["text"].shape[1]
    if spare < 0:
        raise ConfigError(
            f"the features of the encoder {encoder!r} have {len(centre) - spare} numbers, and the "
            f"model's embeddings {len(centre)}; choose a smaller encoder"
        )
    found = {name: prompt.encoded[name].to(centre.device).float() for name in MODALITIES}
    of = {name: functional.pad(vectors, (0, spare)) for name, vectors in found.items()}
    return Features(of, {name: vectors.any(1) for name, vectors in of.items()})


@torch.no_grad()
def embedding_centre(model: nn.Module) -> Tensor:
    """Average what the model's embedding gives for each token of the vocabulary.

    Args:
        model: A transformers model, with or without a PeftModel around it.

    Returns:
        (d,) float64.
    """
    inner: Any = model
    table = inner.get_input_embeddings()
    rows, place = table.weight.shape[0], table.weight.device
    with opened_embedding(table) as look_up:
        parts = [
            look_up(torch.arange(start, min(start + _ROWS, rows), device=place)).double().sum(0)
            for start in range(0, rows, _ROWS)
        ]
    return torch.stack(parts).sum(0) / rows


@torch.no_grad()
def hidden_features(model: nn.Module, prompt: Prompt) -> Tensor:
    """Read the last prompt token's hidden state in the base model, adapters off: one more prefill.

    Args:
        model: What `attach` returned.
        prompt: What the language model is given; answers are left out.

    Returns:
        (B, d), of any length.
    """
    mask = prompt.text_mask | prompt.image_mask
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    decoder: Any = peft_model(model).get_base_model().get_decoder()  # pyright: ignore
    with adapters_off(model):  # `forward` itself: hooks on the decoder make prompts of calls
        out = decoder.forward(
            inputs_embeds=prompt.embeds.detach(),
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
        )
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    return out.last_hidden_state[torch.arange(len(last), device=last.device), last]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within this context the base model answers; what requires gradients stays as it is.

    Args:
        model: A model with an adapter.

    Yields:
        Nothing.
    """
    on = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    switch_layers(on, off=True)
    try:
        yield
    finally:
        switch_layers(on, off=False)
