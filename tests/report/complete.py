"""Whole runs, made by code: predictions of every cell, pictures, what a diagnosis has found."""

from __future__ import annotations

import io

from PIL import Image

from undrift.rundir import RunDir, write_json, write_lines
from undrift.scoring import metrics, scores_of, task_score

KINDS = {"charts": "letter", "words": "exact", "boxes": "box"}
ANSWERS = {
    "letter": ["A", "B", "C", "D"],
    "exact": ["sandal", "lemon", "hazel", "saddle"],
    "box": ["[0.1,0.2,0.5,0.6]", "[0.5,0.5,0.9,1.0]"],
}
HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror="alert(1)"> & "q"'


def complete(folder, method="moelora", *, tasks=KINDS, examples=6, forgets=True, pictures=True,
             diagnosed=True, seed=0):  # fmt: skip
    """Write a finished run and return its folder.

    What was just learned is right. Later, of a run that forgets, every third example from the
    first on is wrong (HOSTILE), and every third from the second on has its letters' case turned.
    """
    run = RunDir.start(folder, f"benchmark: pocket\nmethod: {method}\n")
    names = list(tasks)
    matrix = []
    for after in range(1, len(names) + 1):
        row = [None] * len(names)
        for on in range(1, after + 1):
            scorer = tasks[names[on - 1]]
            lines = [
                line(names[on - 1], scorer, i, later=after > on and forgets)
                for i in range(examples)
            ]
            write_lines(run.predictions(after, on), lines)
            row[on - 1] = task_score(lines)
        matrix.append(row)
    zero_shot = [10.0] * len(names)
    write_json(run.manifest_file, manifest(method, tasks, examples, seed))
    saved = {"tasks": names, "zero_shot": zero_shot, "matrix": matrix}
    write_json(run.matrix_file, {**saved, "metrics": metrics(matrix, zero_shot)})
    if pictures:
        draw_pictures(run, names, examples)
    if diagnosed:
        diagnose(folder, names, matrix)
    return folder


def line(task, scorer, index, *, later):
    truth = ANSWERS[scorer][index % len(ANSWERS[scorer])]
    said = truth
    if later and index % 3 == 0:
        said = HOSTILE
    elif later and index % 3 == 1:
        said = truth.swapcase()
    return {
        "id": f"{task}-{index:03d}",
        "question": f'Which <b>one</b> is "it" in {task}, number {index}?\nAnswer briefly.',
        "answers": [truth],
        "prediction": said,
        **scores_of(scorer, said, [truth], {}, "coin"),
    }


def manifest(method, tasks, examples, seed):
    recorded = [{"name": name, "test": examples, "scorer": kind} for name, kind in tasks.items()]
    budget = [
        {"task": name, "trainable": 1000, "active": 1000, "stored": 2000, "state_bytes": 4000,
         "steps": 10, "seconds": 1.5, "cpu_seconds": 1.5, "tokens": 3000, "peak_bytes": 2**28,
         "resting": {"layer.0": 1, "layer.1": 3}}
        for name in tasks
    ]  # fmt: skip
    return {
        "method": method, "benchmark": "pocket", "order": "default", "seed": seed,
        "profile": "demo", "backbone": "pocket", "settings": {"learning_rate": 0.001},
        "protocol": {"tasks": recorded}, "budget": budget,
    }  # fmt: skip


def draw_pictures(run, names, examples, side=48):
    """Write a picture of its own colour for every example."""
    for on, name in enumerate(names, 1):
        folder = run.pictures(on, name)
        folder.mkdir(parents=True)
        for index in range(examples):
            picture = Image.new("RGB", (side, side), (20 * on, 40 * (index % 6), 120))
            file = io.BytesIO()
            picture.save(file, format="WEBP")
            (folder / f"{index + 1:04d}.webp").write_bytes(file.getvalue())


def diagnose(folder, names, matrix, experts=2, linears=("model.layers.0.up", "model.layers.1.up")):
    """Write what a diagnosis could have found."""
    whole = {"applies": True, "why": "", "probe": None}
    last = len(names)
    routes, moved = [], []
    for task, name in enumerate(names, 1):
        for after in range(task, last + 1):
            away = after - task
            cell = {"task": task, "name": name, "after": after, "before": task}
            drift = {"overlap": 100.0 - 10 * away, "js": 0.01 * away, "tv": 0.1 * away,
                     "top1": 100.0 - 15 * away}  # fmt: skip
            shape = {"entropy": 90.0, "spread": 95.0, "balance": 1.2}
            layers = {key: [value] * len(linears) for key, value in {**drift, **shape}.items()}
            use = [[1 / experts] * experts] * len(linears)
            routes.append({**cell, **drift, **shape, "alone": drift, "layers": layers, "use": use})
            moved.append({**cell, "moved": 0.2 * away, "per_expert": [0.2 * away] * experts,
                          "per_linear": [0.2 * away] * len(linears)})  # fmt: skip
    causes = []
    for task, name in enumerate(names[:-1], 1):
        learned, end = matrix[task - 1][task - 1], matrix[-1][task - 1]
        lost = learned - end
        corners = {
            key: {"strict": score, "lenient": score + form, "form": 100.0}
            for key, score, form in (
                ("old_old", learned, 0.0), ("old_new", end, lost / 4),
                ("new_old", learned, 0.0), ("new_new", end, lost / 4),
            )
        }  # fmt: skip
        causes.append(
            {"task": task, "name": name, "after": last, "before": task,
             "parts": "router and experts", "corners": corners,
             "lost": {"strict": lost, "lenient": lost * 3 / 4},
             "router": lost / 4, "expert": lost / 2, "form": lost / 4}
        )  # fmt: skip
    named = {"linears": list(linears), "experts": experts}
    write_json(folder / "diagnose" / "routes.json", {**whole, **named, "cells": routes})
    write_json(folder / "diagnose" / "experts.json", {**whole, **named, "cells": moved})
    write_json(folder / "diagnose" / "causes.json", {**whole, "cells": causes})
    again = [
        {"after": after, "strict": 90.0, "lenient": 90.0, "form": 100.0, "entropy": 70.0,
         "as_is": matrix[after - 1][0]}
        for after in range(1, last + 1)
    ]  # fmt: skip
    first = {"task": 1, "name": names[0]}
    write_json(folder / "diagnose" / "reroute.json", {**whole, **first, "cells": again})
