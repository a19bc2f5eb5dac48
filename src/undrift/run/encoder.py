"""Features of pictures and texts by another model: CLIP and its like, or a sentence encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from undrift.data.collate import Encoded, FeatureCollator, PixelCollator, TextCollator
from undrift.data.picture_decoding import open_picture
from undrift.data.types import Example
from undrift.errors import ConfigError, first_line
from undrift.run.load_model import encoder_source

_OURS: dict[str, Any] = {"trust_remote_code": False}


class Encoder:
    """A frozen model that makes one vector of a picture, and one of a text.

    A CLIP-like model (one with `get_image_features`) makes both. Of any other the mean of the last
    hidden states over a text's tokens is taken, which makes a sentence encoder; it has no pictures.
    Texts longer than the model reads keep their end, where the answer's form is asked for.

    Args:
        name: As given by the user.
        model: From `AutoModel`, in evaluation mode.
        tokenizer: Its tokenizer, cutting on the left.
        pictures: Its image processor; None for a sentence encoder.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, pictures: Any) -> None:
        self.name, self.model = name, model
        self.tokenizer, self.pictures = tokenizer, pictures
        text = model.config.get_text_config()
        self._longest = min(getattr(text, "max_position_embeddings", 512), 512)
        # SigLIP was trained on texts padded to their full length, and without a mask
        self._padding = "max_length" if "siglip" in model.config.model_type else True

    @classmethod
    def load(cls, name: str, device: torch.device) -> Self:
        """Load an encoder, from safetensors only.

        Args:
            name: A folder, or a Hub name such as "openai/clip-vit-large-patch14".
            device: Where to put it.

        Returns:
            The encoder.

        Raises:
            ConfigError: If there is no such model or it cannot be used.
        """
        origin = encoder_source(name)
        try:
            config = AutoConfig.from_pretrained(origin, **_OURS)
            model = AutoModel.from_pretrained(origin, config=config, use_safetensors=True, **_OURS)
            tokenizer = AutoTokenizer.from_pretrained(origin, truncation_side="left", **_OURS)
            sees = hasattr(model, "get_image_features")
            pictures = AutoImageProcessor.from_pretrained(origin, **_OURS) if sees else None
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"cannot load the encoder {name!r}: {first_line(error)}; expected a folder or a "
                "Hub name of a CLIP-like model or a sentence encoder, in safetensors"
            ) from error
        return cls(name, model.requires_grad_(False).eval().to(device), tokenizer, pictures)

    @torch.no_grad()
    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Encode the questions and pictures of a batch.

        Args:
            examples: The batch, B.

        Returns:
            By modality ("image", "text"), unit vectors (B, width) on the CPU; of several pictures
            their mean, and zero where there is none.
        """
        texts = self._texts([example.question for example in examples])
        if self.pictures is None:
            return {"image": torch.zeros_like(texts).cpu(), "text": texts.cpu()}
        found = torch.zeros_like(texts)
        owners = [row for row, example in enumerate(examples) for _ in example.images]
        if owners:
            images = [open_picture(path) for example in examples for path in example.images]
            pixels = self.pictures(images, return_tensors="pt")["pixel_values"]
            made = self.model.get_image_features(pixel_values=pixels.to(texts))
            rows = torch.tensor(owners, device=texts.device)
            found.index_add_(0, rows, functional.normalize(_pooled(made).float(), dim=1))
        return {"image": functional.normalize(found, dim=1).cpu(), "text": texts.cpu()}

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (B, width)."""
        given = self.tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(self.model.device)
        if self.pictures is not None:
            return functional.normalize(
                _pooled(self.model.get_text_features(**given)).float(), dim=1
            )
        states = self.model(**given).last_hidden_state.float()
        mask = given["attention_mask"][..., None]
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


class EncodingCollator:
    """Batches of another collator, with an encoder's features in `encoded`.

    Args:
        inner: The collator.
        encoder: The encoder.
    """

    def __init__(
        self, inner: FeatureCollator | PixelCollator | TextCollator, encoder: Encoder
    ) -> None:
        self._inner, self._encoder = inner, encoder

    def encode(self, examples: Sequence[Example], *, answered: bool) -> list[Encoded]:
        """Render and tokenise.

        Args:
            examples: The examples.
            answered: With answers, for training.

        Returns:
            One encoded example each, in the same order.
        """
        return self._inner.encode(examples, answered=answered)

    def check(self, examples: Iterable[Example]) -> None:
        """Refuse what `encode` would refuse for a token in a text."""
        self._inner.check(examples)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Make a batch, and encode it."""
        return self._inner.collate(batch) | {"encoded": self._encoder(batch)}


def _pooled(made: Any) -> Tensor:
    return made if isinstance(made, Tensor) else made.pooler_output
