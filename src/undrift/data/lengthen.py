"""A processor's tensors of a prompt, lengthened by the answer: what each of them says of a token.

A mark of a wrong kind would be silent: PaliGemma's `token_type_ids` of 0, for one, let every token
see all others, the answer that is to be learned among them. So what is not known is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from undrift.errors import ConfigError

IGNORED = -100  # the label that cross entropy leaves out

# By name, (the tensor, tokens to add) to what is added; all of them have a dimension of tokens.
_TAILS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mm_token_type_ids": lambda marks, more: marks.new_zeros(len(marks), more),  # 0 is text
    "moe_mm_token_type_ids": lambda marks, more: marks.new_zeros(len(marks), more),
    "image_embeds_position_mask": lambda marks, more: marks.new_zeros(len(marks), more),
    "image_patches_indices": lambda marks, more: marks.new_full((len(marks), more), -1),
    # which pictures a token reads: those of the token before it
    "cross_attention_mask": lambda mask, more: mask[:, -1:].expand(-1, more, *mask.shape[2:]),
    "image_attention_mask": lambda mask, more: mask[:, -1:].expand(-1, more, *mask.shape[2:]),
    "position_ids": lambda ids, more: ids[..., -1:] + torch.arange(1, more + 1, dtype=ids.dtype),
}
_OF_PICTURES = ("pixel_", "aspect_ratio_", "image_", "images", "qformer_", "num_", "spatial_")


def lengthened(
    made: Mapping[str, Any], answers: Sequence[Sequence[int]], pad: int, processor: Any
) -> dict[str, Any]:
    """Put answers behind prompts, padded on the right, and labels on the answers.

    Args:
        made: What a processor made of the prompts, padded on the left: `input_ids` (B, L) and more.
        answers: Token ids, one list a prompt.
        pad: The token for padding.
        processor: Who made it.

    Returns:
        The tensors with all their dimensions of tokens lengthened, and `labels`.

    Raises:
        ConfigError: If there is a tensor with something for each token, and it is not known what
            an answer's tokens have there.
    """
    room, shape = max(map(len, answers)), made["input_ids"].shape
    tail = torch.tensor([[*answer, *[pad] * (room - len(answer))] for answer in answers])
    there = torch.tensor([[1] * len(a) + [0] * (room - len(a)) for a in answers])
    out = dict(made)
    for name, value in made.items():
        dim = _tokens_at(name, value, shape)
        if dim is None:
            continue
        if name in ("input_ids", "attention_mask"):
            more = tail if name == "input_ids" else there
        elif name == "token_type_ids":
            more = torch.full_like(tail, _type_of_answers(value, processor))
        elif name in _TAILS:
            more = _TAILS[name](value, room)
        else:
            raise ConfigError(
                f"the backbone's {type(processor).__name__} gives {name!r} for each token of a "
                "prompt, and undrift does not know what an answer's tokens have there; use another "
                "backbone, or ask for this one"
            )
        out[name] = torch.cat([value, more.to(value.dtype)], dim=dim)
    labels = tail.masked_fill(there == 0, IGNORED)
    out["labels"] = torch.cat([torch.full(shape, IGNORED), labels], dim=1)
    return out


def shortened(made: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Take the last tokens off a processor's tensors.

    Args:
        made: As for `lengthened`.
        count: How many tokens.

    Returns:
        The tensors without them.
    """
    shape, out = made["input_ids"].shape, dict(made)
    for name, value in made.items():
        dim = _tokens_at(name, value, shape)
        if dim is not None and count:
            out[name] = value.narrow(dim, 0, value.shape[dim] - count)
    return out


def _tokens_at(name: str, value: Any, shape: torch.Size) -> int | None:
    """Find the dimension of a tensor in which there is something for each token."""
    if not isinstance(value, Tensor):
        return None
    if name == "position_ids":  # (B, L), (1, L) or (axes, B, L)
        return value.dim() - 1 if value.shape[-1] == shape[1] else None
    known = name in _TAILS or not name.startswith(_OF_PICTURES)
    return 1 if known and value.shape[:2] == shape else None


def _type_of_answers(types: Tensor, processor: Any) -> int:
    """Tell which `token_type_ids` an answer's tokens have.

    Where a processor takes a suffix, as PaliGemma's, 0 is the prefix in which all tokens see each
    other and 1 the suffix, in which none sees a later one. Elsewhere 0 is text, and 1 a picture.
    """
    if "suffix" in inspect.signature(type(processor).__call__).parameters:
        return 1
    if types[:, -1].any():
        raise ConfigError(
            f"the backbone's {type(processor).__name__} gives the end of a prompt token_type_ids "
            "other than 0, and undrift does not know what they mean for an answer"
        )
    return 0
