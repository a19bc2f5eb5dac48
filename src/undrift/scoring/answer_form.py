"""Is the FORM of an answer right, whether or not the answer is, and of which task is it?

The rules name what is wrong with the form of a text, each for some of the kinds of answer in
`kinds.py`, by rules of thumb on the text and the accepted answers; a wrong answer in the right form
has no error. They know letter case where the task's answers have one, which SMoLoRA's published
measure (the functions `mif_...`) does not: it upper-cases letters before it looks.

A model that goes on learning may keep what it knew and lose how to say it: `a` where `A` is asked
for, a word instead of a letter. The form of its wrong answer may then be that of a task learned
since, which `AnswerStyle` finds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Literal, NamedTuple, get_args

from undrift.scoring.boxes import four_numbers
from undrift.scoring.rules_lenient import content

ErrorKind = Literal[
    "empty",
    "refusal",
    "case",
    "punctuation",
    "sentence instead of letter",
    "letter instead of word",
    "extra words",
    "not a number",
    "unparsable box",
    "too short",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
FormRule = Callable[[str, Sequence[str]], ErrorKind | None]

_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i can ?no?t|i can'?t|i am unable|i'?m unable|as an ai|"
    r"unanswerable|cannot be (?:determined|answered)|not possible to (?:determine|answer))\b"
)
_DECORATED_LETTER = re.compile(r"\W*([^\W\d_])\W*")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_NUMERAL = re.compile(r"[-+]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[-+]?\d++)?", re.IGNORECASE)
NUMBER_WRITTEN = re.compile(r"[-+]?\d+(?:[.,]\d+)*%?")  # also 1,000 and 5%
_BOX = re.compile(r"\[?(?:\s*[-+]?[\d.]+\s*,){3}\s*[-+]?[\d.]+\s*\]?")
_SHORT = 2  # words, as MIF has it
_BRIEF_CAPTION = 4  # words


def error_of_form(
    rule: FormRule | None, prediction: str, answers: Sequence[str]
) -> ErrorKind | None:
    """Return the first error of form: empty, a refusal (unless one is accepted), what `rule` says.

    An accepted answer, letter for letter, has none. A caption may talk as a refusal does.
    """
    text, accepted = prediction.strip(), [answer.strip() for answer in answers]
    if text in accepted:
        return None
    if not text:
        return "empty"
    if rule is not caption_form and _refuses(text) and not any(map(_refuses, accepted)):
        return "refusal"
    return None if rule is None else rule(text, accepted)


def _refuses(text: str) -> bool:
    return _REFUSAL.search(text.lower().replace("’", "'")) is not None


def letter_form(text: str, answers: Sequence[str]) -> ErrorKind | None:
    """One letter in the answers' case."""
    found = _DECORATED_LETTER.fullmatch(text)
    if not found:
        return "sentence instead of letter"
    if not _case_fits(found.group(1), answers):
        return "case"
    return None if len(text) == 1 else "punctuation"


def cased_form(text: str, answers: Sequence[str]) -> ErrorKind | None:
    """As `letter_form` where the answers are letters; else a short text in the answers' case."""
    if all(map(_is_letter, answers)):
        return letter_form(text, answers)
    if _is_letter(text) and not any(map(_is_letter, answers)):
        return "letter instead of word"
    return text_form(text, answers) or (None if _case_fits(text, answers) else "case")


def text_form(text: str, answers: Sequence[str]) -> ErrorKind | None:
    """At most two words, or as many as the longest answer; no period or quotes of its own."""
    longest = max(len(answer.split()) for answer in answers)
    if len(text.split()) > max(_SHORT, longest):
        return "extra words"
    return "punctuation" if _decorated(text, answers) else None


def _decorated(text: str, answers: Sequence[str]) -> bool:
    """Tell whether a text has quotes or a final period (not an abbreviation's) as no answer has."""
    plain = text.strip("\"'`“”‘’")
    stops = plain.endswith(".") and "." not in plain[:-1]
    return (plain != text or stops) and not any(_ends_alike(text, answer) for answer in answers)


def _ends_alike(text: str, answer: str) -> bool:
    return answer[-1:] == text[-1:] and not text[-1:].isalnum()


def _case_fits(text: str, answers: Sequence[str]) -> bool:
    """Tell whether a text has the answers' case: all lower, all upper, or as the same answer."""
    same = [answer for answer in answers if content(answer) == content(text)]
    if same:
        return any(answer in text for answer in same)
    if all(answer == answer.lower() for answer in answers):
        return text == text.lower()
    if all(answer == answer.upper() for answer in answers):
        return text == text.upper()
    return True


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isalpha()


def number_form(text: str, answers: Sequence[str]) -> ErrorKind | None:
    """Digits, nothing else."""
    if _NUMBER.fullmatch(text):
        return None
    return _around(text) if _NUMBER.search(text) else "not a number"


def box_form(text: str, answers: Sequence[str]) -> ErrorKind | None:
    """As an accepted answer once numbers and spaces are left out."""
    if four_numbers(text) is None:
        return "unparsable box"
    return None if _frame(text) in map(_frame, answers) else _around(text)


def _frame(text: str) -> str:
    return "".join(_NUMERAL.sub("#", text).split())


def _around(text: str) -> ErrorKind:
    return "extra words" if any(map(str.isalpha, text)) else "punctuation"


def caption_form(text: str, answers: Sequence[str]) -> ErrorKind | None:
    """A final period, and more than four words or part of a reference."""
    if not text.endswith("."):
        return "punctuation"
    return None if mif_caption(text, answers) else "too short"


def mif_letter(prediction: str, answers: Sequence[str]) -> float:
    """SMoLoRA's rule for ScienceQA: one letter A to Z once stripped and upper-cased."""
    text = prediction.strip().upper()
    return float(len(text) == 1 and "A" <= text <= "Z")


def mif_short(prediction: str, answers: Sequence[str]) -> float:
    """SMoLoRA's rule for questions and classes: at most two words, or the first answer, caseless.

    An EMPTY prediction has at most two words.
    """
    text = prediction.strip()
    return float(len(text.split()) <= _SHORT or text.lower() == answers[0].lower())


def mif_caption(prediction: str, answers: Sequence[str]) -> float:
    """SMoLoRA's rule for captions: a final period, and over four words or part of a reference."""
    text = prediction.strip()
    if not text.endswith("."):
        return 0.0
    inside = any(text.lower() in answer.lower() for answer in answers)
    return float(len(text.split()) > _BRIEF_CAPTION or inside)


# ------------------------------------------------------------ whose form it is

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


@lru_cache(maxsize=2**15)  # a run says the same things again and again
def _shape(text: str) -> _Shape:
    words = text.split()
    if _BOX.fullmatch(text):
        return _Shape("box", "", "", False, 1)
    if NUMBER_WRITTEN.fullmatch(text.rstrip(".")):
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
