"""What is kept of one prediction: its scores by every rule that its task has, whichever it is.

A task of the pocket, or of one's own, names a scorer of `answers.SCORERS`; a published one names
its entry in `published.TASKS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from undrift.errors import unknown
from undrift.scoring.answers import SCORERS, score
from undrift.scoring.caption import caption_scores
from undrift.scoring.published import TASKS, score_all


def check_scorer(name: str) -> None:
    """Refuse what is neither a scorer nor a published task.

    Args:
        name: Such as `letter` or `coin/ScienceQA`.

    Raises:
        UnknownName: The message offers the nearest.
    """
    if name not in SCORERS and name not in TASKS:
        raise unknown("scorer", name, [*SCORERS, *TASKS])


def scores_of(
    scorer: str, prediction: str, answers: Sequence[str], extra: Mapping[str, Any], profile: str
) -> dict[str, float | None]:
    """Score one prediction by every rule.

    Args:
        scorer: A name that `check_scorer` lets through.
        prediction: What the model said.
        answers: The accepted answers.
        extra: The example's extra, and its `question`.
        profile: One of `published.PROFILES`; the pocket's scorers have no profiles.

    Returns:
        `strict` and `caseless` (strict once letter case is folded on both sides); of a published
        task also `official`, `lenient` and `form`. None where there is no such score of a line.

    Raises:
        UnknownName: There is no such scorer or profile.
        DataError: If the example lacks what the strict rule needs.
    """
    if scorer in SCORERS:
        return score(scorer, prediction, answers)._asdict()
    found = score_all(scorer, prediction, answers, extra, profile)
    strict = [found.strict]
    for fold in (str.lower, str.upper):  # a rule may want letters in the one or in the other
        folded = [fold(answer) for answer in answers]
        strict.append(score_all(scorer, fold(prediction), folded, extra, profile).strict)
    known = [value for value in strict if value is not None]
    return {**found._asdict(), "caseless": max(known) if found.strict is not None else None}


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


def mean_score(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of one score over lines, in percent; None where a line lacks it."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return round(100 * fmean(known), 6) if len(known) == len(rows) else None
