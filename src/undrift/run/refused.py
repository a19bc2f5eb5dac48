"""What the model itself refuses of a batch, and what is left out of the data before it can."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from undrift.data.collate import Encoded
from undrift.data.prompts import Renderer
from undrift.data.refusal import REFUSALS, refusal
from undrift.run.backbone import Backbone, Collator


_OF_PICTURES = re.compile("image|picture|pixel|patch|vision", re.IGNORECASE)


@contextmanager
def named(
    backbone: Backbone, model: Any, collator: Collator, batch: Sequence[Encoded]
) -> Iterator[None]:
    """Within this context, what fails because of one example's pictures is told with its name.

    Args:
        backbone: The backbone.
        model: The model that is called.
        collator: What made the batch.
        batch: The examples that it is called with.

    Yields:
        Nothing.

    Raises:
        DataError: If the model refuses one of them, such as pictures of more places than tokens.
    """
    try:
        yield
    except REFUSALS as error:
        if not _OF_PICTURES.search(str(error)) or not any(example.images for example in batch):
            raise

        @torch.no_grad()
        def alone(example: Encoded) -> None:
            model(**backbone.inputs(collator.collate([example])))

        @torch.no_grad()
        def plain() -> None:
            renderer = Renderer(backbone.processor, backbone.stop_ids)
            model(**backbone.inputs(renderer.plain()))

        found = refusal(type(backbone.model).__name__, batch, error, alone, plain)
        if found is error:
            raise
        raise found from error
