"""How probable a model finds texts: the loss a token of plain text, and of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from undrift.data.collate import Encoded
from undrift.data.types import Example
from undrift.errors import DataError
from undrift.run.session import Session


@torch.inference_mode()
def text_loss(session: Session, texts: Sequence[str]) -> float:
    """Return the mean loss a token of plain texts, each read by itself, without a template.

    Args:
        session: The model, in evaluation mode.
        texts: The texts; the first token of each is not predicted.

    Returns:
        Nats a token; e to this power is the perplexity.

    Raises:
        DataError: If no text has two tokens.
    """
    backbone, total, count = session.backbone, 0.0, 0
    for text in texts:
        ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) < 2:
            continue
        read = Encoded("", text, ids, [], (), [], text)
        with backbone.reading(session.collator.collate([read])) as inputs:
            logits = session.model(**inputs, use_cache=False).logits
        tokens = inputs["input_ids"][0]
        total += _summed(logits[0, -len(tokens) : -1], tokens[1:])
        count += len(tokens) - 1
    if not count:
        raise DataError("no text is longer than one token, so none has a loss")
    return total / count


@torch.inference_mode()
def answer_loss(session: Session, prompts: Sequence[Example], said: Sequence[str]) -> float:
    """Return the mean loss a token of answers behind their prompts.

    The token that ends an answer is left out, since an answer may have been cut off; so is an
    answer that is blank.

    Args:
        session: The model, in evaluation mode.
        prompts: The prompts.
        said: An answer each.

    Returns:
        Nats a token.

    Raises:
        DataError: If all answers are blank.
    """
    taught = [
        replace(prompt, answers=(answer,))
        for prompt, answer in zip(prompts, said, strict=True)
        if answer.strip()
    ]
    if not taught:
        raise DataError("every answer is blank, so none has a loss")
    encoded = [
        replace(each, answer=each.answer[:-1] or each.answer)
        for each in session.collator.encode(taught, answered=True)
    ]
    backbone, size, total, count = session.backbone, session.batch_size, 0.0, 0
    for start in range(0, len(encoded), size):
        batch = session.collator.collate(encoded[start : start + size])
        with backbone.reading(batch) as inputs:
            logits = session.model(**inputs, use_cache=False).logits[:, :-1]
        labels = inputs["labels"][:, 1:]
        there = labels >= 0
        total += _summed(logits[there], labels[there])
        count += int(there.sum())
    return total / count


def _summed(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """The summed loss of tokens (N,) under logits (N, vocabulary), in float32."""
    return float(functional.cross_entropy(logits.float(), tokens, reduction="sum"))
