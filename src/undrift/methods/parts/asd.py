"""Answer-style diversification: some of a task's training examples, asked in other styles.

A model that learns a task in which every answer is a letter forgets how to answer in words, though
not what it knows. So a share of every task is rewritten into the styles that are not its own. It
is a transform of training data, for any method: call it in `Method.examples`. Test data are never
rewritten.

The published method had a large model write distractors and explanations. Here rules do it, from
what the task's data hold: distractors are answers of other examples of the same kind, and only
an example that comes with a rationale can be explained. Other writers can be given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Any

from undrift.data.types import Example

STYLES: Mapping[str, str] = MappingProxyType(
    {
        "yes_no": "Answer the question with yes or no.",
        "choice": "Answer with the option's letter from the given choices directly.",
        "brief": "Answer the question using a single word or phrase.",
        "explanation": "Answer the question and explain why in about 20 words.",
        "detail": "Answer the question and explain in detail in about 50 words.",
    }
)
"""Each style with the line that asks for it."""

RATIONALES = ("rationale", "solution", "explanation")  # where data keep one, in `Example.extra`
FORM_LINE = 0.05  # a last line that this share of a task's questions end with asks for a form
SHORT = 35  # words; a longer rationale is a detailed one
OPTIONS = 4
_OPTION = re.compile(r"\(?([A-Z])[.):]\s+(\S.*)")


@dataclass(frozen=True)
class Asked:
    """An example taken apart, for a writer to put together in another style.

    Attributes:
        question: Without options and without the line that asks for a form.
        answer: In words: of a multiple choice the option, not its letter.
        distractors: Wrong answers of the same kind, without repetitions.
        rationale: Why, where the data say so.
    """

    question: str
    answer: str
    distractors: tuple[str, ...]
    rationale: str | None


Writer = Callable[[Asked, Random], tuple[str, str] | None]
"""A question without its form line, and an answer; None if the style cannot be written."""


def yes_no(asked: Asked, random: Random) -> tuple[str, str] | None:
    """Ask whether the answer, or a distractor, is right: each half of the time."""
    if not asked.distractors:
        return None
    right = random.random() < 0.5
    shown = asked.answer if right else random.choice(asked.distractors)
    return f"{asked.question}\nIs the answer {shown}?", "yes" if right else "no"


def choice(asked: Asked, random: Random) -> tuple[str, str] | None:
    """Offer the answer among distractors, in random order, with letters."""
    if not asked.distractors:
        return None
    wrong = random.sample(asked.distractors, min(OPTIONS - 1, len(asked.distractors)))
    offered = [asked.answer, *wrong]
    random.shuffle(offered)
    lines = [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(offered)]
    letter = chr(ord("A") + offered.index(asked.answer))
    return "\n".join([asked.question, *lines]), letter


def brief(asked: Asked, random: Random) -> tuple[str, str]:
    """Ask for the answer itself."""
    return asked.question, asked.answer


def explanation(asked: Asked, random: Random) -> tuple[str, str] | None:
    """Answer with a short rationale, if the data hold one."""
    return _explained(asked, short=True)


def detail(asked: Asked, random: Random) -> tuple[str, str] | None:
    """Answer with a long rationale, if the data hold one."""
    return _explained(asked, short=False)


def _explained(asked: Asked, *, short: bool) -> tuple[str, str] | None:
    why = asked.rationale
    if why is None or (len(why.split()) <= SHORT) != short:
        return None
    return asked.question, f"{asked.answer}. {why}"


RULES: Mapping[str, Writer] = MappingProxyType(
    {
        "yes_no": yes_no,
        "choice": choice,
        "brief": brief,
        "explanation": explanation,
        "detail": detail,
    }
)


def diversified(
    examples: Sequence[Example],
    share: float,
    random: Random,
    writers: Mapping[str, Writer] = RULES,
) -> Sequence[Example]:
    """Rewrite a share of a task's training examples, evenly into the styles not its own.

    Args:
        examples: The task's training examples.
        share: How many of them, in [0, 1].
        random: Decides which, and whatever the writers leave open.
        writers: By style; what a style's cannot write goes to the others.

    Returns:
        As many examples in the same order; a rewritten one has the same id and pictures, and its
        style in `extra["style"]`.
    """
    wanted = round(share * len(examples))
    if not wanted:
        return examples
    own = task_style(examples)
    forms, answers = form_lines(examples), answers_by_kind(examples)
    made: Counter[str] = Counter({style: 0 for style in writers if style != own})
    out = list(examples)
    for place in random.sample(range(len(out)), len(out)):
        if made.total() == wanted:
            break
        asked = taken_apart(out[place], forms, answers)
        for style in sorted(made, key=lambda style: made[style]):
            written = writers[style](asked, random)
            if written is not None:
                made[style] += 1
                extra = {**out[place].extra, "style": style}
                question = f"{written[0]}\n{STYLES[style]}"
                out[place] = replace(
                    out[place], question=question, answers=(written[1],), extra=extra
                )
                break
    return out


def task_style(examples: Sequence[Example]) -> str:
    """Tell a task's own style: that of most of its answers."""
    return Counter(style_of(example) for example in examples).most_common(1)[0][0]


