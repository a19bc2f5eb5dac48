"""undrift's own strict rules, the scorers: exact, caseless, letter and box.

What each takes and gives is said once, in `kinds.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from undrift.errors import DataError
from undrift.scoring.boxes import Box, find_box, overlap


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, letter for letter.

    Space around either is ignored. Case, inner space and a final period count: `seven`, `Seven.`
    and `Seven` are three answers, since a model that drifts in form is to be seen drifting.
    """
    return float(prediction.strip() in {answer.strip() for answer in answers})


def caseless(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers when letter case is folded."""
    return exact(prediction.casefold(), [answer.casefold() for answer in answers])


_LEAD = (
    r"(?:\A(?:(?:answer|option|choice)\b\s*+:?+\s*+)?+|\banswer\s*+:\s*+|\bthe\s++"
    r"(?:(?:correct|right|best|final)\s++)?+(?:answer|option|choice)\s++is\b\s*+:?+\s*+)"
    r"(?:(?:option|choice)\s++)?+"
)
_CHOICE = re.compile(  # not the A of `A.5` and `A.M.`
    rf"{_LEAD}[(\[]?([a-z])(?:[)\]]|[.:](?!\d|[a-z](?![a-z]))|\s++[-\u2013\u2014]\s|\s*+\Z)",
    re.IGNORECASE,
)
# What follows a letter and takes it back: `or B`; `- B` or `B. C.` and nothing else.
_NO_CHOICE = re.compile(
    r"[)\].:\s]*+(?:(?:[,;/&]|or\b|and\b)\s*+[(\[]?[a-z]\b"
    r"|[-\u2013\u2014](?:\s++|(?=[(\[]))[(\[]?[a-z][.:)\]]*+\s*+\Z|(?:[(\[]?[a-z][.:)\]]++\s*+)++\Z)",
    re.IGNORECASE,
)
# A further option with its text. `both (A) and (B)`, `E. coli` and `Smith, J.` are texts of one.
_FURTHER = re.compile(
    r"(?:(?:\bor\s++|\n[ \t]*+)[(\[]?|\band\s++|[,;]\s*+(?=\W?[a-z][:)\]])[(\[]?)"
    r"([a-z])[.:)\]]++\s*+\w",
    re.IGNORECASE,
)
_QUOTED_LETTER = re.compile(r"(?<!\w)([\"'*_`])([A-Za-z])\1(?!\w)")


def letter(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction chooses the right option letter.

    Accepted forms of the letter C, on both sides: `C`, `C.` and `C. any text`, `C)`, `(C)`, `[C]`,
    `C: any text`, `C - any text`; the same behind `Answer:`, `Option` or, anywhere in a text, `the
    (correct) answer is`; `**` and quotes around it do not count. The case of the letter counts (`c`
    is wrong where the answer is `C`). A word that merely begins with the letter (`Cat`, `C.5`) does
    not count, nor does a text that offers two answers (`C. or D.`); an accepted answer that is such
    a text is right for no prediction (`undrift doctor` lists it).
    """
    chosen = _chosen_letter(prediction)
    return float(chosen is not None and chosen in map(_chosen_letter, answers))


def _chosen_letter(text: str) -> str | None:
    text = _QUOTED_LETTER.sub(r"\2", text.replace("**", "").replace("__", "").strip())
    letters: set[str] = set()
    for found in _CHOICE.finditer(text):
        if _NO_CHOICE.match(text, found.end(1)):
            return None
        letters.add(found.group(1))
    if len(letters) != 1:
        return None
    (chosen,) = letters
    others = (found.group(1) for found in _FURTHER.finditer(text))
    return None if any(other.upper() != chosen.upper() for other in others) else chosen


def box(prediction: str, answers: Sequence[str]) -> float:
    """1 if the predicted box overlaps an answer's box with IoU >= 0.5.

    Boxes are four numbers x1, y1, x2, y2 that stand together, x1 < x2 and y1 < y2, in any unit that
    both sides share; `boxes.find_box` says in which ways they may be written. Of several boxes in a
    text the first counts, on both sides. A prediction without one, or whose corners are swapped, is
    wrong; an answer without one is a DataError.
    """
    predicted = find_box(prediction)
    truths = [_true_box(answer) for answer in answers]
    return float(predicted is not None and any(overlap(predicted, true) >= 0.5 for true in truths))


def _true_box(answer: str) -> Box:
    found = find_box(answer)
    if found is None:
        raise DataError(
            f"the answer {answer[:200]!r} is not a box; expected [x1, y1, x2, y2] with x1 < x2 and "
            "y1 < y2"
        )
    return found
