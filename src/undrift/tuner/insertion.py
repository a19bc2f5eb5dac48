"""Tokens put into the input of a decoder behind the first one, a choice of them for each sample.

While the prompt is read they are inserted, whatever the padding; while an answer is decoded they
lie in the cache, and masks and positions are lengthened to match it. What comes out has the length
of what went in: the first token's place has the hidden state of the last inserted one, so that
labels and logits fit as if nothing had been inserted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.tuner.decoding import goes_on, named


class Insertion:
    """Inserts into the calls of one decoder.

    Args:
        first: The embedding of the token that stands first where it is there, (d,).
        due: Asked at every prefill whether anything is to be inserted.

    Attributes:
        chosen: What the next prefill inserts, (B, n, d); set it before the decoder is called.
    """

    def __init__(self, first: Tensor | None, due: Callable[[], bool]) -> None:
        self.chosen: Tensor | None = None
        self._first, self._due = first, due
        self._starts = torch.zeros(
            0, dtype=torch.long
        )  # where the cache's rows have their tokens, (B,)
        self._count = 0
        self._cut = False

    def attach(self, decoder: nn.Module) -> None:
        """Begin.

        Args:
            decoder: The language model's decoder.
        """
        decoder.register_forward_pre_hook(self.before, with_kwargs=True)
        decoder.register_forward_hook(self.after, with_kwargs=True)

    def before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lengthen what the decoder is called with; its forward pre-hook.

        Args:
            decoder: The language model's decoder.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            Both, all by name and changed where something is or was inserted.

        Raises:
            ConfigError: If there are prompts and none were chosen.
        """
        decoding, self._cut = goes_on(args, kwargs), False
        args, kwargs = (), named(decoder, args, kwargs)
        if decoding:
            return (args, self._while_decoding(kwargs)) if self._count else None
        chosen, self.chosen, self._count = self.chosen, None, 0
        if not self._due():
            return None
        if chosen is None:
            raise ConfigError(
                "no tokens were chosen for this batch: an adapter of soft prompts needs its "
                "method; open it with undrift, or attach modalprompt to the model and load it there"
            )
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            embeds = decoder.get_input_embeddings()(kwargs["input_ids"])  # pyright: ignore
            kwargs = kwargs | {"input_ids": None}
        self._count, self._cut = chosen.shape[1], True
        self._starts = self._places(embeds, kwargs.get("attention_mask"))
        made = dict(kwargs)
        order = self._order(embeds.shape[1])[..., None].expand(-1, -1, embeds.shape[2])
        made["inputs_embeds"] = torch.cat([embeds, chosen.to(embeds.dtype)], 1).gather(1, order)
        for name, value in kwargs.items():
            if name == "position_ids" and value is not None:
                made[name] = self._positions(value)
            elif name == "attention_mask" and _is_plain(value):
                made[name] = self._filled(value, 1)
            elif isinstance(value, Tensor) and value.shape == embeds.shape[:2]:
                made[name] = self._filled(value, 0)  # such as marks of the pictures' places
        return args, made

    def after(self, decoder: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Shorten what the decoder has answered; its forward hook.

        Args:
            decoder: Not used.
            args: Not used.
            kwargs: Not used.
            output: The decoder's output.

        Returns:
            The same, its last hidden state of the length that the caller expects.
        """
        if self._cut:
            hidden = output.last_hidden_state
            place = torch.arange(hidden.shape[1] - self._count, device=hidden.device)
            kept = place + self._count * (place >= self._starts[:, None] - 1)
            index = kept[..., None].expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)
        return output

    def _places(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        """Where each row gets its tokens: behind its first one if that is BOS, else before it."""
        rows = torch.arange(len(embeds), device=embeds.device)
        start = mask.long().argmax(1) if _is_plain(mask) and mask is not None else rows * 0
        if self._first is None:
            return start
        return start + (embeds[rows, start] == self._first.to(embeds)).all(1)

    def _while_decoding(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Count the inserted tokens in the mask and in the positions of later tokens."""
        made, mask = dict(kwargs), kwargs.get("attention_mask")
        if _is_plain(mask):
            made["attention_mask"] = self._filled(mask, 1)
        if kwargs.get("position_ids") is not None:
            made["position_ids"] = kwargs["position_ids"] + self._count
        return made

    def _filled(self, marks: Any, value: int) -> Tensor:
        """Lengthen one mark a token, (B, L), by a value; B may be a search's copies of samples."""
        more = marks.new_full((len(marks), self._count), value)
        order = self._order(marks.shape[1])
        copies = len(marks) // len(order)
        return torch.cat([marks, more], 1).gather(1, order.repeat_interleave(copies, 0))

    def _positions(self, positions: Tensor) -> Tensor:
        """Lengthen positions (..., B or 1, L) by those of the inserted tokens; later ones shift."""
        starts = self._starts
        positions = positions.expand(*positions.shape[:-2], len(starts), -1)
        at = starts.expand(positions.shape[:-1])[..., None]
        inserted = positions.gather(-1, at) + torch.arange(self._count, device=positions.device)
        place = torch.arange(positions.shape[-1], device=positions.device)
        shifted = positions + self._count * (place >= starts[:, None])
        joined = torch.cat([shifted, inserted], -1)
        return joined.gather(-1, self._order(positions.shape[-1]).expand(joined.shape))

    def _order(self, length: int) -> Tensor:
        """Which columns of [rows of this length | inserted tokens] stand where, (B, L + n)."""
        place = torch.arange(length + self._count, device=self._starts.device)
        ends = self._starts[:, None] + self._count
        behind = torch.where(
            place < ends, length + place - self._starts[:, None], place - self._count
        )
        return torch.where(place < self._starts[:, None], place, behind)


def _is_plain(mask: Tensor | None) -> bool:
    """Tell whether there is a mask of one row of marks a sample.

    Raises:
        ConfigError: If it is of another kind, which cannot be lengthened.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return mask is not None
    raise ConfigError(
        "soft prompts lengthen the input, and this model makes its attention masks (dicts or four "
        "dimensions) before the decoder is called; use a method of adapters with it"
    )
