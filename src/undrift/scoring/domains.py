"""The rules of MLLM-CL's public code for its five domains (MLLM-DCL), bug for bug.

All fold letter case and give 0 to a prediction that contains `Unanswerable`, spelt so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from undrift.errors import DataError

_EQUAL_IN = {"AI2D", "TQA", "VQA", "SciVerse"}


def contains(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score Med (PathVQA): the prediction contains the answer, be it inside a word.

    So `yesterday` is right where the answer is `yes`.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float(_answered(prediction) and answers[0].lower() in prediction.lower())


def contains_word(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score RS and AD: the prediction contains the answer, roughly as a word.

    An answer of one word loses ALL its periods (`No.` is `no`, and `2.5` is `25`, which the text
    `2.5` does not hold). If the prediction has a space, that word must stand behind a space, or
    before a space, a period or a comma: `no` is not found in `it snows`, but it is in `a casino
    is`. Else, as for answers of several words, the prediction has to contain it: `snow` has `no`.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    said, truth = prediction.lower(), answers[0].lower()
    if not _answered(prediction):
        return 0.0
    if " " in truth:
        return float(truth in said)
    truth = truth.replace(".", "")
    marked = [f" {truth}", f"{truth} ", f"{truth}.", f"{truth},"] if " " in said else [truth]
    return float(any(text in said for text in marked))


def same_without_spaces(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score Fin: equal once spaces and periods are dropped from the PREDICTION.

    The answer keeps its own, so an answer with a space in it can never be right; answers are
    letters, `true` or `false`.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    said = prediction.lower().replace(" ", "").replace(".", "")
    return float(_answered(prediction) and said == answers[0].lower())


def science(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score Sci, by the subset that the picture's file name begins with.

    AI2D, TQA, VQA and SciVerse: equality. Every other prefix is taken for MapQA: the share of the
    listed states found in a `Which states` question, parted by commas with their spaces kept (`a,
    b` and `a,b` share only `a`); containment in any other. One public revision compares SciVerse
    by containment.

    Args:
        prediction: What the model said.
        answers: The answer, first.
        extra: `subset`, the file name's prefix, and `question`.

    Returns:
        A score between 0 and 1.

    Raises:
        DataError: If there is no subset or, for MapQA, no question.
    """
    subset = _text(extra, "subset")
    said, truth = prediction.lower(), answers[0].lower()
    if not _answered(prediction):
        return 0.0
    if subset in _EQUAL_IN:
        return float(said == truth)
    if "Which states" in _text(extra, "question"):
        states, found = truth.split(","), set(said.split(","))
        return sum(state in found for state in states) / len(states)
    return float(truth in said)


def _answered(prediction: str) -> bool:
    return "Unanswerable" not in prediction


def _text(extra: Mapping[str, Any], key: str) -> str:
    value = extra.get(key)
    if not isinstance(value, str):
        raise DataError(
            f"scoring Sci needs {key!r} in an example's extra, a text; it is {value!r}; "
            "the loader takes the subset from the prefix of the picture's file name"
        )
    return value
