"""A part of many examples, chosen by a hash of their ids: the same one on every machine.

Where an example stands in its file does not matter, so a file that was sorted or shuffled anew
gives the same part, and a smaller part lies inside every larger one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from undrift.data.types import Example
from undrift.errors import ConfigError, DataError


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


def hold_out(
    examples: Sequence[Example], share: float, seed: int, images: Path
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split examples in two, those with the same pictures on the same side.

    Questions about one picture would give each other away. A hash of the pictures' names decides,
    and for text alone one of the ids, without the number of the turn.

    Args:
        examples: All of them.
        share: Which share to hold out, below 1; rounded up to whole groups. With 0 nothing is kept
            back: all are learned, and all are asked.
        seed: Another seed is another split.
        images: The part of the pictures' paths that does not count.

    Returns:
        The examples to learn and those to ask, each in the order given.

    Raises:
        ConfigError: If the share is negative, or not below 1.
        DataError: If nothing would be left to learn.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"held_out is {share}; expected at least 0 and less than 1")
    if not share:
        return tuple(examples), tuple(examples)
    start = f"{images}{os.sep}"
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        names = [os.fspath(path).removeprefix(start) for path in example.images]
        key = "|".join(names) or example.id.partition("#")[0]
        groups.setdefault(key, []).append(number)
    out: set[int] = set()
    for group in sorted(groups, key=lambda group: (place(group, seed), group)):
        if len(out) >= max(1, round(share * len(examples))):
            break
        out.update(groups[group])
    if examples and len(out) == len(examples):
        few = f"they are about {len(groups)} pictures alone"
        if len(groups) == 1:
            few = "there is one alone" if len(out) == 1 else "all are about the same picture"
        raise DataError(
            f"the hold-out would take all of the {len(out)} training questions ({few}): give test "
            "questions (--test FILE, or a test file beside train), or --held-out 0 to ask what is "
            "trained on"
        )
    kept = tuple(example for number, example in enumerate(examples) if number not in out)
    return kept, tuple(examples[number] for number in sorted(out))
