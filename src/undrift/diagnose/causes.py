"""Which part of a loss is the router's, the experts', or the form's alone: by putting parts back.

A task is asked about in four models: router and experts each as they were when it was just learned
("old") or as they are in a later snapshot ("new"). From old and old to new and new the score falls
by what was lost. How much of that each part costs depends on which is changed first, so both
orders are taken and their mean is each part's share: the Shapley value of a game of two, which is
the only split that is even-handed and adds up.

    router = 1/2 [(L_oo - L_no) + (L_on - L_nn)]      L: lenient score, router's state first
    expert = 1/2 [(L_oo - L_on) + (L_no - L_nn)]
    form   = strict loss - lenient loss               so that router + expert + form = strict loss
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from undrift.diagnose.adapter_series import AdapterSeries, Scope, does_not_apply
from undrift.diagnose.routes import ENTANGLED
from undrift.run.answer import measure_cell
from undrift.rundir import read_answers
from undrift.scoring import rules_of, task_score

Scores = Mapping[str, Any]


def causes(series: AdapterSeries, scope: Scope) -> dict[str, Any]:
    """Split what every task has lost into the router's, the experts' and the form's part.

    Args:
        series: The run's adapters.
        scope: The tasks, with the adapter each is compared with; only the last one matters besides.

    Returns:
        What causes.json holds: a cell a task with its four corners and the three parts.
    """
    parts = series.method.parts
    if parts == "entangled":
        return does_not_apply(ENTANGLED)
    cells = []
    for task in scope.tasks:
        corners = _corners(series, task, scope.before(task), scope.last)
        place = series.place(task, scope.last, scope.before(task))
        cells.append(place | {"parts": parts, "corners": corners} | split(corners))
    return {"applies": True, "why": "", "probe": series.limit, "cells": cells}


def split(corners: Mapping[str, Scores]) -> dict[str, Any]:
    """Split a loss.

    Args:
        corners: Strict and lenient scores in percent of "old_old", "old_new", "new_old" and
            "new_new", the router's state first. Where there is no lenient score (captions) the
            strict one stands for it, and the form has no part.

    Returns:
        `lost` (strict and lenient), `router`, `expert` and `form`, in points.
    """

    def lenient(corner: str) -> float:
        found = corners[corner]["lenient"]
        return corners[corner]["strict"] if found is None else found

    strict = corners["old_old"]["strict"] - corners["new_new"]["strict"]
    oo, on, no, nn = map(lenient, ("old_old", "old_new", "new_old", "new_new"))
    parts = {
        "router": ((oo - no) + (on - nn)) / 2,
        "expert": ((oo - on) + (no - nn)) / 2,
        "form": strict - (oo - nn),
    }
    lost = {"strict": strict, "lenient": oo - nn}
    return {"lost": _rounded(lost), **_rounded(parts)}


def _rounded(points: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) + 0.0 for name, value in points.items()}  # and never -0.0


def _corners(series: AdapterSeries, task: int, old: int, new: int) -> dict[str, Scores]:
    """Ask in all four models; what has only one part is the same as with its own other part."""
    same = {"old_old": ask(series, task, old, old), "new_new": ask(series, task, new, new)}
    if series.method.parts == "experts":
        return {**same, "old_new": same["new_new"], "new_old": same["old_old"]}
    if series.method.parts == "router":
        return {**same, "old_new": same["old_old"], "new_old": same["new_new"]}
    mixed = {"old_new": ask(series, task, old, new), "new_old": ask(series, task, new, old)}
    return same | mixed


def ask(series: AdapterSeries, task: int, router: int, experts: int) -> Scores:
    """Ask about a task, with the router of one snapshot and the experts of another.

    Answers that the run has kept are taken as they are; others are kept for the next time.

    Returns its scores, see `scores`.
    """
    asked = series.tasks[task - 1]
    kept = series.files.predictions(experts, task)
    if router != experts or not kept.is_file():
        kept = series.answers / f"router-{router:02d}-experts-{experts:02d}"
        kept = kept / f"on-{task:02d}.jsonl"
        if not kept.is_file():
            series.load_mixed(router, experts)
        with series.method.predicting(series.model, task=task):
            title = f"{asked.name}: router {router}, experts {experts}"
            measure_cell(series.session, asked, kept, title)
    wanted = {example.id for example in asked.test}
    return scores(asked.scorer, [line for line in read_answers(kept) if line["id"] in wanted])


def scores(scorer: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Score a task's kept answers: strict, lenient (None for captions) and form, in percent."""
    rules = [rules_of(scorer, line) for line in lines]
    lenient = [each.lenient for each in rules if each.lenient is not None]
    return {
        "strict": task_score(lines),
        "lenient": round(100 * fmean(lenient), 6) if lenient else None,
        "form": round(100 * fmean(each.form for each in rules), 6),
    }
