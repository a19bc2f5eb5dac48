"""Where past updates were largest, and a penalty on new ones there [SEFE's RegLoRA].

A position (p, q) of a linear's d_out x d_in weight is kept as the number p d_in + q, in 32 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undrift.errors import ConfigError


def key_elements(A: Tensor, Bt: Tensor, share: float) -> Tensor:
    """Find the largest entries of |B A|.

    Args:
        A: (r, d_in).
        Bt: B transposed, (r, d_out).
        share: M, the share of the entries that are key elements, in (0, 1].

    Returns:
        Their positions in ascending order, (K,) int32.

    Raises:
        ConfigError: If 32 bits do not suffice to count the entries.
    """
    size = A.shape[1] * Bt.shape[1]
    if size >= 2**31:
        raise ConfigError(f"a linear with {size} weights has more than positions can be kept of")
    change = (Bt.mT @ A).abs_().flatten()
    found = change.topk(key_count(size, share), sorted=False).indices
    return found.int().sort().values


def key_count(size: int, share: float) -> int:
    """Return how many key elements a task has in a linear with so many weights."""
    return max(1, round(share * size))


def penalty_gradient(A: Tensor, Bt: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the mean of |B A| over key elements, without forming B A.

    Args:
        A: (r, d_in).
        Bt: (r, d_out).
        keys: Positions, (K,).

    Returns:
        With respect to A and to Bt; zero where B A is zero.
    """
    wide = keys.long()
    rows, columns = wide // A.shape[1], wide % A.shape[1]
    a, b = A[:, columns], Bt[:, rows]  # (r, K)
    sign = (a * b).sum(0).sign() / len(keys)
    gradient_A = torch.zeros_like(A).index_add_(1, columns, b * sign)
    return gradient_A, torch.zeros_like(Bt).index_add_(1, rows, a * sign)


def drawn(keys: Tensor, at_most: int, u: Tensor) -> Tensor:
    """Draw some of the key elements, with repetition, so that a mean over them is unbiased.

    Args:
        keys: (K,).
        at_most: How many; all of them, each once, if there are no more.
        u: Uniform numbers in [0, 1), (at_most,) float64.

    Returns:
        (min(K, at_most),).
    """
    if len(keys) <= at_most:
        return keys
    return keys[(u * len(keys)).long().to(keys.device)]
