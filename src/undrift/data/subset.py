"""A part of many examples, chosen by a hash of their ids: the same one on every machine.

Where an example stands in its file does not matter, so a file that was sorted or shuffled anew
gives the same part, and a smaller part lies inside every larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from undrift.data.types import Example
from undrift.errors import ConfigError


def place(key: str, seed: int = 0) -> float:
    """Give a text its place in [0, 1), as if drawn at random, but always the same.

    Args:
        key: Such as an example's id.
        seed: Another seed is another draw.

    Returns:
        The place.
    """
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def subset(
    examples: Sequence[Example],
    *,
    limit: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> tuple[Example, ...]:
    """Choose examples by the places of their ids, the lowest first.

    Args:
        examples: All of them.
        limit: How many at most.
        fraction: Which share of them, in (0, 1], rounded to at least one example; with a limit as
            well, the fewer of the two.
        seed: Another seed chooses others.

    Returns:
        The chosen ones, in the order in which they were given.

    Raises:
        ConfigError: If the limit is below 1 or the fraction outside of (0, 1].
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; expected more than 0 and at most 1")
    count = len(examples)
    if fraction is not None:
        count = max(1, round(count * fraction))
    if limit is not None:
        count = min(count, limit)
    if count >= len(examples):
        return tuple(examples)
    ranked = sorted((place(example.id, seed), example.id) for example in examples)
    chosen = {identity for _, identity in ranked[:count]}
    return tuple(example for example in examples if example.id in chosen)
