"""Scores of one prediction, of a kept line and of a whole task, whichever scorer the task names.

A task of the pocket, or of one's own, names a scorer of `kinds.SCORERS` or of another package
(entry point group `undrift.scorers`); a published one names its entry in `published_tasks.TASKS`.
`scores_of` is what is kept with a prediction; `rules_of` judges a kept one by content and by form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any, NamedTuple

from undrift import registry
from undrift.errors import ConfigError, unknown
from undrift.scoring.answer_form import NUMBER_WRITTEN, ErrorKind
from undrift.scoring.boxes import other_unit
from undrift.scoring.captions import caption_scores, tokens
from undrift.scoring.kinds import (
    KINDS,
    SCORERS,
    Score,
    error_kind,
    find_scorer,
    score,
    strict_score,
)
from undrift.scoring.published_tasks import BY_TEN, TASKS, score_all, strict_rule
from undrift.scoring.rules_official import ten_answers
from undrift.scoring.rules_public import science
from undrift.scoring.vqa_normalisation import agreement


class Rules(NamedTuple):
    """One prediction by every rule, scores in [0, 1].

    `strict` and `lenient` are None for a caption; `error` is what is wrong with the form, or None.
    """

    strict: float | None
    lenient: float | None
    form: float
    error: ErrorKind | None


def check_scorer(name: str) -> None:
    """Refuse what is neither a scorer nor a published task, before anything is learned.

    A ConfigError too if another package registers a name of ours, or what cannot be loaded.
    """
    if name not in SCORERS and name not in TASKS:
        theirs = registry.SCORERS.plugins()
        if name not in theirs:
            raise unknown("scorer", name, [*SCORERS, *TASKS, *theirs])
        find_scorer(name)
    elif name in registry.SCORERS.plugins():
        raise ConfigError(
            f"scorer {name!r} is part of undrift, and another package registers the same name; "
            f"rename its entry point in the group {registry.SCORERS.package!r}"
        )


def scores_of(
    scorer: str, prediction: str, answers: Sequence[str], extra: Mapping[str, Any], profile: str
) -> dict[str, float | None]:
    """Score one prediction by every rule.

    Args:
        scorer: A name that `check_scorer` lets through.
        prediction: What the model said.
        answers: The accepted answers.
        extra: The example's extra, and its `question`.
        profile: One of `PROFILES`; a scorer has none.

    Returns:
        `strict` and `caseless` (strict once letter case is folded on both sides); of a published
        task also `official`, `lenient` and `form`. None where there is no such score of a line.

    Raises:
        UnknownName: There is no such scorer or profile.
        DataError: If the example lacks what the strict rule needs.
    """
    if scorer not in TASKS:
        return score(scorer, prediction, answers)._asdict()
    scores = score_all(scorer, prediction, answers, extra, profile)
    strict = [scores.strict]
    for fold in (str.lower, str.upper):  # a rule may want letters in the one or in the other
        folded = [fold(answer) for answer in answers]
        strict.append(score_all(scorer, fold(prediction), folded, extra, profile).strict)
    known = [value for value in strict if value is not None]
    return {**scores._asdict(), "caseless": max(known) if scores.strict is not None else None}


def needs_extra(scorer: str, profile: str) -> bool:
    """Tell whether some rule of a published task looks at more than question and answers."""
    if scorer not in TASKS:
        return False
    entry = TASKS[scorer]
    rules = (strict_rule(scorer, profile), entry.official)
    return entry.kind in ("choice", "consensus", "letter") or any(
        rule in BY_TEN or rule is science for rule in rules
    )


def kind_of_answer(scorer: str, answers: Sequence[str]) -> str | None:
    """Say which kind of answer, a key of `KINDS`, a scorer or a published task is for.

    `exact` serves several kinds, which the accepted answers tell apart: letters to choose from,
    numbers, names. None for a scorer of one's own, which need not be there any more.
    """
    if scorer in TASKS:
        return TASKS[scorer].kind
    if scorer == "exact" and all(len(answer) == 1 and answer.isalpha() for answer in answers):
        return "choice"
    if scorer == "exact" and all(map(NUMBER_WRITTEN.fullmatch, answers)):
        return "number"
    rule = SCORERS.get(scorer)
    kinds = (name for name, kind in KINDS.items() if kind.form and kind.strict is rule)
    return next(kinds, None) if rule else None


def rules_of(scorer: str, line: Mapping[str, Any]) -> Rules:
    """Judge a kept prediction by content and by form.

    The line of `eval/` has `prediction`, `answers`, `strict` and `caseless`; of a published task
    `lenient` and `form` too, which are taken as they are. Elsewhere they follow from the text, and
    what is right strictly is right leniently. What is wrong by letter case alone is an error of
    case.

    A scorer of one's own says only what is right. Its lenient score is what it says once letter
    case is folded; the form is right where the answer is, and else unless it is empty, a refusal,
    or wrong by letter case alone.
    """
    prediction, answers = line["prediction"], tuple(line["answers"])
    strict: float | None = line["strict"]
    kind = kind_of_answer(scorer, answers)
    if kind is None and strict == 1.0:
        return Rules(1.0, 1.0, 1.0, None)
    error, content = _error_and_content(kind, scorer in TASKS, prediction, answers)
    well_formed = float(error is None)
    if error is None and strict is not None and strict < 1.0 <= line["caseless"]:
        error = "case"
    if kind is None:
        return Rules(strict, line["caseless"], float(error is None), error)
    if "lenient" in line:
        return Rules(strict, line["lenient"], line["form"], error)
    lenient = None if content is None or strict is None else max(strict, content)
    return Rules(strict, lenient, well_formed, error)


@lru_cache(maxsize=2**15)  # a run says the same things again and again
def _error_and_content(
    kind: str | None, published: bool, prediction: str, answers: tuple[str, ...]
) -> tuple[ErrorKind | None, float | None]:
    """Return the error of form and, as far as the text alone tells, the lenient score."""
    rule = None if kind is None or published else KINDS[kind].lenient
    return error_kind(kind, prediction, answers), rule and rule(prediction, answers, {})


def form_share(strict: float, lenient: float) -> float | None:
    """Compute the format-forgetting share: which percentage of a loss is form alone.

    (loss of strict - loss of lenient) / loss of strict, in points between just learned and a later
    stage: 100 if only the form was lost, 0 if it played no part, below 0 or above 100 if content
    and form moved against each other. None where nothing was lost.
    """
    return 100 * (strict - lenient) / strict if strict > 0 else None


def copy_fault(
    scorer: str, answers: Sequence[str], extra: Mapping[str, Any], profile: str
) -> str | None:
    """Say why a perfect copy of an answer would not be right.

    Every accepted answer has to be right. Of a published task, whose public rules look at the first
    answer only, the first has to be. Where ten people have answered, the best of their answers has
    to get at least what the commonest one gets letter for letter: 1 if four or more agree. A
    caption, which is scored with its whole file, has to hold a word.

    Returns half a sentence about the first such answer; None if there is none. A DataError says
    that the rule cannot use an answer, or lacks something of the example.
    """
    if scorer not in TASKS:
        copies = ((answer, strict_score(scorer, answer, answers), 1.0) for answer in answers)
    elif TASKS[scorer].kind == "caption":
        copies = ((answer, float(bool(tokens(answer))), 1.0) for answer in answers)
    else:
        rule = strict_rule(scorer, profile)
        assert rule is not None  # only captions have none
        ten = ten_answers(answers, extra) if rule in BY_TEN else None
        due = max(agreement([each == answer for each in ten]) for answer in ten) if ten else 1.0
        best = max(ten or answers[:1], key=lambda answer: rule(answer, answers, extra))
        copies = [(best, rule(best, answers, extra), due)]
    wrong = ((answer, value) for answer, value, due in copies if value < due - 1e-9)
    return next((f"a copy of {text[:100]!r} scores {value:g}" for text, value in wrong), None)


def task_score(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return what a task's lines are worth by the strict rule, the cell of the matrix, in percent.

    It is the mean strict score; for captions, whose lines have none, CIDEr of the whole file times
    100, which may be above 100. (UCIT's mean of seven metrics needs METEOR.)
    """
    strict = mean_score(rows, "strict")
    if strict is not None:
        return strict
    said = {row["id"]: row["prediction"] for row in rows}
    return round(caption_scores(said, {row["id"]: row["answers"] for row in rows})["cider"], 6)


def in_other_units(scorer: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Say how many predicted boxes are in other units than their answers; nothing if none is."""
    if kind_of_answer(scorer, ()) != "box":
        return ""
    other = [other_unit(row["prediction"], row["answers"]) for row in rows]
    if not any(other):
        return ""
    return (
        f"{sum(other)} of {len(other)} predictions are boxes in other units than their answers, "
        "one side within 0..1 and the other beyond, and wrong whatever they show; bring both to one"
    )


def mean_score(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of one score over lines, in percent; None where a line lacks it."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return round(100 * fmean(known), 6) if len(known) == len(rows) else None


def share_case_only(scores: Iterable[Score]) -> float | None:
    """Compute which percentage of all errors are of letter case only; None where there is no error.

    A model that has learned a lower-case task may answer `a` where an earlier task wants `A`: the
    knowledge is there, the answer is scored wrong.
    """
    errors = [score for score in scores if score.strict < 1.0]
    return 100.0 * sum(score.caseless >= 1.0 for score in errors) / len(errors) if errors else None
