"""How often each expert is among the two best of a token."""

from __future__ import annotations

from torch import Tensor

from undrift.core.routing import Observer
from undrift.tuner.tokens import Tokens


def count_best(total: Tensor, tokens: Tokens) -> Observer:
    """Count which two experts are the best of each token that is not padding.

    Args:
        total: The counts, (N,) integers; they are added to in the backward pass.
        tokens: Those of the forward pass.

    Returns:
        What a layer shows its tokens to.
    """

    def observe(x: Tensor, w: Tensor, h: Tensor, dy: Tensor) -> None:
        w = tokens.choose(len(w), 1.0, 0, w.device).rows(w)
        best = w.topk(min(2, w.shape[1]), dim=1).indices
        counts = (w.sum(1, keepdim=True) > 0).to(total.dtype).expand_as(best)
        total.index_add_(0, best.flatten(), counts.flatten())

    return observe
