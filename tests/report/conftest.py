"""Runs as they lie on disk, written through the same functions as real ones."""

from __future__ import annotations

import pytest

from undrift.rundir import RunDir, write_json, write_lines
from undrift.scoring import metrics

TASKS = ["digits", "icons", "words"]
ZERO = [10.0, 25.0, 0.0]
FORGETS = [[90.0, 20.0], [60.0, 80.0, 5.0], [40.0, 30.0, 100.0]]
HOLDS = [[88.0, 26.0], [86.0, 78.0, 3.0], [85.5, 76.0, 94.0]]


@pytest.fixture
def write_run(tmp_path):
    """Write a finished run and return its folder."""

    def write(
        name,
        method,
        matrix,
        *,
        tasks=TASKS,
        zero_shot=ZERO,
        scores=((1, 1),),
        lines=None,
        trained=True,
        **protocol,
    ):
        run = RunDir.start(tmp_path / name, f"benchmark: pocket\nmethod: {method}\nout: {name}\n")
        manifest = {
            "method": method,
            "benchmark": "pocket 1",
            "order": "default",
            "seed": 0,
            "profile": "demo",
            "backbone": "pocket",
            **protocol,
        }
        write_json(run.manifest_file, manifest)
        write_json(
            run.matrix_file,
            {
                "tasks": tasks,
                "zero_shot": zero_shot,
                "matrix": matrix,
                "metrics": metrics(matrix, zero_shot),
            },
        )
        for on in range(1, len(tasks) + 1):
            text = {"question": f"Which of the {tasks[on - 1]}?", "answers": ["A"]}
            rows = [
                {"id": str(i), **text, "prediction": "A" if s else "a", "strict": s, "caseless": c}
                for i, (s, c) in enumerate(scores)
            ]
            whole = {**text, "prediction": "", "strict": 0.0, "caseless": 0.0}
            write_lines(run.predictions(0, on), [{"id": "0", **whole}])
            if trained:
                given = [{**whole, **line} for line in lines[on - 1]] if lines else rows
                write_lines(run.predictions(len(matrix), on), given)
        return run.root

    return write
