"""The tasks of the published benchmarks: which kind of answer, and which rules, each has.

A *kind* of answer (`kinds.py`) decides what is lenient and which form is right; a *profile* decides
what is strict: `coin`, `hide` and `prism` are the public codes' rules, `official` the data set's
own metric (`official-2015` as VQAv2's and VizWiz's first was), `lenient` content only. Where only
one public code scores a task (UCIT: HiDe; TriGap: Prism; MLLM-DCL: MLLM-CL), its rule stands under
all three, so that a profile serves any benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from undrift.errors import DataError, unknown
from undrift.scoring import rules_official as official
from undrift.scoring import rules_public as public
from undrift.scoring.kinds import KINDS, Rule, form
from undrift.scoring.rules_lenient import consensus

PROFILES = ("coin", "hide", "prism", "official", "official-2015", "lenient")

BY_TEN = (official.vqa_soft, official.vqa_soft_2015, official.textvqa_m4c, consensus)
"""The rules that measure how far ten people agree."""


class TaskRules(NamedTuple):
    """How one published task is scored.

    `None` stands for a rule that does not exist: a caption is scored with its whole file
    (`captions.py`), and some data sets have no metric that we could find.
    """

    kind: str
    coin: Rule | None
    hide: Rule | None
    prism: Rule | None
    official: Rule | None


def _one_rule(kind: str, rule: Rule | None, metric: Rule | None) -> TaskRules:
    return TaskRules(kind, rule, rule, rule, metric)


_CAPTIONS = _one_rule("caption", None, None)
# The rules of coin, hide and prism where they are not one and the same.
_SCIENCE = (public.scienceqa_first_word, public.scienceqa_stated, public.scienceqa_stated)
_BOX = (public.box_outer_digits_lost, public.box_outer_digits_lost, public.box_first_numbers)
_SAME = (public.same_upper, public.same_upper, public.same_upper_stripped)
_OCR = (public.ocrvqa_lower, public.ocrvqa_lower, public.ocrvqa_stripped)

TASKS: dict[str, TaskRules] = {
    "coin/ScienceQA": TaskRules("letter", *_SCIENCE, official.letter_accuracy),
    "coin/TextVQA": _one_rule("consensus", official.textvqa_m4c, official.textvqa_m4c),
    "coin/ImageNet": _one_rule("class name", public.either_contains, official.accuracy),
    "coin/GQA": _one_rule("short text", public.gqa, public.gqa),
    "coin/VizWiz": TaskRules("short text", *_SAME, official.vqa_soft),
    "coin/Grounding": TaskRules("box", *_BOX, official.box_half),
    "coin/VQAv2": TaskRules("short text", *_SAME, official.vqa_soft),
    "coin/OCRVQA": TaskRules("short text", *_OCR, official.accuracy),
    "ucit/ImageNet-R": _one_rule("class name", public.same_upper, official.accuracy),
    "ucit/ArxivQA": _one_rule("letter", public.same_upper, official.letter_accuracy),
    "ucit/VizWiz": _CAPTIONS,
    "ucit/IconQA": _one_rule("choice", public.same_upper, official.accuracy),
    "ucit/CLEVR": _one_rule("number", public.same_upper, official.accuracy),
    "ucit/Flickr30k": _CAPTIONS,
    "trigap/PMCVQA": _one_rule("letter", public.same_upper, official.letter_accuracy),
    "trigap/DocVQA": _one_rule("document", public.anls_without_threshold, official.anls),
    "trigap/ChartQA": _one_rule("chart", public.same_upper, official.relaxed_accuracy),
    "trigap/IconQA": _one_rule("choice", public.same_upper, official.accuracy),
    "trigap/InfographicVQA": _one_rule("document", public.anls_without_threshold, official.anls),
    "trigap/ArxivQA": _one_rule("letter", public.same_upper, official.letter_accuracy),
    "trigap/Roadside": _one_rule("short text", public.same_upper, None),
    "trigap/ChemVQA": _one_rule("short text", public.same_upper, None),
    "trigap/FloodNetVQA": _one_rule("short text", public.same_upper, official.accuracy),
    "trigap/CLEVR": _one_rule("number", public.same_upper, official.accuracy),
    "mllm_dcl/RS": _one_rule("short text", public.contains_word, None),
    "mllm_dcl/Med": _one_rule("short text", public.contains, None),
    "mllm_dcl/AD": _one_rule("short text", public.contains_word, None),
    "mllm_dcl/Sci": _one_rule("choice", public.science, None),
    "mllm_dcl/Fin": _one_rule("choice", public.same_without_spaces, None),
}


class Scores(NamedTuple):
    """One prediction's scores, each in [0, 1].

    `strict` follows the profile; `official` is None where the data set's metric is not known, or
    needs the answers of ten people and the example has not got them; strict, official and lenient
    are None for a caption.
    """

    strict: float | None
    official: float | None
    lenient: float | None
    form: float


def find_task(task: str) -> TaskRules:
    """Return the entry of TASKS; of an unknown name the message offers the nearest."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    return TASKS[task]


def score_all(
    task: str, prediction: str, answers: Sequence[str], extra: Mapping[str, Any], profile: str
) -> Scores:
    """Score one prediction by every rule that applies.

    Args:
        task: A key of TASKS.
        prediction: What the model said; an empty text is an answer (and right under the public
            rule for ImageNet), not an error.
        answers: The accepted answers, at least one; most public rules look at the first only.
        extra: The example's extra: `choices`, `human_answers`, `subset` and `question` are used.
        profile: One of PROFILES; it decides what is strict.

    Returns:
        The scores; what cannot be computed for one line is None.

    Raises:
        UnknownName: If there is no such task or profile.
        DataError: If there is no answer, if the strict rule needs something that the example has
            not got, or if the profile is `official` and the data set's metric is not known.
    """
    entry, strict = find_task(task), strict_rule(task, profile)
    if not answers:
        raise DataError(f"nothing to compare the prediction {prediction!r} with: no answers")
    content = KINDS[entry.kind].lenient
    metric = None if _lacks_ten(entry, answers, extra) else entry.official
    return Scores(
        strict=strict and strict(prediction, answers, extra),
        official=metric and metric(prediction, answers, extra),
        lenient=content and content(prediction, answers, extra),
        form=form(entry.kind, prediction, answers),
    )


def strict_rule(task: str, profile: str) -> Rule | None:
    """Return the rule by which a profile calls an answer right; None for a caption.

    A DataError says that the profile is official and the data set's metric is not known.
    """
    entry = find_task(task)
    if profile not in PROFILES:
        raise unknown("scoring profile", profile, PROFILES)
    if profile == "lenient":
        return KINDS[entry.kind].lenient
    if not profile.startswith("official"):
        return entry._asdict()[profile]
    if entry.official is None and entry.kind != "caption":
        raise DataError(f"the official metric of {task} is not known; choose another profile")
    first = profile == "official-2015" and entry.official is official.vqa_soft
    return official.vqa_soft_2015 if first else entry.official


def _lacks_ten(entry: TaskRules, answers: Sequence[str], extra: Mapping[str, Any]) -> bool:
    return entry.official in BY_TEN and official.ten_answers(answers, extra) is None
