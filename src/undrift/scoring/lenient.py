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

from undrift.scoring.answers import box
from undrift.scoring.official import ten_answers, texts_in
from undrift.scoring.text_distance import similarity
from undrift.scoring.vqa_text import agreement

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
    text stays, so that no content equals the content of an empty prediction.

    Args:
        text: A prediction or an answer.

    Returns:
        Its content; reducing it again changes nothing.
    """
    whole = " ".join(text.casefold().split())
    end = len(whole.rstrip(f"{_QUOTES}."))
    before = _BEFORE.match(whole, 0, end)
    return whole[before.end() if before else 0 : end] or whole


def same_content(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """1 if the prediction says what one of the answers says; numbers are compared by value.

    Args:
        prediction: What the model said; an empty text says nothing.
        answers: The accepted answers.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float(any(_says(prediction, answer) for answer in answers))


def _says(prediction: str, answer: str) -> bool:
    said, truth = content(prediction), content(answer)
    if said == truth:
        return True
    value, true_value = number_in(said), number_in(truth)
    return value is not None and true_value is not None and math.isclose(value, true_value)


def number_in(text: str) -> float | None:
    """Read a text that is a number and nothing else.

    Args:
        text: The content of an answer: digits with a sign, commas between thousands, a decimal
            point, a `$` before or a `%` behind (neither changes the value), or zero to twenty in
            words.

    Returns:
        Its value, or None.
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

    Args:
        prediction: What the model said.
        answers: The accepted letters or texts.
        extra: `choices`, the options' texts in the order of their letters, if known.

    Returns:
        0.0 or 1.0.
    """
    options = [content(str(option)) for option in texts_in(extra, "choices")]
    said = _chosen(prediction, options)
    chosen = any(said == _chosen(answer, options) for answer in answers)
    return float(chosen or any(_says(prediction, answer) for answer in answers))


def _chosen(text: str, options: Sequence[str]) -> str:
    """Return the letter that a text chooses, or its content if it chooses none.

    A single letter is a letter even where an option's text is that letter.
    """
    said = content(text)
    found = _LETTER.fullmatch(said)
    if options.count(said) == 1 and not (found and len(said) == 1):
        return chr(ord("a") + options.index(said))
    return found.group(1) if found else said


def consensus(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Agreement with ten people, as TextVQA measures it, by content.

    Where the example has not ten answers, being one of those that it has is enough.

    Args:
        prediction: What the model said.
        answers: The accepted answers, perhaps the ten.
        extra: `human_answers`, ten texts, if they are kept apart.

    Returns:
        A score between 0 and 1.
    """
    ten = ten_answers(answers, extra)
    if ten is None:
        return same_content(prediction, answers, extra)
    return agreement([_says(prediction, answer) for answer in ten])


def alike(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """The best similarity of the prediction's content to an answer's, without a threshold.

    Args:
        prediction: What the model said.
        answers: The accepted answers.
        extra: Not used.

    Returns:
        A score between 0 and 1; 0 for an empty prediction.
    """
    return max(similarity(content(prediction), content(answer)) for answer in answers)


def first_numbers(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """1 if the first four numbers are a box with IoU >= 0.5, whatever stands around them.

    Args:
        prediction: What the model said.
        answers: The accepted boxes.
        extra: Not used.

    Returns:
        0.0 or 1.0.

    Raises:
        DataError: If an answer is not a box.
    """
    return box(prediction, answers)
