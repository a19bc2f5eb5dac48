"""The data sets' own metrics, whether or not the public continual-learning code follows them.

Each is `(prediction, answers, extra) -> score in [0, 1]`. A model's text is not what some of these
metrics were made for; what is added for it is said in each docstring.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from undrift.errors import DataError
from undrift.scoring.answers import box, caseless
from undrift.scoring.text_distance import edit_distance
from undrift.scoring.vqa_text import (
    agreement,
    m4c_normalised,
    one_line,
    vqa_normalised,
    without_punctuation,
)

_LETTER = re.compile(r"\(?([A-Za-z])(?:[.):].*)?", re.DOTALL)
_LETTER_IN_SENTENCE = re.compile(r"the answer is \(?([A-Za-z])\)?(?:\.|$)", re.IGNORECASE)


def ten_answers(answers: Sequence[str], extra: Mapping[str, Any]) -> list[str] | None:
    """Return the answers that ten people gave, if an example has them.

    Args:
        answers: Its accepted answers, which may be those ten.
        extra: `human_answers`, if they are kept apart.

    Returns:
        Ten texts, or None.
    """
    given = texts_in(extra, "human_answers") if "human_answers" in extra else answers
    return [str(answer) for answer in given] if len(given) == 10 else None


def texts_in(extra: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the texts that an example keeps beside it.

    Args:
        extra: The example's extra.
        key: Their name.

    Returns:
        The texts, or numbers; none if the key is missing or null.

    Raises:
        DataError: If there is something else.
    """
    given = extra.get(key) or ()
    if not isinstance(given, list | tuple):
        raise DataError(f"{key!r} of an example should be a list of texts, not {str(given)[:60]!r}")
    return cast("Sequence[Any]", given)


def _needed(answers: Sequence[str], extra: Mapping[str, Any]) -> list[str]:
    ten = ten_answers(answers, extra)
    if ten is None:
        raise DataError(
            f"this metric compares with the answers of ten people; the example has {len(answers)} "
            "answers; give ten as its answers or as 'human_answers' in its extra"
        )
    return ten


