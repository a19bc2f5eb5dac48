"""What the pocket's backbone could do before: pretraining questions about items of its own pool.

The pretraining pool is dealt into two halves by a hash of each item's group. General ability is
measured on half B, which stands in no training, no tuning and no history; half A is what the base
may be remembered by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from random import Random

from PIL import Image

from undrift.data.pocket.questions import ask
from undrift.data.pocket.tasks import Item, PocketTask

GENERAL = "general-1"  # its number changes whenever a picture, a question or an answer changes
PROMPTS = "prompts-1"  # likewise
HALVES = {GENERAL: ("B", "general"), PROMPTS: ("A", "prompts")}
"""Of what is asked, the half of the pool, and what its draws are seeded by."""
QUESTIONS = 30  # a task
MAX_NEW_TOKENS = 20
_TRIES = 1000  # in which the rarest form of an answer is missed once in a million


def half(task: str, group: Hashable) -> str:
    """Deal a group of pretraining items to half "A" or "B"."""
    key = sorted(map(repr, group)) if isinstance(group, frozenset) else group
    digest = hashlib.blake2b(f"{task}:half:{key!r}".encode(), digest_size=8).digest()
    return "AB"[digest[0] % 2]


def items_of_half(task: PocketTask, wanted: str) -> list[Item]:
    """List the pretraining items of a task that lie in half "A" or "B"."""
    pool = task.pools()["pretrain"]
    return [item for item in pool if half(task.name, task.group(item)) == wanted]


def general_questions(
    task: PocketTask, split: str = GENERAL
) -> Iterator[tuple[Image.Image, str, Sequence[str]]]:
    """Draw and ask about items of one half, the same ones every time.

    Args:
        task: The task.
        split: `GENERAL` or `PROMPTS`.

    Yields:
        A picture, a question with its format line, and every answer that pretraining gives to it:
        a line that leaves the form open accepts each form, one that names a form that form alone.
    """
    which, seed = HALVES[split]
    items = items_of_half(task, which)
    Random(f"{seed}:{task.name}").shuffle(items)
    for number, item in enumerate(items[:QUESTIONS]):
        rng = Random(f"{seed}:{task.name}:{number}")
        picture, shown = task.draw(item, rng), dict(task.attributes(item))
        question, answer = ask(task.name, item, shown, rng)
        asked = (ask(task.name, item, shown, rng) for _ in range(_TRIES))
        others = {given for same, given in asked if same == question} - {answer}
        yield picture, question, (answer, *sorted(others))
