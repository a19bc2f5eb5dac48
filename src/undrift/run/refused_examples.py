"""Examples that a processor refuses before anything is learned, or that a model refuses later.

A text can only be refused for a token whose name is in it, so only such texts are tokenised. And
what a processor takes at all sizes it is shown, from the narrowest to the widest and from the
smallest to the largest, is tried from the ends: behind the first that passes, all do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from undrift.data.collate import Encoded, PixelCollator, TextCollator
from undrift.data.processor import REFUSALS, blame, refuses, setting_error, text_only
from undrift.data.prompts import Renderer
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError, first_line
from undrift.run.backbone import Backbone, Collator
from undrift.run.load_model import read_processor, source

Size = tuple[int, int]
_OF_PICTURES = "image|picture|pixel|patch|vision"


def blame_example(
    backbone: Backbone, model: Any, collator: Collator, batch: Sequence[Encoded], error: Exception
) -> None:
    """Name the example whose pictures made a model fail, if it was one of a batch.

    Args:
        backbone: The backbone.
        model: The model that was called.
        collator: What made the batch.
        batch: The examples that it was called with.
        error: What it raised.

    Raises:
        DataError: If the model refuses one of them, such as pictures of more places than tokens.
    """

    @torch.no_grad()
    def alone(example: Encoded) -> None:
        with backbone.reading(collator.collate([example])) as inputs:
            model(**inputs)

    @torch.no_grad()
    def blank() -> None:
        with backbone.reading(renderer_of(backbone).blank()) as inputs:
            model(**inputs)

    if any(example.images for example in batch):
        blame(type(backbone.model).__name__, batch, error, alone, blank, _OF_PICTURES)


def renderer_of(backbone: str | Backbone) -> Renderer:
    """Make the prompts of a backbone; of one that is only named, no weights are loaded."""
    if isinstance(backbone, Backbone):
        return Renderer(backbone.processor, backbone.stop_ids, backbone.model.config)
    origin = source(backbone)
    try:
        config: Any = AutoConfig.from_pretrained(origin)
        processor = read_processor(origin)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"cannot load the processor of the backbone {backbone!r} ({origin}): "
            f"{first_line(error)}"
        ) from error
    return Renderer(processor, _stops(origin), config)


def refused(
    renderer: Renderer, examples: Sequence[Example], sizes: Mapping[Path, Size]
) -> list[str | None]:
    """Tell which examples could not be learned or asked.

    Args:
        renderer: The prompts of the model.
        examples: The examples.
        sizes: Width and height of their pictures, those that are to be shown to the processor.

    Returns:
        Why not, for each example; None for one that can.

    Raises:
        DataError: If the processor refuses every picture: that is a setting of it.
    """
    known = {path for example in examples for path in example.images}
    shown = refused_sizes(renderer, [size for path, size in sizes.items() if path in known])
    kinds: dict[tuple[int, bool], bool] = {}  # whether the first of its kind is refused
    found: list[str | None] = []
    for example in examples:
        kind = len(example.images), bool(example.system)
        if renderer.suspicious(example) or kinds.get(kind, True):
            reason = _refused_text(renderer, example)
            kinds.setdefault(kind, reason is not None)
        else:
            reason = None
        found.append(
            reason or next((shown[sizes[p]] for p in example.images if sizes.get(p) in shown), None)
        )
    return found


def refused_sizes(renderer: Renderer, sizes: Iterable[Size]) -> dict[Size, str]:
    """Tell which sizes of pictures a processor refuses.

    Args:
        renderer: The prompts, with their processor.
        sizes: Widths and heights.

    Returns:
        Why, by size.

    Raises:
        DataError: If it refuses every picture.
    """
    found: dict[Size, str] = {}
    distinct, who = set(sizes), type(renderer.processor).__name__
    if distinct:
        try:
            renderer.blank()
        except REFUSALS as error:
            raise setting_error(refuses(who, "every picture", error)) from error
    orders = (lambda size: size[0] / size[1], lambda size: size[0] * size[1])
    for order, last in itertools.product(orders, (False, True)):
        for size in sorted(distinct, key=order, reverse=last):
            if size not in found:
                try:
                    renderer.blank(size)
                    break
                except REFUSALS as error:
                    found[size] = refuses(who, f"a picture of {size[0]} x {size[1]}", error)
    return found


def _stops(origin: str) -> list[int]:
    """The tokens at which the model's answers end, beside the tokenizer's own."""
    try:
        stops: Any = GenerationConfig.from_pretrained(origin).eos_token_id
    except OSError:  # it brings no such file
        return []
    return [stops] if isinstance(stops, int) else list(stops or ())


def _refused_text(renderer: Renderer, example: Example) -> str | None:
    text = text_only(renderer.processor)
    collator = TextCollator(renderer, positions=False) if text else PixelCollator(renderer)
    try:
        collator.encode([example], answered=True)
    except DataError as error:
        return str(error)
    return None