def textvqa_m4c(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score TextVQA as M4C does, which public and official scoring agree on.

    Both sides are normalised (`vqa_text.m4c_normalised`). The prediction must be among the ten;
    of m that match, m = 1, 2, 3 give 0.3, 0.6, 0.9 and more give 1.

    Args:
        prediction: What the model said.
        answers: The ten answers, unless `extra` has them.
        extra: `human_answers`, ten texts.

    Returns:
        A score between 0 and 1.

    Raises:
        DataError: If there are not exactly ten.
    """
    said = m4c_normalised(prediction)
    return agreement([m4c_normalised(answer) == said for answer in _needed(answers, extra)])


def vqa_soft(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VQAv2 and VizWiz: agreement with ten people, as the official repository has it now.

    Space around a text and line breaks never count. Where the ten answers are all the same, nothing
    else is normalised: `none` is right for ten times `none`, and `None` is not. Else both sides
    lose case, punctuation and articles, and number words become digits.

    Args:
        prediction: What the model said.
        answers: The ten answers, unless `extra` has them.
        extra: `human_answers`, ten texts.

    Returns:
        A score between 0 and 1.

    Raises:
        DataError: If there are not exactly ten.
    """
    ten = [one_line(answer) for answer in _needed(answers, extra)]
    said = one_line(prediction)
    if len(set(ten)) > 1:
        said, ten = vqa_normalised(said), [vqa_normalised(answer) for answer in ten]
    return agreement([answer == said for answer in ten])


def vqa_soft_2015(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VQAv2 and VizWiz as the first version of the evaluation did, which is still copied.

    The prediction loses case, punctuation, articles and number words. The answers lose punctuation
    ONLY, and only if the ten are not all the same: an answer with an article or a capital letter
    cannot be matched, nor can `none` or `two` (the prediction says 0 and 2 by then).

    Args:
        prediction: What the model said.
        answers: The ten answers, unless `extra` has them.
        extra: `human_answers`, ten texts.

    Returns:
        A score between 0 and 1.

    Raises:
        DataError: If there are not exactly ten.
    """
    ten = _needed(answers, extra)
    if len(set(ten)) > 1:
        ten = [without_punctuation(answer) for answer in ten]
    said = vqa_normalised(prediction)
    return agreement([answer == said for answer in ten])


def anls(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score DocVQA and InfographicVQA: the best similarity to an answer, 0 where it is below 0.5.

    1 - the edit distance of the texts, case folded, space around them dropped and inner space made
    single, over the length of the longer AS IT STANDS: space that was dropped makes a wrong text
    more similar (`ABC  d` is 0.667 like `ABC`, not 0.6). A similarity of exactly 0.5 counts as 0.5,
    as in the evaluation script; the paper's formula makes it 0.

    Args:
        prediction: What the model said.
        answers: The accepted answers; all of them count.
        extra: Not used.

    Returns:
        0, or a score between 0.5 and 1.
    """
    best = max(_alike(prediction, answer) for answer in answers)
    return best if best >= 0.5 else 0.0


def _alike(prediction: str, answer: str) -> float:
    distance = edit_distance(_squeezed(prediction), _squeezed(answer))
    longer = max(len(prediction.upper()), len(answer.upper()))  # the script's: `ß` counts for two
    return 1.0 - distance / longer if longer else 1.0


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())


def relaxed_accuracy(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score ChartQA: numbers within 5 % of the answer are right, other texts must be equal.

    `12 %` and `12%%` are the number 0.12, on both sides. A number with a comma (`1,200`) is a text,
    and so is every comparison with the answer 0, since 5 % of nothing is nothing. Texts are
    compared with case folded and space around them dropped. `nan`, `inf` and `1e400` are numbers
    that are within 5 % of nothing, themselves included.

    Args:
        prediction: What the model said.
        answers: The accepted answers; any of them.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return float(any(_within_five_percent(prediction, answer) for answer in answers))


def _within_five_percent(prediction: str, answer: str) -> bool:
    said, truth = _float(prediction), _float(answer)
    if said is not None and truth:
        return abs(said - truth) / abs(truth) <= 0.05
    return prediction.strip().lower() == answer.strip().lower()


def _float(text: str) -> float | None:
    text = text.strip()
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        return None
    return number / 100 if text.endswith("%") else number


def box_half(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score REC: IoU >= 0.5, by the library's own parser (`answers.box`).

    Args:
        prediction: What the model said.
        answers: The accepted boxes; any of them.
        extra: Not used.

    Returns:
        0.0 or 1.0.

    Raises:
        DataError: If an answer is not a box.
    """
    return box(prediction, answers)


def letter_accuracy(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score a letter task by the letter that the text chooses; case counts.

    A letter alone, in brackets, or before `.`, `)` or `:` and any text; or a text that says `the
    answer is C.` exactly once. The scorer `letter` reads more forms, and refuses two letters.

    Args:
        prediction: What the model said.
        answers: The right letter; any of them.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    said = _chosen(prediction)
    return float(said is not None and any(said == _chosen(answer) for answer in answers))


def _chosen(text: str) -> str | None:
    text = text.strip()
    plain = _LETTER.fullmatch(text)
    found = [plain.group(1)] if plain else _LETTER_IN_SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def accuracy(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score by equality with any answer: case folded, space around the text ignored.

    It stands for top-1 accuracy on ImageNet (there is no ranking of classes in a text), for
    OCR-VQA's exact match, and for what IconQA, CLEVR and FloodNet call accuracy.

    Args:
        prediction: What the model said.
        answers: The accepted answers; any of them.
        extra: Not used.

    Returns:
        0.0 or 1.0.
    """
    return caseless(prediction, answers)
