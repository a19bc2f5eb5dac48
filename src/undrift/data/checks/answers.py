"""Answers: would even a perfect copy of one be right, and are the boxes of a task in one unit?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from undrift.data.checks.finding import Finding, Item, counted
from undrift.data.checks.split import Asked, Split
from undrift.errors import DataError, UndriftError
from undrift.scoring import TASKS, check_scorer, copy_fault, kind_of_answer
from undrift.scoring.boxes import find_box

PROFILE = "coin"  # the rules of a published task that a run goes by unless it is told otherwise


def scored_answers(splits: Sequence[Split]) -> Iterator[Finding]:
    """Score every answer of a task with itself as the prediction.

    Args:
        splits: The splits of one task.

    Yields:
        Errors for a scorer that is not there, for answers that it cannot use, for those of which
        even a perfect copy is wrong (of a published rule, which is as it is, a note), and for boxes
        in several units; a warning about captions that cannot be measured.
    """
    scorer, task = splits[0].scorer, splits[0].task
    try:
        check_scorer(scorer)
    except UndriftError as error:
        yield Finding("scorer", "error", task, "", str(error), "no answer was scored")
        return
    for split in splits:
        if scorer not in TASKS or split.name != "train":  # published training data lacks what
            yield from _copies(split)  # some rules want, and is never scored
    kind = kind_of_answer(scorer, ())
    if kind == "box":
        yield from _units(splits)
    for split in splits:
        if kind == "caption" and split.name != "train" and len(split.asked) == 1:
            said = "a single caption is asked for: its CIDEr is 0 whatever is said"
            yield Finding("single caption", "warning", task, split.name, said, "ask for more")


def _copies(split: Split) -> Iterator[Finding]:
    known = dict[tuple[str, ...], tuple[str, bool]]()  # many examples share their answers
    useless, wrong = list[Item](), list[Item]()
    for asked in split.asked:
        answers = asked.example.answers
        if split.scorer in TASKS:  # whose rules look at more than the answers
            reason, unusable = _fault(split.scorer, asked)
        else:
            if answers not in known:
                known[answers] = _fault(split.scorer, asked)
            reason, unusable = known[answers]
        if reason:
            (useless if unusable else wrong).append(split.item(asked, reason))
    if useless:
        said = f"{counted(len(useless), 'answer')} that the scorer {split.scorer} cannot use"
        advice = "mend them, or name another scorer: a run would stop when it scores them"
        yield Finding("answer", "error", split.task, split.name, said, advice, tuple(useless))
    if wrong:
        said = f"{counted(len(wrong), 'answer')} of which even a perfect copy is not right"
        if split.scorer in TASKS:
            advice = f"the public rule of {split.scorer} is so, and published numbers have it too"
            severity = "note"
        else:
            advice = f"write them as the scorer {split.scorer} reads them, or name another scorer"
            severity = "error"
        yield Finding("perfect copy", severity, split.task, split.name, said, advice, tuple(wrong))


def _fault(scorer: str, asked: Asked) -> tuple[str, bool]:
    """Say what is wrong with a copy of an answer, and whether the answer cannot be used at all."""
    example = asked.example
    extra = {"question": example.question, **example.extra}
    try:
        return copy_fault(scorer, example.answers, extra, PROFILE) or "", False
    except DataError as error:
        return str(error), True


def _units(splits: Sequence[Split]) -> Iterator[Finding]:
    sides: dict[bool, list[Item]] = {True: [], False: []}
    for split in splits:
        for asked in split.asked:
            for made in filter(None, map(find_box, asked.example.answers)):
                words = f"{split.name}: {', '.join(f'{corner:g}' for corner in made)}"
                sides[made.shares].append(split.item(asked, words))
    few, many = sorted(sides.values(), key=len)
    if few:
        said = f"{counted(len(few), 'answer')} with a box in other units than {len(many):,} others"
        said = f"{said}: one side lies within 0..1, the other beyond"
        advice = "write all of a task's boxes in one unit: scores compare numbers as they stand"
        yield Finding("box units", "error", splits[0].task, "", said, advice, tuple(few))
