"""From which later task has a wrong answer its form?

A model that goes on learning may keep what it knew and lose how to say it: `a` where `A` is asked
for, a word instead of a letter. The form of its wrong answer may then be that of a task learned
since.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*%?")
_BOX = re.compile(r"\[?(?:\s*[-+]?[\d.]+\s*,){3}\s*[-+]?[\d.]+\s*\]?")

USUAL = 0.2  # of a task's answers have a shape that is usual for it
RARE = 0.05  # of a task's answers, or fewer, have a shape that is not its own


class AnswerStyle:
    """The style of a task's answers: its vocabulary, and which shapes are usual for it.

    Args:
        answers: The accepted answers of every example.
    """

    def __init__(self, answers: Iterable[Sequence[str]]) -> None:
        texts = [text.strip() for accepted in answers for text in accepted]
        self.texts = frozenset(texts)
        self._total = len(texts)
        self._counts = [Counter(map(feature, map(_shape, texts))) for feature in _FEATURES]

    def borrowed_from(self, prediction: str, later: Mapping[str, AnswerStyle]) -> str | None:
        """Find the later task whose answers a wrong prediction looks like.

        What is shaped like the task's own answers is no one else's. Else the first that fits: it
        IS an answer of a later task; its whole shape is usual for one; or one feature of it is
        that is rare here: that it is a letter, a number, a box or words, whether it begins with a
        capital, its final period, its length. Of several later tasks the one learned last.

        Args:
            prediction: A wrong answer to this task.
            later: The style of each task learned since, in the order of learning.

        Returns:
            A key of `later`, or None.
        """
        text = prediction.strip()
        shape = _shape(text)
        if not text or text in self.texts or self._share(0, shape) > RARE:
            return None
        latest = list(later)[::-1]
        for name in latest:
            if text in later[name].texts:
                return name
        for feature in range(len(_FEATURES)):
            if self._share(feature, shape) <= RARE:
                for name in latest:
                    if later[name]._share(feature, shape) >= USUAL:
                        return name
        return None

    def _share(self, feature: int, shape: _Shape) -> float:
        return (
            self._counts[feature][_FEATURES[feature](shape)] / self._total if self._total else 0.0
        )


class _Shape(NamedTuple):
    sort: str
    first: str
    case: str
    period: bool
    words: int


_SENTENCE = 4  # words or more


def _shape(text: str) -> _Shape:
    words = text.split()
    if _BOX.fullmatch(text):
        return _Shape("box", "", "", False, 1)
    if _NUMBER.fullmatch(text.rstrip(".")):
        return _Shape("number", "", "", text.endswith("."), 1)
    bare = text.strip("()[].:\"' ")
    sort = "letter" if len(bare) == 1 and bare.isalpha() else "words"
    case = "lower" if text.islower() else "upper" if text.isupper() else "mixed"
    first = "capital" if bare[:1].isupper() else "small" if bare[:1].islower() else ""
    return _Shape(sort, first, case, text.endswith("."), min(len(words), _SENTENCE))


_FEATURES: tuple[Callable[[_Shape], Hashable], ...] = (
    lambda shape: shape,
    *map(attrgetter, ("sort", "first", "period", "words")),
)
