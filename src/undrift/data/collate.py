"""Examples to tensors: the prompt, the pictures, and labels on the answer alone.

A prompt is tokenised exactly as at inference; the answer's tokens are put behind it, and only they
carry labels. There are three collators with one interface, `encode` (once per task) and `collate`
(once per batch): `FeatureCollator` puts kept image features in the place of image tokens,
`PixelCollator` hands pixels to the processor of any model, `TextCollator` serves text-only ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from undrift.data.pictures import open_picture
from undrift.data.prompts import Renderer
from undrift.data.types import Example
from undrift.errors import DataError

IGNORED = -100  # the label that cross entropy leaves out


@dataclass(frozen=True)
class Encoded:
    """One example, rendered and tokenised.

    Args:
        id: The example's id.
        text: The rendered prompt.
        prompt: Token ids of the prompt.
        answer: Token ids of the answer with the end-of-turn token; empty for generation.
        images: The pictures, in order.
        rows: The pictures' rows in the feature store, if there is one.
        question: The question alone, without the template around it.
    """

    id: str
    text: str
    prompt: list[int]
    answer: list[int]
    images: tuple[Path, ...]
    rows: list[int]
    question: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Features(Protocol):
    """What a collator needs of a feature store; every picture must have been prepared."""

    @property
    def tokens(self) -> int:
        """Image tokens a picture."""
        ...

    def rows(self, pictures: Sequence[Path]) -> list[int]:
        """Rows of pictures."""
        ...

    def take(self, rows: Sequence[int]) -> Tensor:
        """Features of rows, (len(rows), n_tokens, d)."""
        ...


class FeatureCollator:
    """Batches for a model whose image features are kept: no picture is opened, no tower run.

    The batch is padded on the left and holds `image_features` (images, n_tokens, d) for the places
    where `input_ids` is the image token; with labels, only the last positions get logits.

    Args:
        renderer: The prompts.
        features: The kept features.
        image_token: The placeholder in the rendered prompt.
        image_token_id: Its token id.
    """

    def __init__(
        self, renderer: Renderer, features: Features, image_token: str, image_token_id: int
    ) -> None:
        self._renderer = renderer
        self._features = features
        self._image_token = image_token
        self._image_token_id = image_token_id
        self._pad = _pad_id(renderer.tokenizer)

    def encode(self, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
        """Render and tokenise, once per task.

        Args:
            examples: The examples; their pictures must be in the feature store.
            answered: With answers, for training.

        Returns:
            One encoded example each, in the same order.

        Raises:
            DataError: If a text holds the image token as plain text.
        """
        texts = self._renderer.prompts(examples)
        places = self._image_token * self._features.tokens
        prompts = self._renderer.ids([text.replace(self._image_token, places) for text in texts])
        empty: list[list[int]] = [[] for _ in examples]
        answers = self._renderer.answers(examples, texts) if answered else empty
        encoded = []
        for example, text, prompt, answer in zip(examples, texts, prompts, answers, strict=True):
            expected = self._features.tokens * len(example.images)
            if (prompt + answer).count(self._image_token_id) != expected:
                raise DataError(
                    f"the text of example {example.id!r} holds {self._image_token!r}, which stands "
                    f"for a picture; take it out: {example.question[:80]!r}"
                )
            rows = self._features.rows(example.images)
            encoded.append(
                Encoded(example.id, text, prompt, answer, example.images, rows, example.question)
            )
        return encoded

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Pad to one length and gather the image features."""
        out = _left_padded(batch, self._pad)
        rows = [row for example in batch for row in example.rows]
        if rows:
            out["image_features"] = self._features.take(rows)
        if batch[0].answer:
            kept = max(len(example.answer) for example in batch) + 1
            labels = [[IGNORED] * (kept - len(e.answer)) + e.answer for e in batch]
            out |= {"labels": torch.tensor(labels), "logits_to_keep": kept}
        return out


