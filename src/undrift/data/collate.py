"""Examples to tensors: the prompt, the pictures, and labels on the answer alone.

A prompt is tokenised exactly as at inference; the answer's tokens are put behind it, and only they
carry labels. `encode` makes the tokens and `collate` a batch: `FeatureCollator` puts kept image
features in the place of image tokens, `PixelCollator` hands pixels to the processor of any model,
`TextCollator` serves text-only ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from undrift.data.picture_decoding import open_picture
from undrift.data.processor import IGNORED, lengthened, naming
from undrift.data.prompts import Renderer
from undrift.data.types import Example
from undrift.errors import DataError

_AT_ONCE = 1024  # texts that are tokenised together: what a tokenizer tells of each takes kilobytes


@dataclass(frozen=True, slots=True)
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


class KeptFeatures(Protocol):
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


class _Collator:
    """What all collators do: render and tokenise examples; `collate` is each one's own.

    Args:
        renderer: The prompts.
        cut: Whether the model takes `logits_to_keep`: then only the last positions get logits.
    """

    def __init__(self, renderer: Renderer, *, cut: bool = False) -> None:
        self._renderer = renderer
        self._cut = cut
        own = renderer.tokenizer
        self._pad = own.eos_token_id if own.pad_token_id is None else own.pad_token_id

    def encode(self, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
        """Render and tokenise; pictures are not opened.

        Args:
            examples: The examples.
            answered: With answers, for training.

        Returns:
            One encoded example each, in the same order.

        Raises:
            DataError: If a prompt has not one image token for each picture, if a text holds a token
                that stands for one or ends one, or if the model cannot read an example's pictures.
        """
        parts = (examples[at : at + _AT_ONCE] for at in range(0, len(examples), _AT_ONCE))
        return [one for part in parts for one in self._encoded(part, answered=answered)]

    def check(self, examples: Iterable[Example]) -> None:
        """Refuse what `encode` would refuse for a token in a text, without encoding the rest.

        Args:
            examples: The examples; the first of each kind, and texts with the name of such a token,
                are encoded.

        Raises:
            DataError: As `encode` does. What a chat template refuses for other reasons is not
                found.
        """
        kinds, doubtful = set[tuple[int, bool]](), list[Example]()
        for example in examples:
            kind = len(example.images), bool(example.system)
            if kind not in kinds or self._renderer.suspicious(example):
                kinds.add(kind)
                doubtful.append(example)
        self.encode(doubtful, answered=True)

    def _encoded(self, examples: Sequence[Example], *, answered: bool) -> Iterator[Encoded]:
        texts = self._renderer.prompts(examples)
        prompts = self._renderer.ids([self._spread(text) for text in texts])
        empty: list[list[int]] = [[] for _ in examples]
        answers = self._renderer.answers(examples, texts) if answered else empty
        for example, text, prompt, answer in zip(examples, texts, prompts, answers, strict=True):
            self._renderer.check(example, text, prompt, answer, self._times())
            images, rows, question = example.images, self._rows(example), example.question
            yield Encoded(example.id, text, prompt, answer, images, rows, question)

    def _spread(self, text: str) -> str:
        return text

    def _times(self) -> dict[int, int]:
        """How many of a token a prompt has in the place of one of the template's."""
        return {}

    def _rows(self, example: Example) -> list[int]:
        return []

    def _left_padded(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Pad prompts with their answers to one length, and label the answers."""
        length = max(map(len, batch))
        spare = [length - len(example) for example in batch]
        ids = [[self._pad] * n + e.prompt + e.answer for n, e in zip(spare, batch, strict=True)]
        positions = torch.arange(length) - torch.tensor(spare)[:, None]
        out: dict[str, Any] = {
            "input_ids": torch.tensor(ids),
            "attention_mask": (positions >= 0).long(),
            "position_ids": positions.clamp(min=0),
        }
        if batch[0].answer:
            kept = max(len(e.answer) for e in batch) + 1 if self._cut else length
            labels = [[IGNORED] * (kept - len(e.answer)) + e.answer for e in batch]
            out["labels"] = torch.tensor(labels)
            if self._cut:
                out["logits_to_keep"] = _last(out, kept)
        return out


class FeatureCollator(_Collator):
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
        self, renderer: Renderer, features: KeptFeatures, image_token: str, image_token_id: int
    ) -> None:
        super().__init__(renderer, cut=True)
        self._features = features
        self._image_token, self._image_token_id = image_token, image_token_id

    def _spread(self, text: str) -> str:
        return text.replace(self._image_token, self._image_token * self._features.tokens)

    def _times(self) -> dict[int, int]:
        return {self._image_token_id: self._features.tokens}

    def _rows(self, example: Example) -> list[int]:
        return self._features.rows(example.images)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Pad to one length and gather the image features."""
        out = self._left_padded(batch)
        rows = [row for example in batch for row in example.rows]
        if rows:
            out["image_features"] = self._features.take(rows)
        return out


class PixelCollator(_Collator):
    """Batches for any vision-language model: its processor makes the pixels and the masks."""

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Let the processor make the prompt's tensors, then put the answers behind them.

        Args:
            batch: Encoded examples.

        Returns:
            The tensors; with answers also `labels`.

        Raises:
            DataError: If the processor refuses an example; it is named.
        """
        who, blank = type(self._renderer.processor).__name__, self._renderer.blank
        with naming(who, batch, lambda one: self._read([one]), blank):
            made = self._read(batch)
        if not batch[0].answer:
            return made
        answers = [example.answer for example in batch]
        out = lengthened(made, answers, self._pad, self._renderer.processor)
        if self._cut:
            kept = max(map(len, answers)) + 1
            out |= {"labels": out["labels"][:, -kept:], "logits_to_keep": _last(out, kept)}
        return out

    def _read(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        pictures = [[open_picture(path) for path in example.images] for example in batch]
        return self._renderer.read([example.text for example in batch], pictures)


class TextCollator(_Collator):
    """Batches for a text-only model, padded on the left.

    Args:
        renderer: The prompts.
        positions: Whether the model takes `position_ids`; learned positions would else be counted
            from the padding.
        cut: Whether the model takes `logits_to_keep`: then only the last positions get logits.
    """

    def __init__(self, renderer: Renderer, *, positions: bool, cut: bool = False) -> None:
        super().__init__(renderer, cut=cut)
        self._positions = positions

    def encode(self, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
        """Render and tokenise; a DataError names an example with a picture."""
        for example in examples:
            if example.images:
                raise DataError(
                    f"example {example.id!r} has a picture ({example.images[0]}), and the backbone "
                    "reads text only; choose a vision-language model"
                )
        return super().encode(examples, answered=answered)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Pad to one length."""
        out = self._left_padded(batch)
        if not self._positions:
            del out["position_ids"]
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
            f"{limit} positions; shorten it or leave it out: "
            "`undrift doctor DATA --backbone MODEL` lists all"
        )
    return made


def _last(made: Mapping[str, Any], count: int) -> Tensor:
    """The last positions as indices: of a slice, the product with the head is not contiguous."""
    length = made["input_ids"].shape[1]
    return torch.arange(length - count, length)
