"""Content only: is the answer there, whatever its form?

The rules forgive what a person would not call a wrong answer: letter case, quotes, a final period,
"the answer is" before it, brackets around a letter, the text of an option for its letter, `7.0` or
`seven` for `7`. They do not search for an answer in a longer text, for a text that says everything
would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from undrift.scoring.edit_distance import similarity
from undrift.scoring.rules_official import ten_answers, texts_in
from undrift.scoring.vqa_normalisation import agreement

_QUOTES = " \t\r\n\"'`“”‘’«»"
_BEFORE = re.compile(
    rf"(?:[{re.escape(_QUOTES)}]*+the (?:correct )?answer is\b:?\s*+)*+[{re.escape(_QUOTES)}]*+"
)  # possessive: a long text is gone through once
_LETTER = re.compile(r"[(\[]?([a-z])[)\]]?(?:[.):\]].*)?", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?")
_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
_NUMBER_OF = {word: float(number) for number, word in enumerate(_WORDS.split())}


def content(text: str) -> str:
    """Reduce a text to what it says.

    Case is folded, inner space made single; quotes and space around the text, final periods and a
    leading "the answer is" go, as often as they come. Where nothing would be left (`...`), the
    text stays, so that no content equals the content of an empty prediction. Reducing it again
    changes nothing.
    """
    whole = " ".join(text.casefold().split())
    end = len(whole.rstrip(f"{_QUOTES}."))
    before = _BEFORE.match(whole, 0, end)
    return whole[before.end() if before else 0 : end] or whole


def same_content(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """1 if the prediction says what one of the answers says; numbers are compared by value."""
    return float(any(_same(prediction, answer) for answer in answers))


def _same(prediction: str, answer: str) -> bool:
    left, right = content(prediction), content(answer)
    if left == right:
        return True
    value, true_value = _number_in(left), _number_in(right)
    return value is not None and true_value is not None and math.isclose(value, true_value)


def _number_in(text: str) -> float | None:
    """Return the value of a text that is a number and nothing else, or None.

    Digits with a sign, commas between thousands, a decimal point, a `$` before or a `%` behind
    (neither changes the value), or zero to twenty in words.
    """
    if text in _NUMBER_OF:
        return _NUMBER_OF[text]
    digits = text.removeprefix("$").removesuffix("%").strip()
    if not _NUMBER.fullmatch(digits) or not any(map(str.isdigit, digits)):
        return None
    value = float(digits.replace(",", ""))
    return value if math.isfinite(value) else None


def choice(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """1 if the prediction chooses the right option, by its letter or by its text.

    A letter counts in any case, alone, in brackets, or before `.`, `)` or `:` and any text. Where
    the example lists its options, the text of exactly one of them stands for its letter, and a
    letter for its text, on both sides.
    """
    options = [content(str(option)) for option in texts_in(extra, "choices")]
    chosen = _chosen_option(prediction, options)
    if any(chosen == _chosen_option(answer, options) for answer in answers):
        return 1.0
    return same_content(prediction, answers, extra)


def _chosen_option(text: str, options: Sequence[str]) -> str:
    """Return the letter that a text chooses, or its content if it chooses none."""
    plain = content(text)
    found = _LETTER.fullmatch(plain)
    # A single letter is a letter even where an option's text is that letter.
    if options.count(plain) == 1 and not (found and len(plain) == 1):
        return chr(ord("a") + options.index(plain))
    return found.group(1) if found else plain


def consensus(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Agreement with ten people, as TextVQA measures it, by content.

    Where the example has not ten answers, being one of those that it has is enough.
    """
    ten = ten_answers(answers, extra)
    if ten is None:
        return same_content(prediction, answers, extra)
    return agreement([_same(prediction, answer) for answer in ten])


def alike(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """The best similarity of the prediction's content to an answer's, without a threshold."""
    return max(similarity(content(prediction), content(answer)) for answer in answers)
