"""Packed rows, which hold several examples one after another: which token is of which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor


def packed_examples(given: Mapping[str, Any]) -> Tensor | None:
    """Tell apart the examples that a packed batch holds in one row.

    Args:
        given: What a model is called with: positions begin anew with every example, `seq_idx`
            and an attention mask with values above 1 number the examples, `cu_seq_lens_q` says
            where each begins in the one row.

    Returns:
        The number of every token's example, (batch, length) int64; None where a row is an example.
    """
    index, ends, positions = (
        given.get(name) for name in ("seq_idx", "cu_seq_lens_q", "position_ids")
    )
    if isinstance(index, Tensor) and index.dim() == 2:
        new = index[:, 1:] != index[:, :-1]
    elif isinstance(ends, Tensor):
        new = torch.zeros(1, int(ends[-1]) - 1, dtype=torch.bool, device=ends.device)
        new[0, ends[1:-1].long() - 1] = True
    elif _numbers(mask := given.get("attention_mask")):
        new = mask[:, 1:] != mask[:, :-1]
    elif isinstance(positions, Tensor) and positions.dim() in (2, 3):
        several = positions.dim() == 3  # of time, height and width: pictures stand still in time
        time = positions[0] if several else positions
        new = time[:, 1:] < time[:, :-1]
        if not several:
            new = new | (time[:, 1:] == 0)
    else:
        return None
    first = torch.ones(new.shape[0], 1, dtype=torch.bool, device=new.device)
    if not isinstance(ends, Tensor) and not bool(_attended(given, new).any()):
        return None
    return torch.cat([first, new], 1).flatten().cumsum(0).view(new.shape[0], -1) - 1


def without_padding(given: Mapping[str, Any]) -> Tensor | None:
    """Leave out the padding of packed rows that come without a mask.

    Padding looks like examples of one token each, at position 0, behind all others and without a
    label.

    Args:
        given: What a model is called with.

    Returns:
        The mask of the tokens, (batch, length) bool; None where positions and labels do not tell.
    """
    positions, labels = given.get("position_ids"), given.get("labels")
    if not isinstance(positions, Tensor) or not isinstance(labels, Tensor):
        return None
    position = positions.amax(0) if positions.dim() == 3 else positions
    if position.dim() != 2 or position.shape != labels.shape:
        return None
    ahead = position.flip(1).cummax(1).values.flip(1)  # the largest from here to the row's end
    return (ahead > 0) | (labels != -100) | (ahead[:, :1] == 0)


def _numbers(mask: Any) -> TypeGuard[Tensor]:
    """Whether a mask says more than which tokens are there."""
    return isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask > 1).any())


def _attended(given: Mapping[str, Any], new: Tensor) -> Tensor:
    """The beginnings that follow a token which counts: padding has positions of any kind."""
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != new.shape[1] + 1:
        return new
    there = mask.to(new.device) != 0
    return new & there[:, 1:] & there[:, :-1]
