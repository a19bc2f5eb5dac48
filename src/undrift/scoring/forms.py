"""Is the FORM of an answer right, whether or not the answer is?

`error_kind` names what is wrong with the form and `form` is 1 where nothing is. Both know letter
case where the task's answers have one, which SMoLoRA's published measure (`MIF`, beside them)
does not: it upper-cases letters before it looks. Form is judged by rules of thumb on the text and
the answers; a wrong answer in the right form has no error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from undrift.errors import unknown
from undrift.scoring.boxes import four_numbers
from undrift.scoring.lenient import content

ErrorKind = Literal[
    "empty",
    "refusal",
    "case",
    "punctuation",
    "sentence instead of letter",
    "letter instead of word",
    "extra words",
    "not a number",
    "unparsable box",
    "too short",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
Judge = Callable[[str, Sequence[str]], ErrorKind | None]

_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i can ?no?t|i can'?t|i am unable|i'?m unable|as an ai|"
    r"unanswerable|cannot be (?:determined|answered)|not possible to (?:determine|answer))\b"
)
_DECORATED_LETTER = re.compile(r"\W*([^\W\d_])\W*")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_NUMERAL = re.compile(r"[-+]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[-+]?\d++)?", re.IGNORECASE)
_SHORT = 2  # words, as MIF has it
_BRIEF_CAPTION = 4  # words


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

    Args:
        kind: A key of KINDS_OF_FORM; None if it is not known, and nothing more is looked for.
        prediction: What the model said.
        answers: The accepted answers, which show the form that is asked for.

    Returns:
        The kind of error, or None.

    Raises:
        UnknownName: If there is no such kind of answer.
    """
    if kind is not None and kind not in KINDS_OF_FORM:
        raise unknown("kind of answer", kind, KINDS_OF_FORM)
    said, accepted = prediction.strip(), [answer.strip() for answer in answers]
    if said in accepted:
        return None
    if not said:
        return "empty"
    if kind != "caption" and _refuses(said) and not any(map(_refuses, accepted)):
        return "refusal"
    return None if kind is None else KINDS_OF_FORM[kind](said, accepted)


def form(kind: str, prediction: str, answers: Sequence[str]) -> float:
    """1 if the form is right: if `error_kind` finds nothing.

    Args:
        kind: A key of KINDS_OF_FORM.
        prediction: What the model said.
        answers: The accepted answers.

    Returns:
        0.0 or 1.0.
    """
    return float(error_kind(kind, prediction, answers) is None)


def _refuses(text: str) -> bool:
    return _REFUSAL.search(text.lower().replace("’", "'")) is not None


def _letter(said: str, answers: Sequence[str]) -> ErrorKind | None:
    found = _DECORATED_LETTER.fullmatch(said)
    if not found:
        return "sentence instead of letter"
    if not _case_fits(found.group(1), answers):
        return "case"
    return None if len(said) == 1 else "punctuation"


def _cased(said: str, answers: Sequence[str]) -> ErrorKind | None:
    if all(map(_is_letter, answers)):
        return _letter(said, answers)
    if _is_letter(said) and not any(map(_is_letter, answers)):
        return "letter instead of word"
    return _text(said, answers) or (None if _case_fits(said, answers) else "case")


def _text(said: str, answers: Sequence[str]) -> ErrorKind | None:
    longest = max(len(answer.split()) for answer in answers)
    if len(said.split()) > max(_SHORT, longest):
        return "extra words"
    return "punctuation" if _decorated(said, answers) else None


def _decorated(said: str, answers: Sequence[str]) -> bool:
    """Tell whether a text has quotes or a final period (not an abbreviation's) as no answer has."""
    plain = said.strip("\"'`“”‘’")
    stops = plain.endswith(".") and "." not in plain[:-1]
    return (plain != said or stops) and not any(_ends_alike(said, answer) for answer in answers)


def _ends_alike(said: str, answer: str) -> bool:
    return answer[-1:] == said[-1:] and not said[-1:].isalnum()


def _case_fits(said: str, answers: Sequence[str]) -> bool:
    """Tell whether a text has the answers' case: all lower, all upper, or as the same answer."""
    same = [answer for answer in answers if content(answer) == content(said)]
    if same:
        return any(answer in said for answer in same)
    if all(answer == answer.lower() for answer in answers):
        return said == said.lower()
    if all(answer == answer.upper() for answer in answers):
        return said == said.upper()
    return True


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isalpha()


def _number(said: str, answers: Sequence[str]) -> ErrorKind | None:
    if _NUMBER.fullmatch(said):
        return None
    return _around(said) if _NUMBER.search(said) else "not a number"


def _box(said: str, answers: Sequence[str]) -> ErrorKind | None:
    if four_numbers(said) is None:
        return "unparsable box"
    return None if _frame(said) in map(_frame, answers) else _around(said)


def _frame(text: str) -> str:
    return "".join(_NUMERAL.sub("#", text).split())


def _around(said: str) -> ErrorKind:
    return "extra words" if any(map(str.isalpha, said)) else "punctuation"


def _caption(said: str, answers: Sequence[str]) -> ErrorKind | None:
    if not said.endswith("."):
        return "punctuation"
    return None if mif_caption(said, answers) else "too short"


KINDS_OF_FORM: dict[str, Judge] = {
    "letter": _letter,
    "choice": _cased,
    "class name": _cased,
    "short text": _text,
    "consensus": _text,
    "document": _text,
    "chart": _text,
    "number": _number,
    "box": _box,
    "caption": _caption,
}


def mif_letter(prediction: str, answers: Sequence[str]) -> float:
    """SMoLoRA's rule for ScienceQA: one letter A to Z once stripped and upper-cased, right or not.

    Args:
        prediction: What the model said.
        answers: Not used.

    Returns:
        0.0 or 1.0.
    """
    said = prediction.strip().upper()
    return float(len(said) == 1 and "A" <= said <= "Z")


def mif_short(prediction: str, answers: Sequence[str]) -> float:
    """SMoLoRA's rule for questions and classes: at most two words, or the first answer, caseless.

    An EMPTY prediction has at most two words.

    Args:
        prediction: What the model said.
        answers: The answer, first.

    Returns:
        0.0 or 1.0.
    """
    said = prediction.strip()
    return float(len(said.split()) <= _SHORT or said.lower() == answers[0].lower())


def mif_caption(prediction: str, answers: Sequence[str]) -> float:
    """SMoLoRA's rule for captions: a final period, and over four words or part of a reference.

    Args:
        prediction: What the model said.
        answers: The references.

    Returns:
        0.0 or 1.0.
    """
    said = prediction.strip()
    if not said.endswith("."):
        return 0.0
    inside = any(said.lower() in answer.lower() for answer in answers)
    return float(len(said.split()) > _BRIEF_CAPTION or inside)


# The kinds of answer that the published MIF is defined for.
MIF: dict[str, Callable[[str, Sequence[str]], float]] = {
    "letter": mif_letter,
    "short text": mif_short,
    "consensus": mif_short,
    "class name": mif_short,
    "caption": mif_caption,
}