class PixelCollator:
    """Batches for any vision-language model: its processor makes the pixels and the masks.

    Args:
        renderer: The prompts.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._pad = _pad_id(renderer.tokenizer)

    def encode(self, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
        """Render and tokenise the text; pictures are opened batch by batch (see FeatureCollator).

        Args:
            examples: The examples.
            answered: With answers, for training.

        Returns:
            One encoded example each, in the same order.

        Raises:
            DataError: If a prompt has not one image token for each picture.
        """
        encoded = _encoded(self._renderer, examples, answered=answered)
        token = getattr(self._renderer.processor, "image_token", None)
        for example, made in zip(examples, encoded, strict=True):
            if token is not None and made.text.count(token) != len(example.images):
                raise DataError(
                    f"the prompt of example {example.id!r} holds {token!r}, which stands for a "
                    f"picture, {made.text.count(token)} times, and the example has "
                    f"{len(example.images)} pictures; take it out of the text, or look at the "
                    f"chat template: {made.text[:80]!r}"
                )
        return encoded

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Let the processor make the prompt's tensors, then put the answers behind them."""
        texts = [example.text for example in batch]
        pictures = [[open_picture(path) for path in example.images] for example in batch]
        made = self._renderer.processor(
            text=texts,
            images=pictures if any(pictures) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **self._renderer.text_options(texts),
        )
        return _append_answers(dict(made), [example.answer for example in batch], self._pad)


class TextCollator:
    """Batches for a text-only model, padded on the left.

    Args:
        renderer: The prompts.
        positions: Whether the model takes `position_ids`; learned positions would else be counted
            from the padding.
    """

    def __init__(self, renderer: Renderer, *, positions: bool) -> None:
        self._renderer = renderer
        self._positions = positions
        self._pad = _pad_id(renderer.tokenizer)

    def encode(self, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
        """Render and tokenise, once per task.

        Args:
            examples: The examples.
            answered: With answers, for training.

        Returns:
            One encoded example each, in the same order.

        Raises:
            DataError: If an example has a picture.
        """
        for example in examples:
            if example.images:
                raise DataError(
                    f"example {example.id!r} has a picture ({example.images[0]}), and the backbone "
                    "reads text only; choose a vision-language model"
                )
        return _encoded(self._renderer, examples, answered=answered)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Pad to one length."""
        out = _left_padded(batch, self._pad)
        if not self._positions:
            del out["position_ids"]
        if batch[0].answer:
            length = out["input_ids"].shape[1]
            labels = [[IGNORED] * (length - len(e.answer)) + e.answer for e in batch]
            out["labels"] = torch.tensor(labels)
        return out


def fitting(made: dict[str, Any], batch: Sequence[Encoded], config: Any) -> dict[str, Any]:
    """Refuse a batch in which an example is longer than the model has positions.

    Args:
        made: What a collator made of the batch: pictures count with all their tokens.
        batch: The examples.
        config: The model's configuration.

    Returns:
        The same tensors.

    Raises:
        DataError: If one is; it is named.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and made["input_ids"].shape[1] > limit:
        lengths = made["attention_mask"].sum(1)
        longest = int(lengths.argmax())
        name = batch[longest].id
        what = "with its answer takes" if batch[longest].answer else "takes"
        raise DataError(
            f"example {name!r} {what} {int(lengths[longest])} tokens, and the model has "
            f"{limit} positions; shorten it or leave it out (`undrift doctor --backbone` lists all)"
        )
    return made


def _encoded(renderer: Renderer, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
    texts = renderer.prompts(examples)
    prompts = renderer.ids(texts)
    empty: list[list[int]] = [[] for _ in examples]
    answers = renderer.answers(examples, texts) if answered else empty
    return [
        Encoded(example.id, text, prompt, answer, example.images, [], example.question)
        for example, text, prompt, answer in zip(examples, texts, prompts, answers, strict=True)
    ]


def _left_padded(batch: Sequence[Encoded], pad: int) -> dict[str, Any]:
    length = max(map(len, batch))
    spare = [length - len(example) for example in batch]
    ids = [[pad] * n + e.prompt + e.answer for n, e in zip(spare, batch, strict=True)]
    positions = torch.arange(length) - torch.tensor(spare)[:, None]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (positions >= 0).long(),
        "position_ids": positions.clamp(min=0),
    }


def _append_answers(
    made: dict[str, Any], answers: Sequence[Sequence[int]], pad: int
) -> dict[str, Any]:
    """Lengthen every per-token tensor of a processor's output by the answers, padded right."""
    room = max(map(len, answers))
    if not room:
        return made
    shape = made["input_ids"].shape
    tail = torch.tensor([[*answer, *[pad] * (room - len(answer))] for answer in answers])
    there = torch.tensor([[1] * len(a) + [0] * (room - len(a)) for a in answers])
    tails = {"input_ids": tail, "attention_mask": there}
    for key, value in made.items():
        if isinstance(value, Tensor) and value.shape == shape:
            more = tails.get(key, torch.zeros_like(tail))
            made[key] = torch.cat([value, more.to(value.dtype)], dim=1)
    labels = torch.full(shape, IGNORED)
    made["labels"] = torch.cat([labels, tail.masked_fill(there == 0, IGNORED)], dim=1)
    return made


def _pad_id(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
