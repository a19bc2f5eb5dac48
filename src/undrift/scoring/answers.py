"""Scorers: small pure functions `(prediction, answers) -> score in [0, 1]`, one per kind of answer.

`score(name, prediction, answers)` gives the two numbers that are stored with every prediction:
`strict`, by the scorer as it is, and `caseless`, by the same scorer once letter case is folded on
both sides. What is right strictly is right caselessly. A scorer's rule never changes under its
name; a new rule is a new name.

To add a scorer: write the function, add it to SCORERS, or register it in a package of one's own
under the entry point group `undrift.scorers`. It needs to say what is right and no more: for a
scorer that `drift` knows no kind of answer for, lenient is what it says once case is folded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

from undrift import registry
from undrift.errors import ConfigError, DataError, UndriftError, unknown
from undrift.scoring.boxes import Box, find_box, overlap

Scorer = Callable[[str, Sequence[str]], float]


class Score(NamedTuple):
    """One prediction's two scores, each in [0, 1]."""

    strict: float
    caseless: float


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, letter for letter.

    Space around either is ignored. Case, inner space and a final period count: `seven`, `Seven.`
    and `Seven` are three answers, since a model that drifts in form is to be seen drifting.

    Args:
        prediction: What the model said.
        answers: The accepted answers.

    Returns:
        0.0 or 1.0.
    """
    return float(prediction.strip() in {answer.strip() for answer in answers})


def caseless(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers when letter case is folded.

    Args:
        prediction: What the model said.
        answers: The accepted answers.

    Returns:
        0.0 or 1.0.
    """
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

    Args:
        prediction: What the model said.
        answers: The accepted letters.

    Returns:
        0.0 or 1.0.
    """
    said = _chosen(prediction)
    return float(said is not None and any(said == _chosen(answer) for answer in answers))


def _chosen(text: str) -> str | None:
    """Return the letter that a text chooses."""
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
    wrong.

    Args:
        prediction: What the model said.
        answers: The accepted boxes.

    Returns:
        0.0 or 1.0.

    Raises:
        DataError: If an answer is not a box.
    """
    said = find_box(prediction)
    truths = [true_box(answer) for answer in answers]
    return float(said is not None and any(overlap(said, truth) >= 0.5 for truth in truths))


def true_box(answer: str) -> Box:
    """Return the box of an accepted answer.

    Args:
        answer: The answer.

    Returns:
        Its first box.

    Raises:
        DataError: If there is none.
    """
    found = find_box(answer)
    if found is None:
        raise DataError(
            f"the answer {answer[:200]!r} is not a box; expected [x1, y1, x2, y2] with x1 < x2 and "
            "y1 < y2"
        )
    return found


SCORERS: dict[str, Scorer] = {"exact": exact, "caseless": caseless, "letter": letter, "box": box}


def find_scorer(name: str) -> Scorer:
    """Return the scorer of this name.

    Args:
        name: A key of SCORERS, or an entry point of the group `undrift.scorers`.

    Returns:
        The function.

    Raises:
        UnknownName: If there is none; the message offers the nearest.
    """
    return SCORERS[name] if name in SCORERS else _plugged(name, tuple(sys.path))


@lru_cache  # looked up once a path, not once a prediction
def _plugged(name: str, _path: tuple[str, ...]) -> Scorer:
    if name not in registry.SCORERS.plugins():
        raise unknown("scorer", name, [*SCORERS, *registry.SCORERS.plugins()])
    found = registry.SCORERS.load(name)
    if not callable(found):
        raise ConfigError(
            f"the scorer {name!r} is {found!r}; expected a function (prediction, answers) -> float"
        )
    return cast("Scorer", found)


def score(scorer: str, prediction: str, answers: Sequence[str]) -> Score:
    """Score one prediction twice, as it is and with letter case folded.

    Args:
        scorer: A name that `find_scorer` knows.
        prediction: What the model said; an empty text is a wrong answer, not an error.
        answers: The accepted answers, at least one.

    Returns:
        The strict and the caseless score; the first is never above the second.

    Raises:
        UnknownName: If there is no such scorer.
        DataError: If there is no answer to compare with, or if the scorer gives no score.
    """
    if not answers:
        raise DataError(f"nothing to compare the prediction {prediction!r} with: no answers")
    strict = strict_score(scorer, prediction, answers)
    folded = [answer.casefold() for answer in answers]
    return Score(strict, max(strict, strict_score(scorer, prediction.casefold(), folded)))


def strict_score(scorer: str, prediction: str, answers: Sequence[str]) -> float:
    """Score one prediction as it is.

    Args:
        scorer: A name that `find_scorer` knows.
        prediction: What the model said.
        answers: The accepted answers, at least one.

    Returns:
        A number from 0 to 1.

    Raises:
        DataError: If an answer cannot be used, or if a scorer of one's own fails or gives anything
            else.
    """
    rule = find_scorer(scorer)
    try:
        found = float(rule(prediction, tuple(answers)))
    except UndriftError:
        raise
    except Exception as error:
        raise DataError(
            f"the scorer {scorer!r} failed on the prediction {prediction[:200]!r} with the answers "
            f"{str(list(answers))[:200]} ({type(error).__name__}: {error}); mend it, or name "
            "another one"
        ) from error
    if not 0.0 <= found <= 1.0:
        raise DataError(
            f"the scorer {scorer!r} gave {found} for the prediction {prediction[:200]!r}; expected "
            "a number from 0 to 1"
        )
    return found
