"""Greedy answers in batches: padded on the left, sorted by length, the same whatever the batch.

Where image features are kept, a short loop over the model's own forward and cache is used: on a
small model `generate` costs as much again as the model itself. Every other model goes through
`generate`. Tests hold the two to the same answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from undrift.data.collate import Encoded, fitting
from undrift.run.backbone import Backbone, Collator
from undrift.run.refused_examples import named
from undrift.tuner.forward import cache_of


def answers(
    backbone: Backbone,
    model: Any,
    collator: Collator,
    examples: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, str]]:
    """Answer every example, batch by batch.

    Args:
        backbone: Whose tokenizer and inputs are used.
        model: The model with its adapters, in evaluation mode.
        collator: The collator that encoded the examples.
        examples: Encoded prompts, without answers.
        max_new_tokens: Longest answer.
        batch_size: Examples at a time.
        progress: Called with the number of examples just answered.

    Yields:
        (id, answer text), most pictures first, then longest prompts.
    """
    for part, made in _batches(backbone, collator, examples, batch_size):
        with named(backbone, model, collator, part):
            tokens = greedy(backbone, model, made, max_new_tokens)
        for example, text in zip(part, decode(backbone, tokens), strict=True):
            yield example.id, text
        if progress is not None:
            progress(len(part))


@torch.inference_mode()
def read(
    backbone: Backbone,
    model: Any,
    collator: Collator,
    examples: Sequence[Encoded],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Let the model read prompts without answering them, always in the same batches.

    What it makes of them is for whoever watches, such as `undrift.tuner.route_recorder.recorded`.

    Args:
        backbone: Whose inputs are used.
        model: The model with its adapters, in evaluation mode.
        collator: The collator that encoded the examples.
        examples: Encoded prompts, without answers.
        batch_size: Examples at a time.
        progress: Called with the number of examples just read.
    """
    for part, made in _batches(backbone, collator, examples, batch_size):
        with named(backbone, model, collator, part), backbone.reading(made) as inputs:
            model(**inputs, **_last(backbone), use_cache=False)
        if progress is not None:
            progress(len(part))


def _batches(
    backbone: Backbone, collator: Collator, examples: Sequence[Encoded], batch_size: int
) -> Iterator[tuple[list[Encoded], dict[str, Any]]]:
    """Collate prompts, most pictures first, then the longest."""
    order = sorted(examples, key=lambda e: (-len(e.images), -len(e.prompt), e.text, e.id))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, fitting(collator.collate(part), part, backbone.model.config)


@torch.inference_mode()
def greedy(backbone: Backbone, model: Any, batch: dict[str, Any], max_new_tokens: int) -> Tensor:
    """Extend each prompt by its most probable tokens.

    Args:
        backbone: The backbone.
        model: The model with its adapters.
        batch: A collated batch of prompts, padded on the left.
        max_new_tokens: How many tokens at most.

    Returns:
        New token ids (B, at most max_new_tokens); what follows a stop token means nothing.
    """
    with backbone.reading(batch) as inputs:
        return _greedy(backbone, model, inputs, max_new_tokens)


def _greedy(backbone: Backbone, model: Any, inputs: dict[str, Any], max_new_tokens: int) -> Tensor:
    if "inputs_embeds" not in inputs:
        return _generate(backbone, model, inputs, max_new_tokens)
    stops = torch.tensor(backbone.stop_ids, device=backbone.device)
    mask, positions = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    out = model(**inputs, **_last(backbone), use_cache=True)
    tokens: list[Tensor] = []
    finished = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    while True:
        tokens.append(out.logits[:, -1].argmax(-1))
        finished |= torch.isin(tokens[-1], stops)
        if len(tokens) == max_new_tokens or finished.all():
            return torch.stack(tokens, dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions + 1
        out = model(
            inputs_embeds=backbone.embed(tokens[-1][:, None]),
            attention_mask=mask,
            position_ids=positions,
            **cache_of(out),
            use_cache=True,
        )


def decode(backbone: Backbone, tokens: Tensor) -> list[str]:
    """Turn new tokens into texts, each ending before its first stop token.

    Of the special tokens only those that begin, end and pad are left out: `<ref>`, `<box>` and the
    like are part of an answer.

    Args:
        backbone: Whose tokenizer and stop tokens are used.
        tokens: Token ids (B, n).

    Returns:
        B texts, stripped of surrounding space.
    """
    tokenizer, stops = backbone.tokenizer, set(backbone.stop_ids)
    around = {tokenizer.bos_token_id, tokenizer.pad_token_id}
    rows = []
    for row in tokens.tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row))
        rows.append([token for token in row[:end] if token not in around])
    texts = tokenizer.batch_decode(
        rows, skip_special_tokens=False, spaces_between_special_tokens=False
    )
    return [text.strip() for text in texts]


def _generate(
    backbone: Backbone, model: Any, inputs: dict[str, Any], max_new_tokens: int
) -> Tensor:
    tokenizer = backbone.tokenizer
    inputs.pop("position_ids", None)  # `generate` makes them from the mask
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else backbone.stop_ids[0]
    made = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(backbone.stop_ids),
        pad_token_id=pad,
        **_last(backbone),
    )
    return made[:, inputs["input_ids"].shape[1] :]


def _last(backbone: Backbone) -> dict[str, Tensor]:
    """The last position as an index: of a slice, the product with the head is not contiguous."""
    takes = "logits_to_keep" in inspect.signature(backbone.model.forward).parameters
    return {"logits_to_keep": torch.tensor([-1], device=backbone.device)} if takes else {}
