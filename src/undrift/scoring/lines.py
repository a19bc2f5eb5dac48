"""What is kept of one prediction: its scores by every rule that its task has, whichever it is.

A task of the pocket, or of one's own, names a scorer of `answers.SCORERS` or of another package
(entry point group `undrift.scorers`); a published one names its entry in `published.TASKS`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

from undrift import registry
from undrift.errors import ConfigError, unknown
from undrift.scoring.answers import SCORERS, find_scorer, score, strict_score
from undrift.scoring.boxes import other_unit
from undrift.scoring.caption import caption_scores, tokens
from undrift.scoring.drift import kind_of_answer
from undrift.scoring.official import ten_answers
from undrift.scoring.published import BY_TEN, TASKS, score_all, strict_rule
from undrift.scoring.vqa_text import agreement


def check_scorer(name: str) -> None:
    """Refuse what is neither a scorer nor a published task, before anything is learned.

    Args:
        name: Such as `letter` or `coin/ScienceQA`.

    Raises:
        UnknownName: The message offers the nearest.
        ConfigError: If another package registers a name of ours, or a scorer that cannot be loaded.
    """
    if name not in SCORERS and name not in TASKS:
        theirs = registry.SCORERS.plugins()
        if name not in theirs:
            raise unknown("scorer", name, [*SCORERS, *TASKS, *theirs])
        find_scorer(name)
    elif name in _plugged(tuple(sys.path)):
        raise ConfigError(
            f"scorer {name!r} is part of undrift, and another package registers the same name; "
            f"rename its entry point in the group {registry.SCORERS.package!r}"
        )


@lru_cache  # a look takes a while, and tasks are made often
def _plugged(_path: tuple[str, ...]) -> set[str]:
    return registry.SCORERS.plugins()


def scores_of(
    scorer: str, prediction: str, answers: Sequence[str], extra: Mapping[str, Any], profile: str
) -> dict[str, float | None]:
    """Score one prediction by every rule.

    Args:
        scorer: A name that `check_scorer` lets through.
        prediction: What the model said.
        answers: The accepted answers.
        extra: The example's extra, and its `question`.
        profile: One of `published.PROFILES`; a scorer has none.

    Returns:
        `strict` and `caseless` (strict once letter case is folded on both sides); of a published
        task also `official`, `lenient` and `form`. None where there is no such score of a line.

    Raises:
        UnknownName: There is no such scorer or profile.
        DataError: If the example lacks what the strict rule needs.
    """
    if scorer not in TASKS:
        return score(scorer, prediction, answers)._asdict()
    found = score_all(scorer, prediction, answers, extra, profile)
    strict = [found.strict]
    for fold in (str.lower, str.upper):  # a rule may want letters in the one or in the other
        folded = [fold(answer) for answer in answers]
        strict.append(score_all(scorer, fold(prediction), folded, extra, profile).strict)
    known = [value for value in strict if value is not None]
    return {**found._asdict(), "caseless": max(known) if found.strict is not None else None}


def copy_fault(
    scorer: str, answers: Sequence[str], extra: Mapping[str, Any], profile: str
) -> str | None:
    """Say why a perfect copy of an answer would not be right.

    Every accepted answer has to be right. Of a published task, whose public rules look at the first
    answer only, the first has to be. Where ten people have answered, the best of their answers has
    to get at least what the commonest one gets letter for letter: 1 if four or more agree. A
    caption, which is scored with its whole file, has to hold a word.

    Args:
        scorer: A name that `check_scorer` lets through.
        answers: The accepted answers.
        extra: The example's extra, and its `question`.
        profile: One of `published.PROFILES`; a scorer has none.

    Returns:
        Half a sentence about the first such answer; None if there is none.

    Raises:
        DataError: If the rule cannot use an answer, or lacks something of the example.
    """
    if scorer not in TASKS:
        found = ((answer, strict_score(scorer, answer, answers), 1.0) for answer in answers)
    elif TASKS[scorer].kind == "caption":
        found = ((answer, float(bool(tokens(answer))), 1.0) for answer in answers)
    else:
        rule = strict_rule(scorer, profile)
        assert rule is not None  # only captions have none
        ten = ten_answers(answers, extra) if rule in BY_TEN else None
        due = max(agreement([each == said for each in ten]) for said in ten) if ten else 1.0
        best = max(ten or answers[:1], key=lambda said: rule(said, answers, extra))
        found = [(best, rule(best, answers, extra), due)]
    wrong = ((answer, value) for answer, value, due in found if value < due - 1e-9)
    return next((f"a copy of {text[:100]!r} scores {value:g}" for text, value in wrong), None)


def task_score(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return what a task's lines are worth by the strict rule, the cell of the matrix, in percent.

    Args:
        rows: All lines of the task, with `id`, `prediction`, `answers` and their scores.

    Returns:
        The mean strict score; for captions, whose lines have none, CIDEr of the whole file times
        100, which may be above 100. (UCIT's mean of seven metrics needs METEOR.)
    """
    strict = mean_score(rows, "strict")
    if strict is not None:
        return strict
    said = {row["id"]: row["prediction"] for row in rows}
    return round(caption_scores(said, {row["id"]: row["answers"] for row in rows})["cider"], 6)


def in_other_units(scorer: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Say how many predicted boxes are in other units than their answers.

    Args:
        scorer: The task's scorer.
        rows: Lines with `prediction` and `answers`.

    Returns:
        A sentence; nothing if there is none, or if the task is not about boxes.
    """
    if kind_of_answer(scorer, ()) != "box":
        return ""
    found = [other_unit(row["prediction"], row["answers"]) for row in rows]
    if not any(found):
        return ""
    return (
        f"{sum(found)} of {len(found)} predictions are boxes in other units than their answers, "
        "one side within 0..1 and the other beyond, and wrong whatever they show; bring both to one"
    )


def mean_score(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of one score over lines, in percent; None where a line lacks it."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return round(100 * fmean(known), 6) if len(known) == len(rows) else None
