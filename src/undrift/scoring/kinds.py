"""The kinds of answer: how each is scored and which form it has, in ONE table.

A rule is a pure function that says what a prediction is worth. Scorers, which a task names, are
`(prediction, answers) -> score`; the rules of published tasks get the example's `extra` as well:

- prediction: what the model said; an empty text is a wrong answer, not an error;
- answers: the accepted answers, at least one. Any of them will do for undrift's own and the data
  sets' own rules; the public codes' look at the first only;
- extra: what the example keeps beside it: `choices`, `human_answers` (of ten people), `subset` and
  `question` are used;
- the score is a number from 0 to 1. A DataError says that an answer cannot be used.

A rule never changes under its name; a new rule is a new name.

To add a scorer: write the function in `rules_undrift.py` and give it a line in KINDS, or register
it in a package of one's own under the entry point group `undrift.scorers`. It needs to say what is
right and no more: without `lenient` and `form`, lenient is what it says once case is folded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

from undrift import registry
from undrift.errors import ConfigError, DataError, UndriftError, unknown
from undrift.scoring.answer_form import (
    ErrorKind,
    FormRule,
    box_form,
    caption_form,
    cased_form,
    error_of_form,
    letter_form,
    mif_caption,
    mif_letter,
    mif_short,
    number_form,
    text_form,
)
from undrift.scoring.rules_lenient import alike, choice, consensus, same_content
from undrift.scoring.rules_official import box_half
from undrift.scoring.rules_undrift import box, caseless, exact, letter

Scorer = Callable[[str, Sequence[str]], float]
Rule = Callable[[str, Sequence[str], Mapping[str, Any]], float]


@dataclass(frozen=True)
class Kind:
    """How one kind of answer is scored.

    Args:
        strict: The scorer that a task names by the function's name; None where only published
            tasks, which have rules of their own, ask for such answers.
        lenient: Content only; None for captions, which are scored with their whole file.
        form: What is wrong with the form of an answer.
        mif: SMoLoRA's published measure of form, for the kinds that it is defined for.
    """

    strict: Scorer | None = None
    lenient: Rule | None = None
    form: FormRule | None = None
    mif: Scorer | None = None


KINDS: dict[str, Kind] = {
    "class name": Kind(exact, same_content, cased_form, mif_short),
    "short text": Kind(caseless, same_content, text_form, mif_short),
    "letter": Kind(letter, choice, letter_form, mif_letter),
    "choice": Kind(exact, choice, cased_form),
    "number": Kind(exact, same_content, number_form),
    "consensus": Kind(None, consensus, text_form, mif_short),
    "document": Kind(None, alike, text_form),
    "chart": Kind(None, same_content, text_form),
    "box": Kind(box, box_half, box_form),
    "caption": Kind(None, None, caption_form, mif_caption),
}

SCORERS: dict[str, Scorer] = {
    kind.strict.__name__: kind.strict for kind in KINDS.values() if kind.strict is not None
}


class Score(NamedTuple):
    """One prediction's score, as it is and with letter case folded on both sides, in [0, 1]."""

    strict: float
    caseless: float


def find_scorer(name: str) -> Scorer:
    """Return the scorer of this name: one of SCORERS, or an entry point of another package."""
    return SCORERS[name] if name in SCORERS else _plugged(name, tuple(sys.path))


@lru_cache  # looked up once a path, not once a prediction
def _plugged(name: str, _path: tuple[str, ...]) -> Scorer:
    if name not in registry.SCORERS.plugins():
        raise unknown("scorer", name, [*SCORERS, *registry.SCORERS.plugins()])
    rule = registry.SCORERS.load(name)
    if not callable(rule):
        raise ConfigError(
            f"the scorer {name!r} is {rule!r}; expected a function (prediction, answers) -> float"
        )
    return cast("Scorer", rule)


def score(scorer: str, prediction: str, answers: Sequence[str]) -> Score:
    """Score one prediction twice; what is right strictly is right with letter case folded."""
    if not answers:
        raise DataError(f"nothing to compare the prediction {prediction!r} with: no answers")
    strict = strict_score(scorer, prediction, answers)
    folded = [answer.casefold() for answer in answers]
    return Score(strict, max(strict, strict_score(scorer, prediction.casefold(), folded)))


def strict_score(scorer: str, prediction: str, answers: Sequence[str]) -> float:
    """Score one prediction as it is; a scorer that fails, or gives no score, is a DataError."""
    rule = find_scorer(scorer)
    try:
        value = float(rule(prediction, tuple(answers)))
    except UndriftError:
        raise
    except Exception as error:
        raise DataError(
            f"the scorer {scorer!r} failed on the prediction {prediction[:200]!r} with the answers "
            f"{str(list(answers))[:200]} ({type(error).__name__}: {error}); mend it, or name "
            "another one"
        ) from error
    if not 0.0 <= value <= 1.0:
        raise DataError(
            f"the scorer {scorer!r} gave {value} for the prediction {prediction[:200]!r}; expected "
            "a number from 0 to 1"
        )
    return value


def error_kind(kind: str | None, prediction: str, answers: Sequence[str]) -> ErrorKind | None:
    """Name what is wrong with the form of a prediction.

    An accepted answer, letter for letter, has no error. Else the first of these that fits: empty,
    refusal (unless a refusal such as `unanswerable` is an accepted answer), then by kind

    - letter: one letter in the answers' case; other case, punctuation around it, or a sentence.
    - choice, class name: as letter where the answers are letters; else a letter instead of a
      word, then as short text, then the answers' case.
    - short text, consensus, document, chart: a final period or quotes where no answer has them; at
      most two words, or as many as the longest answer.
    - number: digits, nothing else.
    - box: as an accepted answer once numbers and spaces are left out; what has no four numbers
      that stand together (`boxes.four_numbers`) is unparsable.
    - caption: ends with a period, and has more than four words or stands in a reference.

    Of a `kind` that is None nothing more is looked for; one that is not in KINDS is an UnknownName.
    """
    if kind is not None and kind not in KINDS:
        raise unknown("kind of answer", kind, KINDS)
    return error_of_form(KINDS[kind].form if kind else None, prediction, answers)


def form(kind: str, prediction: str, answers: Sequence[str]) -> float:
    """1 if the form is right: if `error_kind` finds nothing."""
    return float(error_kind(kind, prediction, answers) is None)
