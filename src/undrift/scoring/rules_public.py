"""The rules of the public code, bug for bug, so that published tables can be reproduced.

What each takes and gives is said once, in `kinds.py`; all know ONE answer, the first. Nothing is
stripped unless it is said: a space before the answer is an error under most of them. Where the
public repositories differ, there are two functions; `published_tasks.py` says which profile uses
which. The rules of MLLM-CL's five domains (MLLM-DCL) come last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from undrift.errors import DataError
from undrift.scoring.boxes import Box, overlap
from undrift.scoring.edit_distance import similarity

_OPTIONS = "ABCDE"
_ONE_CHARACTER_WORD = re.compile(r"\b(\w)\b")
_STATED_LETTER = re.compile("The answer is ([A-Z]).")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SUBSETS_BY_EQUALITY = {"AI2D", "TQA", "VQA", "SciVerse"}


def scienceqa_first_word(
    prediction: str, answers: Sequence[str], extra: Mapping[str, Any]
) -> float:
    """Score ScienceQA as CoIN and ModalPrompt do.

    `C` and `C. any text` choose C. Of any other text the first word of ONE character is taken and
    upper-cased: `c` is right, and so is `It is a fish` where the answer is A, while `it's C` says S
    and `I say C` says I. The public check that the letter belongs to a choice is left out, since
    such a letter is wrong anyway.
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
    """
    return float(answers[0] in prediction or prediction in answers[0])


def same_upper(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VizWiz, VQAv2 and what UCIT and TriGap call accuracy: equal once in upper case.

    A final period or a space around the text is an error; a number must be written alike; ChartQA
    gets no tolerance.
    """
    return float(prediction.upper() == answers[0].upper())


def same_upper_stripped(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VizWiz and VQAv2 as Prism does: `same_upper` without the space around either text."""
    return same_upper(prediction.strip(), [answers[0].strip()], extra)


def ocrvqa_lower(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score OCR-VQA: equal once in lower case, and no `Unanswerable` in the prediction."""
    return float(_answered(prediction) and prediction.lower() == answers[0].lower())


def ocrvqa_stripped(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score OCR-VQA as Prism does: `ocrvqa_lower` without the space around either text."""
    return ocrvqa_lower(prediction.strip(), [answers[0].strip()], extra)


def gqa(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score GQA: the prediction without final periods, in lower case, is the answer as it stands.

    Official and public alike. A space after the period keeps the period; an answer with a capital
    letter can never be right.
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
    """
    text = prediction.removeprefix(" ").replace("[", "").replace("]", "")
    return _overlaps(_numbers(text[1:-1]), answers)


def box_first_numbers(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score REC as Prism does: IoU > 0.5 of the first four numbers in the text.

    A number is digits with an optional sign, decimal point and exponent, be it part of a word.
    """
    return _overlaps([float(number) for number in _NUMBER.findall(prediction)[:4]], answers)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _overlaps(numbers: list[float], answers: Sequence[str]) -> float:
    """Is IoU > 0.5? The order of the corners does not matter, nor does it to the public code."""
    truth = _numbers(answers[0].replace("[", "").replace("]", ""))
    if len(truth) != 4:
        raise DataError(f"the answer {answers[0]!r} is not a box; expected [x1, y1, x2, y2]")
    return float(len(numbers) == 4 and overlap(Box(*numbers), Box(*truth)) > 0.5)


def anls_without_threshold(
    prediction: str, answers: Sequence[str], extra: Mapping[str, Any]
) -> float:
    """Score DocVQA and InfographicVQA as Prism does: the best similarity, however small.

    Letter case is folded and space around either text dropped, nothing else; the official ANLS
    makes every value below 0.5 a 0. A blank prediction has nothing in common with any answer.
    """
    said = prediction.strip().lower()
    return max(similarity(said, answer.strip().lower()) for answer in answers)


def contains(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score MLLM-DCL's Med (PathVQA): the prediction contains the answer, be it inside a word.

    So `yesterday` is right where the answer is `yes`.
    """
    return float(_answered(prediction) and answers[0].lower() in prediction.lower())


def contains_word(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score MLLM-DCL's RS and AD: the prediction contains the answer, roughly as a word.

    An answer of one word loses ALL its periods (`No.` is `no`, and `2.5` is `25`, which the text
    `2.5` does not hold). If the prediction has a space, that word must stand behind a space, or
    before a space, a period or a comma: `no` is not found in `it snows`, but it is in `a casino
    is`. Else, as for answers of several words, the prediction has to contain it: `snow` has `no`.
    """
    text, truth = prediction.lower(), answers[0].lower()
    if not _answered(prediction):
        return 0.0
    if " " in truth:
        return float(truth in text)
    truth = truth.replace(".", "")
    marked = [f" {truth}", f"{truth} ", f"{truth}.", f"{truth},"] if " " in text else [truth]
    return float(any(mark in text for mark in marked))


def same_without_spaces(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score MLLM-DCL's Fin: equal once spaces and periods are dropped from the PREDICTION.

    The answer keeps its own, so an answer with a space in it can never be right; answers are
    letters, `true` or `false`.
    """
    text = prediction.lower().replace(" ", "").replace(".", "")
    return float(_answered(prediction) and text == answers[0].lower())


def science(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score MLLM-DCL's Sci, by the subset that the picture's file name begins with.

    AI2D, TQA, VQA and SciVerse: equality. Every other prefix is taken for MapQA: the share of the
    listed states found in a `Which states` question, parted by commas with their spaces kept (`a,
    b` and `a,b` share only `a`); containment in any other. One public revision compares SciVerse
    by containment.
    """
    subset = _needed_text(extra, "subset")
    text, truth = prediction.lower(), answers[0].lower()
    if not _answered(prediction):
        return 0.0
    if subset in _SUBSETS_BY_EQUALITY:
        return float(text == truth)
    if "Which states" in _needed_text(extra, "question"):
        states, predicted = truth.split(","), set(text.split(","))
        return sum(state in predicted for state in states) / len(states)
    return float(truth in text)


def _answered(prediction: str) -> bool:
    """No `Unanswerable`, spelt so: MLLM-CL's code, and OCR-VQA's, give 0 to what contains it."""
    return "Unanswerable" not in prediction


def _needed_text(extra: Mapping[str, Any], key: str) -> str:
    value = extra.get(key)
    if not isinstance(value, str):
        raise DataError(
            f"scoring Sci needs {key!r} in an example's extra, a text; it is {value!r}; "
            "the loader takes the subset from the prefix of the picture's file name"
        )
    return value
