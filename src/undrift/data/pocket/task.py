"""What a pocket task is: items in disjoint pools, a way to draw one, a way to ask about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

SPLITS = ("pretrain", "train", "validation", "test")
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
BOX = "Please provide the bounding box coordinate."

Item = Any
Pools = Mapping[str, Sequence[Item]]
Asked = tuple[str, str]  # (question without its format line, answer)


@dataclass(frozen=True)
class PocketTask:
    """One task of the pocket.

    Attributes:
        name: The task's name.
        form: The format line that ends every question.
        sizes: Examples in `train`, `validation` and `test`.
        pools: Returns the items of each split; `group` of no item occurs in two splits.
        group: The leak rule: what must not be shared between splits.
        draw: Draws an item on 96 x 96 pixels.
        ask: The questions about an item, each with its answer.
        attributes: What a picture shows, as name -> class; used only to pretrain the backbone.
        leak_rule: `group` in words.
        scorer: The scorer's name.
        max_new_tokens: Room for the longest answer.
    """

    name: str
    form: str
    sizes: Mapping[str, int]
    pools: Callable[[], Pools]
    group: Callable[[Item], Hashable]
    draw: Callable[[Item, Random], Image.Image]
    ask: Callable[[Item], Sequence[Asked]]
    attributes: Callable[[Item], Mapping[str, Hashable]]
    leak_rule: str
    scorer: str = "exact"
    max_new_tokens: int = 6


def sizes(train: int, validation: int = 100, test: int = 150) -> dict[str, int]:
    """Numbers of examples a split."""
    return {"train": train, "validation": validation, "test": test}


def pool_of(
    task: str, group: Hashable, shares: tuple[float, float, float] = (0.40, 0.36, 0.08)
) -> str:
    """Assign a group to a split by a hash, so that adding items never moves others.

    Args:
        task: The task's name, part of the hash.
        group: The group of the leak rule.
        shares: Shares of pretrain, train and validation; test has the rest.

    Returns:
        The name of the split.
    """
    digest = hashlib.blake2b(f"{task}:{group!r}".encode(), digest_size=8).digest()
    u = int.from_bytes(digest, "big") / 2**64
    for name, share in zip(SPLITS, shares, strict=False):
        if u < share:
            return name
        u -= share
    return "test"


def by_hash(
    task: str,
    items: Sequence[Item],
    group: Callable[[Item], Hashable],
    shares: tuple[float, float, float] = (0.40, 0.36, 0.08),
) -> dict[str, list[Item]]:
    """Items of each split, groups kept together."""
    pools: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for item in items:
        pools[pool_of(task, group(item), shares)].append(item)
    return pools
