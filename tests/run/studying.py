"""A study without training: a plan on a tiny benchmark, and processes that only write files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from undrift.data.types import Benchmark, Example, Task
from undrift.run.processes import Process
from undrift.run.study_plan import Cell, Plan, load_study
from undrift.rundir import RunDir, atomic_write, write_json
from undrift.scoring import metrics

STUDY = """
benchmark: tiny
seeds: [0, 1]
rows: [zeroshot, moelora, {label: no router, method: same, set: {method.router: false}}]
results: results/small
"""

Last = Callable[[Cell], float | None]


def tiny_plan(folder: Path, text: str = STUDY) -> Plan:
    file = folder / "small.yaml"
    file.write_text(text)
    one = (Example("1", "which colour?", ("red",)),)
    tasks = tuple(Task(name, one, (), one, "exact", 6) for name in ("lower", "upper"))
    orders = {"reversed": ("upper", "lower")}
    return Plan(load_study(file), Benchmark("tiny", "1", tasks, "CC0", orders, "tiny-1"))


def write_run(folder: Path, cell: Cell, last: float, **manifest: Any) -> None:
    """Write what `undrift run` would leave: lost 10 points of the first task."""
    run = RunDir.start(folder, cell.config.text())
    matrix = [[last + 10, None], [last, last]] if cell.trained else [[last, last]]
    content = {
        "method": cell.config.method.name,
        "benchmark": "tiny",
        "order": cell.order if isinstance(cell.order, str) else list(cell.order),
        "seed": cell.seed,
        "profile": "full",
        "backbone": "pocket",
        "settings": cell.settings,
        "data": {"version": "1", "fingerprint": "tiny-1"},
        "weights": {"fingerprint": "w"},
        "commit": "abc1234",
        "versions": {"torch": "2", "transformers": "5", "peft": "0", "undrift": "0.1.0"},
        "hardware": {"device": "cpu", "cpu": "A CPU", "system": "Linux x86_64", "threads": 1},
        "seconds": {"train": 1.23456},
        "budget": [
            {
                "task": task,
                "trainable": 5,
                "active": 4 * n,
                "stored": 15 * n,
                "state_bytes": 200 * n,
                "steps": 10,
                "seconds": seconds,
                "cpu_seconds": seconds,
            }
            for n, (task, seconds) in enumerate((("lower", None), ("upper", 1.5)), start=1)
        ],
        **manifest,
    }
    write_json(run.manifest_file, content)
    write_json(
        run.matrix_file,
        {
            "tasks": ["lower", "upper"],
            "zero_shot": [None, 1 / 3],
            "matrix": matrix,
            "metrics": metrics(matrix, [None, None]),
        },
    )
    atomic_write(run.adapter(1, "lower") / "adapter_model.safetensors", "weights")


class Child:
    """A process that has written all before it is looked at."""

    def __init__(self, status: int, looks: int = 0) -> None:
        self.status, self.looks = status, looks  # how often it is looked at before it is over

    def poll(self) -> int | None:
        self.looks -= 1
        return self.status if self.looks < 0 else None


class Starter:
    """Stands in for `processes.begin`.

    Args:
        plan: Its cells can be started.
        last: What a cell reaches; None lets it fail.
    """

    def __init__(self, plan: Plan, last: Last = lambda cell: 50.0) -> None:
        self.plan = plan
        self.last = last
        self.started: list[str] = []
        self.busy: set[str] = set()
        self.manifest: dict[str, Any] = {}
        self.looks: Callable[[Cell], int] = lambda cell: 0

    def __call__(self, name: str, argv: Sequence[str], log: Path) -> Process | None:
        if name in self.busy:
            self.busy.remove(name)
            return None
        self.started.append(name)
        words = list(argv)
        folder = Path(words[words.index("--out") + 1])
        cell = self._cell(words)
        last = self.last(cell)
        if last is None:
            log.write_text("Traceback\nerror: the loss is nan\n")
        else:
            write_run(folder, cell, last, **self.manifest)
        child = Child(0 if last is not None else 1, self.looks(cell))
        return Process(name, child, log.open("ab"))  # type: ignore[arg-type]

    def _cell(self, words: list[str]) -> Cell:
        """Make the cell anew from its command, as `undrift run` would."""
        given = words[words.index("run") : words.index("--out")]
        rates = [float(w.split("=")[1]) for w in given if w.startswith("train.learning_rate=")]
        first = self.plan.study.first_rates
        rows = {
            label: rates if rates and first[label] != (None,) else first[label] for label in first
        }
        return next(cell for cell in self.plan.cells(rows) if list(cell.words) == given)
