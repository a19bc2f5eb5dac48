"""Runs whose answers are planted, so that it is known what is wrong with them."""

from __future__ import annotations

from undrift.rundir import RunDir, write_json, write_lines
from undrift.scoring import metrics, scores_of, task_score

TRUTH = {
    "charts": ["A", "B", "C", "D"],
    "words": ["sandal", "lemon", "hazel", "saddle"],
    "digits": ["Seven", "One", "Two", "Six"],
}


def plant(write_run, name, said, *, method="moelora", truth=TRUTH, scorers=None, **protocol):
    """Write a run of these answers.

    Args:
        write_run: The fixture.
        name: The folder's name.
        said: The answers by (task, after), both from 1; a cell that is not named was not measured.
        method: The run's method.
        truth: The right answers of each task.
        scorers: The tasks' scorers; `exact` if not given.
        **protocol: What else the manifest says.

    Returns:
        The run's folder.
    """
    tasks = list(truth)
    scorers = scorers or ["exact"] * len(tasks)
    stages = max(after for _, after in said)
    matrix = [[None] * len(tasks) for _ in range(stages)]
    recorded = [{"name": n, "scorer": s} for n, s in zip(tasks, scorers, strict=True)]
    folder = write_run(
        name, method, [[0.0] * len(tasks)] * stages, tasks=tasks, zero_shot=[0.0] * len(tasks),
        protocol={"tasks": recorded}, **protocol,
    )  # fmt: skip
    run = RunDir(folder)
    for on in range(1, len(tasks) + 1):
        run.predictions(stages, on).unlink()
    for (on, after), answers in said.items():
        rows = []
        for i, (text, right) in enumerate(zip(answers, truth[tasks[on - 1]], strict=True)):
            scores = scores_of(scorers[on - 1], text, [right], {}, "coin")
            line = {"id": str(i), "question": "which?", "answers": [right], "prediction": text}
            rows.append(line | scores)
        write_lines(run.predictions(after, on), rows)
        matrix[after - 1][on - 1] = task_score(rows)
    saved = {"tasks": tasks, "zero_shot": None, "matrix": matrix, "metrics": metrics(matrix)}
    write_json(run.matrix_file, saved)
    return folder


def right(*, tasks=TRUTH):
    """Return answers that are right at every stage."""
    names = list(tasks)
    return {
        (on, after): list(tasks[names[on - 1]])
        for after in range(1, len(names) + 1)
        for on in range(1, after + 1)
    }


def diagnosed(folder, cells, **facts):
    """Write a causes.json."""
    file = folder / "diagnose" / "causes.json"
    write_json(file, {"applies": True, "why": "", "probe": None, "cells": cells, **facts})
    return file


def cause(task, name, after, learned, end, *, router, expert, form, parts="router and experts"):
    """Return a cell of causes.json; form is points, the lenient scores follow from it."""
    corner = {"strict": learned, "lenient": learned, "form": 100.0}
    last = {"strict": end, "lenient": end + form, "form": 100.0 - form}
    return {
        "task": task, "name": name, "after": after, "parts": parts,
        "corners": {"old_old": corner, "old_new": corner, "new_old": corner, "new_new": last},
        "lost": {"strict": learned - end, "lenient": learned - end - form},
        "router": router, "expert": expert, "form": form,
    }  # fmt: skip
