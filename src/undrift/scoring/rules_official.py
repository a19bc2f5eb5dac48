"""The data sets' own metrics, whether or not the public continual-learning code follows them.

What each takes and gives is said once, in `kinds.py`. A model's text is not what some of these
metrics were made for; what is added for it is said in each docstring.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from undrift.errors import DataError
from undrift.scoring.edit_distance import edit_distance
from undrift.scoring.rules_undrift import box, caseless
from undrift.scoring.vqa_normalisation import (
    agreement,
    m4c_normalised,
    vqa_normalised,
    without_line_breaks,
    without_punctuation,
)

_LETTER = re.compile(r"\(?([A-Za-z])(?:[.):].*)?", re.DOTALL)
_LETTER_IN_SENTENCE = re.compile(r"the answer is \(?([A-Za-z])\)?(?:\.|$)", re.IGNORECASE)


def ten_answers(answers: Sequence[str], extra: Mapping[str, Any]) -> list[str] | None:
    """Return the answers that ten people gave, kept apart or as `answers`; None if not ten."""
    texts = texts_in(extra, "human_answers") if "human_answers" in extra else answers
    return [str(answer) for answer in texts] if len(texts) == 10 else None


def texts_in(extra: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the texts, or numbers, that an example keeps beside it; none if the key is missing."""
    texts = extra.get(key) or ()
    if not isinstance(texts, list | tuple):
        raise DataError(f"{key!r} of an example should be a list of texts, not {str(texts)[:60]!r}")
    return cast("Sequence[Any]", texts)


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

    Both sides are normalised (`m4c_normalised`). The prediction must be among the ten; of m that
    match, m = 1, 2, 3 give 0.3, 0.6, 0.9 and more give 1.
    """
    said = m4c_normalised(prediction)
    return agreement([m4c_normalised(answer) == said for answer in _needed(answers, extra)])


def vqa_soft(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VQAv2 and VizWiz: agreement with ten people, as the official repository has it now.

    Space around a text and line breaks never count. Where the ten answers are all the same, nothing
    else is normalised: `none` is right for ten times `none`, and `None` is not. Else both sides
    lose case, punctuation and articles, and number words become digits.
    """
    ten = [without_line_breaks(answer) for answer in _needed(answers, extra)]
    said = without_line_breaks(prediction)
    if len(set(ten)) > 1:
        said, ten = vqa_normalised(said), [vqa_normalised(answer) for answer in ten]
    return agreement([answer == said for answer in ten])


def vqa_soft_2015(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score VQAv2 and VizWiz as the first version of the evaluation did, which is still copied.

    The prediction loses case, punctuation, articles and number words. The answers lose punctuation
    ONLY, and only if the ten are not all the same: an answer with an article or a capital letter
    cannot be matched, nor can `none` or `two` (the prediction says 0 and 2 by then).
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
    """Score REC: IoU >= 0.5, by the library's own parser (`rules_undrift.box`)."""
    return box(prediction, answers)


def letter_accuracy(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score a letter task by the letter that the text chooses; case counts.

    A letter alone, in brackets, or before `.`, `)` or `:` and any text; or a text that says `the
    answer is C.` exactly once. The scorer `letter` reads more forms, and refuses two letters.
    """
    chosen = _chosen_letter(prediction)
    return float(chosen is not None and chosen in map(_chosen_letter, answers))


def _chosen_letter(text: str) -> str | None:
    text = text.strip()
    plain = _LETTER.fullmatch(text)
    found = [plain.group(1)] if plain else _LETTER_IN_SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def accuracy(prediction: str, answers: Sequence[str], extra: Mapping[str, Any]) -> float:
    """Score by equality with any answer: case folded, space around the text ignored.

    It stands for top-1 accuracy on ImageNet (there is no ranking of classes in a text), for
    OCR-VQA's exact match, and for what IconQA, CLEVR and FloodNet call accuracy.
    """
    return caseless(prediction, answers)
