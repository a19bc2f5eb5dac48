"""The rules of the public code, bug for bug, so that published tables can be reproduced.

Each is `(prediction, answers, extra) -> score in [0, 1]`; all but TextVQA's know ONE answer, the
first. Nothing is stripped unless it is said: a space before the answer is an error under most of
them. Where the public repositories differ, there are two functions; `published.py` says which
profile uses which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from undrift.errors import DataError
from undrift.scoring.text_distance import similarity

_OPTIONS = "ABCDE"
_ONE_CHARACTER_WORD = re.compile(r"\b(\w)\b")
_STATED_LETTER = re.compile("The answer is ([A-Z]).")


def scienceqa_first_word(
    prediction: str, answers: Sequence[str], extra: Mapping[str, Any]
) -> float:
    """Score ScienceQA as CoIN and ModalPrompt do.

    `C` and `C. any text` choose C. Of any other text the first word of ONE character is taken and
    upper-cased: `c` is right, and so is `It is a fish` where the answer is A, while `it's C` says S
    and `I say C` says I. The public check that the letter belongs to a choice is left out, since
    such a letter is wrong anyway.

    Args:
        prediction: What the model said.
        answers: The right letter, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    letter = _leading_letter(prediction)
    if letter is None:
        words = _ONE_CHARACTER_WORD.findall(prediction)
        letter = words[0].upper() if words else ""
    return float(letter == answers[0])


def scienceqa_stated(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score ScienceQA as HiDe, SEFE, MCITlib and Prism do.

    `C`, `C. any text`, and a text with exactly one `The answer is C.` choose C; its period stands
    for any character, so that `The answer is Cat` chooses C as well and `The answer is C` at the
    very end does not. Lower case, `(C)` and ` C` are wrong.

    Args:
        prediction: What the model said.
        answers: The right letter, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    letter = _leading_letter(prediction)
    if letter is None:
        stated = _STATED_LETTER.findall(prediction)
        letter = stated[0] if len(stated) == 1 else ""
    return float(letter == answers[0])


def _leading_letter(prediction: str) -> str | None:
    if len(prediction) == 1 or prediction[1:3] == ". ":
        return prediction[0] if prediction[0] in _OPTIONS else None
    return None


def either_contains(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score ImageNet as all public code does: one text contains the other, case counts.

    An EMPTY prediction is contained in every answer, so it is right; `dog` is right for `hotdog`,
    and so is a list of all classes.

    Args:
        prediction: What the model said.
        answers: The class name, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float(answers[0] in prediction or prediction in answers[0])


def same_upper(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VizWiz, VQAv2 and what UCIT and TriGap call accuracy: equal once in upper case.

    A final period or a space around the text is an error; a number must be written alike; ChartQA
    gets no tolerance.

    Args:
        prediction: What the model said.
        answers: The answer, first; further ones do not count.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float(prediction.upper() == answers[0].upper())


def same_upper_stripped(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VizWiz and VQAv2 as Prism does: `same_upper` without the space around either text.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return same_upper(prediction.strip(), [answers[0].strip()], extra)


def ocrvqa_lower(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score OCR-VQA: equal once in lower case, and no `Unanswerable` in the prediction.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float("Unanswerable" not in prediction and prediction.lower() == answers[0].lower())


def ocrvqa_stripped(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score OCR-VQA as Prism does: `ocrvqa_lower` without the space around either text.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return ocrvqa_lower(prediction.strip(), [answers[0].strip()], extra)


def gqa(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score GQA: the prediction without final periods, in lower case, is the answer as it stands.

    Official and public alike. A space after the period keeps the period; an answer with a capital
    letter can never be right.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float(prediction.rstrip(".").lower() == answers[0])


def box_outer_digits_lost(
    prediction: str, answers: Sequence[str], extra: Mapping[str, Any]
) -> float:
    """Score REC as CoIN does: IoU > 0.5, after a parser that loses characters.

    Brackets are removed, then the first and the last character of what is left, then commas part
    the numbers: `[0.12,0.34,0.56,0.78]` is read as .12, 0.34, 0.56, 0.7, and `[1.0,...]` begins
    with 0. There must be exactly four. The public code scales both boxes by the longer side of
    the picture (`size`), which does not change their IoU and is left out.

    Args:
        prediction: What the model said.
        answers: The box `[x1, y1, x2, y2]`, first.
        extra: Not used.

    Returns:
        0.0 or 1.0; what cannot be parsed is 0.0.

    Raises:
        DataError: If the answer is not four numbers.
    """
    text = prediction.removeprefix(" ").replace("[", "").replace("]", "")
    return float(_iou(_numbers(text[1:-1]), _true_box(answers)) > 0.5)


_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def box_first_numbers(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score REC as Prism does: IoU > 0.5 of the first four numbers in the text.

    A number is digits with an optional sign, decimal point and exponent, be it part of a word.

    Args:
        prediction: What the model said.
        answers: The box `[x1, y1, x2, y2]`, first.
        extra: Not used.

    Returns:
        0.0 or 1.0; fewer than four numbers are 0.0.

    Raises:
        DataError: If the answer is not four numbers.
    """
    found = [float(number) for number in _NUMBER.findall(prediction)[:4]]
    return float(_iou(found, _true_box(answers)) > 0.5)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _true_box(answers: Sequence[str]) -> list[float]:
    truth = _numbers(answers[0].replace("[", "").replace("]", ""))
    if len(truth) != 4:
        raise DataError(f"the answer {answers[0]!r} is not a box; expected [x1, y1, x2, y2]")
    return truth


def _iou(a: list[float], b: list[float]) -> float:
    """Compute the IoU without a look at the order of the corners, as the public code does."""
    if len(a) != 4:
        return 0.0
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def anls_without_threshold(
    prediction: str, answers: Sequence[str], extra: Mapping[str, Any]
) -> float:
    """Score DocVQA and InfographicVQA as Prism does: the best similarity, however small.

    Letter case is folded and space around either text dropped, nothing else; the official ANLS
    makes every value below 0.5 a 0. A blank prediction has nothing in common with any answer.

    Args:
        prediction: What the model said.
        answers: The accepted answers; all of them count.
        extra: Not used.

    Returns:
        A score between 0 and 1.
    """
    said = prediction.strip().lower()
    return max(similarity(said, answer.strip().lower()) for answer in answers)
