"""Two tasks of the real pocket on the backbone that ships, end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel

import undrift.tuner  # noqa: F401  (PEFT learns of MoE-LoRA)
from tests.run import asking
from undrift.data.benchmarks import pocket
from undrift.data.types import Benchmark, Example, Task
from undrift.run.backbone import Backbone
from undrift.run.config import resolve
from undrift.run.task_loop import Run
from undrift.rundir import read_lines

SIZES = {"train": 96, "validation": 8, "test": 40}
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def two_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    tasks = []
    for name in ("digits", "biopsy"):
        real = pocket.TASKS[name]
        monkeypatch.setitem(pocket.TASKS, name, replace(real, sizes=SIZES))
        splits = {}
        for split in SIZES:
            pocket.draw_split(tmp_path / "data", name, split)
            rows = json.loads((tmp_path / "data" / name / f"{split}.json").read_text())
            pictures = tmp_path / "data" / name / split
            splits[split] = tuple(
                Example(row["id"], row["question"], (row["answer"],), (pictures / row["image"],))
                for row in rows
            )
        tasks.append(Task(name, **splits, scorer=real.scorer, max_new_tokens=real.max_new_tokens))
    return Benchmark("pocket", "test", tuple(tasks), pocket.LICENCE, {}, "test")


@pytest.mark.slow  # `make dist` runs the pocket as well
def test_two_tasks_end_to_end(two_tasks, tmp_path):
    train = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3, "log_steps": 4}
    config = resolve(
        {"benchmark": "pocket", "method": "same", "out": tmp_path / "run", "train": train}
    )
    result = Run(config, benchmark=two_tasks).go()
    (digits, _), (_, biopsy) = result["matrix"]
    assert digits > 50 and biopsy > 60  # chance is 10 and about 60: both were learned, or kept
    assert digits >= result["zero_shot"][0] or biopsy >= result["zero_shot"][1]
    for task in ("01-digits", "02-biopsy"):
        log = read_lines(tmp_path / "run" / "tasks" / task / "train.jsonl")
        assert log[-1]["loss"] < log[0]["loss"]

    # PEFT by itself loads what was saved, and it says the same
    backbone = Backbone.load("pocket")
    adapter = tmp_path / "run" / "tasks" / "02-biopsy" / "adapter"
    model = PeftModel.from_pretrained(backbone.model, str(adapter)).eval()
    task = two_tasks.tasks[0]
    backbone.prepare([picture for example in task.test for picture in example.images])
    said = asking.said(backbone, model, task.test, 150, task.max_new_tokens)
    kept = read_lines(tmp_path / "run" / "eval" / "after-02" / "on-01.jsonl")
    assert {row["id"]: row["prediction"] for row in kept} == said
