"""Format drift: how much of a loss is form alone, and which later task's form wrong answers wear.

A model that goes on learning may keep what it knew and lose how to say it: `a` where `A` is asked
for, a word instead of a letter. `rules_of` judges a kept prediction by content and by form,
`form_share` is the share of a loss that is form alone, `worn` looks for the later task that a
wrong answer's form was taken from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from undrift.scoring.forms import ErrorKind, error_kind
from undrift.scoring.published import LENIENT, TASKS

_KIND = {"exact": "class name", "caseless": "short text", "letter": "letter", "box": "box"}
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*%?")
_BOX = re.compile(r"\[?(?:\s*[-+]?[\d.]+\s*,){3}\s*[-+]?[\d.]+\s*\]?")

USUAL = 0.2  # of a task's answers have a look that is usual for it
RARE = 0.05  # of a task's answers, or fewer, have a look that is not its own


class Rules(NamedTuple):
    """One prediction by every rule, scores in [0, 1].

    `strict` and `lenient` are None for a caption; `error` is what is wrong with the form, or None.
    """

    strict: float | None
    lenient: float | None
    form: float
    error: ErrorKind | None


def kind_of_answer(scorer: str, answers: Sequence[str]) -> str | None:
    """Say which kind of answer a scorer is for.

    Args:
        scorer: A scorer's name, or a key of `published.TASKS`.
        answers: The accepted answers. `exact` serves several kinds, which these tell apart:
            letters to choose from, numbers, names.

    Returns:
        One of `published.KINDS`; None for a scorer of one's own, which need not be there any more.
    """
    if scorer in TASKS:
        return TASKS[scorer].kind
    if scorer == "exact" and all(len(answer) == 1 and answer.isalpha() for answer in answers):
        return "choice"
    if scorer == "exact" and all(map(_NUMBER.fullmatch, answers)):
        return "number"
    return _KIND.get(scorer)


def rules_of(scorer: str, line: Mapping[str, Any]) -> Rules:
    """Judge a kept prediction by content and by form.

    A scorer of one's own says only what is right. Its lenient score is what it says once letter
    case is folded; the form is right where the answer is, and else unless it is empty, a refusal,
    or wrong by letter case alone.

    Args:
        scorer: The name that its task's scorer has.
        line: A line of `eval/`: `prediction`, `answers`, `strict`, `caseless`; of a published task
            `lenient` and `form` too, which are taken as they are. Elsewhere they follow from the
            text, and what is right strictly is right leniently.

    Returns:
        The scores and the error of form; what only letter case makes wrong is an error of case.
    """
    said, answers = line["prediction"], tuple(line["answers"])
    strict: float | None = line["strict"]
    kind = kind_of_answer(scorer, answers)
    if kind is None and strict == 1.0:
        return Rules(1.0, 1.0, 1.0, None)
    error, right = _judged(scorer, kind, said, answers)
    well_formed = float(error is None)
    if error is None and strict is not None and strict < 1.0 <= line["caseless"]:
        error = "case"
    if kind is None:
        return Rules(strict, line["caseless"], float(error is None), error)
    if "lenient" in line:
        return Rules(strict, line["lenient"], line["form"], error)
    lenient = None if right is None or strict is None else max(strict, right)
    return Rules(strict, lenient, well_formed, error)


@lru_cache(maxsize=2**15)  # a run says the same things again and again
def _judged(
    scorer: str, kind: str | None, said: str, answers: tuple[str, ...]
) -> tuple[ErrorKind | None, float | None]:
    """Return the error of form and, as far as the text alone tells, the lenient score."""
    rule = None if kind is None or scorer in TASKS else LENIENT[kind]
    return error_kind(kind, said, answers), rule and rule(said, answers, {})


def form_share(strict: float, lenient: float) -> float | None:
    """Compute the format-forgetting share: which percentage of a loss is form alone.

    (loss of strict - loss of lenient) / loss of strict, between just learned and a later stage.

    Args:
        strict: How many points of the strict score a task has lost.
        lenient: How many of the lenient score.

    Returns:
        100 if only the form was lost, 0 if the form played no part; below 0 or above 100 if content
        and form moved against each other. None where nothing was lost.
    """
    return 100 * (strict - lenient) / strict if strict > 0 else None


def worn(
    prediction: str,
    own: Sequence[Sequence[str]],
    later: Mapping[str, Sequence[Sequence[str]]],
) -> str | None:
    """Find the later task whose answers a wrong prediction looks like.

    See `Looks.borrowed`, which does the same for many predictions of one task.

    Args:
        prediction: A wrong answer.
        own: The accepted answers of the examples of the task that was asked.
        later: The same of each task learned since, in the order of learning.

    Returns:
        A key of `later`, or None where it looks like the task's own answers or like nobody's.
    """
    others = {name: Looks(answers) for name, answers in later.items()}
    return Looks(own).borrowed(prediction, others)


class Looks:
    """How the answers of a task look: its vocabulary, and which shapes are usual for it.

    Args:
        answers: The accepted answers of every example.
    """

    def __init__(self, answers: Iterable[Sequence[str]]) -> None:
        texts = [text.strip() for accepted in answers for text in accepted]
        self.texts = frozenset(texts)
        self._total = len(texts)
        self._seen = [Counter(map(view, map(_shape, texts))) for view in _VIEWS]

    def borrowed(self, prediction: str, later: Mapping[str, Looks]) -> str | None:
        """Find the later task whose answers a wrong prediction looks like.

        What is shaped like the task's own answers is no one else's. Else the first that fits: it
        IS an answer of a later task; its whole shape is usual for one; or one thing about it is
        that is rare here: that it is a letter, a number, a box or words, whether it begins with a
        capital, its final period, its length. Of several later tasks the one learned last.

        Args:
            prediction: A wrong answer to this task.
            later: How the answers of each task learned since look, in the order of learning.

        Returns:
            A key of `later`, or None.
        """
        said = prediction.strip()
        shape = _shape(said)
        if not said or said in self.texts or self._share(0, shape) > RARE:
            return None
        latest = list(later)[::-1]
        for name in latest:
            if said in later[name].texts:
                return name
        for view in range(len(_VIEWS)):
            if self._share(view, shape) <= RARE:
                for name in latest:
                    if later[name]._share(view, shape) >= USUAL:
                        return name
        return None

    def _share(self, view: int, shape: _Shape) -> float:
        return self._seen[view][_VIEWS[view](shape)] / self._total if self._total else 0.0


class _Shape(NamedTuple):
    sort: str
    first: str
    case: str
    period: bool
    words: int


_SENTENCE = 4  # words or more


def _shape(text: str) -> _Shape:
    """Describe the look of a text, whatever it says."""
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


_VIEWS: tuple[Callable[[_Shape], Hashable], ...] = (
    lambda shape: shape,
    lambda shape: shape.sort,
    lambda shape: shape.first,
    lambda shape: shape.period,
    lambda shape: shape.words,
)