def style_of(example: Example) -> str:
    """Tell an example's style from the line that asks for it, or else from its answer."""
    asked = {line: style for style, line in STYLES.items()}.get(example.question.splitlines()[-1])
    if asked is not None:
        return asked
    answer = example.answers[0]
    if kind_of(answer) == "yes_no":
        return "yes_no"
    if _letter(answer) in options(example.question):
        return "choice"
    words = len(answer.split())
    return "brief" if words < 10 else "explanation" if words <= SHORT else "detail"


def options(question: str) -> dict[str, str]:
    """Find the lettered options of a question, by letter."""
    found = (_OPTION.fullmatch(line.strip()) for line in question.splitlines())
    return {match[1]: match[2].strip() for match in found if match}


def form_lines(examples: Sequence[Example]) -> set[str]:
    """Find the lines that ask for a form: last lines which many questions share."""
    ends = Counter(e.question.splitlines()[-1] for e in examples if "\n" in e.question)
    return {line for line, count in ends.items() if count > max(1, FORM_LINE * len(examples))}


def kind_of(answer: str) -> str:
    """Tell what kind of answer a text is; distractors are of the same kind."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes_no"
    if text.startswith("["):
        return "box"
    if re.fullmatch(r"[-+$]?[\d.,:/]+%?", text):
        return "number"
    return "word" if len(text.split()) == 1 else "words"


def answers_by_kind(examples: Sequence[Example]) -> dict[str, tuple[str, ...]]:
    """Collect a task's answers, each once, by kind."""
    found: dict[str, dict[str, None]] = {}
    for example in examples:
        found.setdefault(kind_of(example.answers[0]), {})[example.answers[0]] = None
    return {kind: tuple(answers) for kind, answers in found.items()}


def taken_apart(example: Example, forms: set[str], answers: Mapping[str, Sequence[str]]) -> Asked:
    """Take an example apart.

    Args:
        example: Of the task.
        forms: The task's `form_lines`.
        answers: The task's `answers_by_kind`.

    Returns:
        Its parts; the distractors of a multiple choice are its own other options.
    """
    lines = example.question.splitlines()
    if len(lines) > 1 and lines[-1] in forms:
        lines.pop()
    answer, lettered = example.answers[0], options(example.question)
    letter = _letter(answer)
    if letter in lettered:
        lines = [line for line in lines if not _OPTION.fullmatch(line.strip())]
        answer = lettered.pop(letter)
        others: Sequence[str] = list(lettered.values())
    else:
        others = answers[kind_of(answer)]
    right = {answer.lower(), *(each.lower() for each in example.answers)}
    wrong = tuple(other for other in dict.fromkeys(others) if other.lower() not in right)
    return Asked("\n".join(lines), answer, wrong, _rationale(example.extra))


def _letter(answer: str) -> str:
    return answer.strip().strip("().").upper()


def _rationale(extra: Mapping[str, Any]) -> str | None:
    found = (extra.get(key) for key in RATIONALES)
    return next((text.strip() for text in found if isinstance(text, str) and text.strip()), None)
