"""Two tasks of a run with the methods that keep one adapter, and what lies on disk afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.run.test_task_loop import assert_same_numbers
from tests.sweeps import mostly_slow
from undrift.run.progress import Progress
from undrift.rundir import read_json, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ONE_EPOCH = {"max_steps": None, "epochs": 1}


class StopInTaskTwo(Progress):
    """Stops the run as a kill would, after a few steps of the second task."""

    left = None

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        self.left = 4 if title.startswith("task 2 of 2: learning") else None

    def advance(self, pieces: int = 1) -> None:
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def adapters(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "tasks").glob("*/adapter"))


def test_replay(make_run, tmp_path):
    result = make_run("replay", method={"memory": 3}, train=ONE_EPOCH).go()
    assert result["matrix"][1][0] is not None
    kept = [read_json(folder / "replay.json")["tasks"] for folder in adapters(tmp_path)]
    assert [[len(own) for own in tasks] for tasks in kept] == [[3], [2, 1]]
    assert all(Path(name).is_file() for row in kept[1][0] for name in row["images"])


def test_ewc(make_run, tmp_path):
    """Its Fisher is computed from the run's own batches, of kept image features."""
    make_run("ewc").go()
    for number, folder in enumerate(adapters(tmp_path), 1):
        state = load_file(folder / "ewc_state.safetensors")
        weights = [each.flatten() for name, each in state.items() if name.endswith("weight")]
        assert float(torch.cat(weights).mean()) == pytest.approx(number, rel=1e-4)


def test_sefe_rewrites_training_examples_only(make_run, tmp_path, two):
    result = make_run("sefe", method={"asd_share": 0.5}, train=ONE_EPOCH).go()
    assert result["matrix"][1][0] is not None
    asked = read_lines(tmp_path / "run" / "eval" / "after-02" / "on-01.jsonl")
    assert [line["question"] for line in asked] == [e.question for e in two.tasks[0].test]
    sizes = [
        json.loads((f / "adapter_config.json").read_text())["num_past"] for f in adapters(tmp_path)
    ]
    assert sizes == [0, 1]


def test_osf_an_outside_tuner(make_run, tmp_path):
    result = make_run("osf").go()
    assert result["matrix"][1][1] is not None
    for folder in adapters(tmp_path):
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "OSF"


@pytest.mark.parametrize("name", mostly_slow(["ewc", "clmoe", "sefe"], ["clmoe"]))
def test_killed_inside_the_second_task_and_resumed_equals_uninterrupted(name, make_run, tmp_path):
    train = {"max_steps": 5, "checkpoint_steps": 2}
    make_run(name, "straight", train=train, profile="lite").go()
    with pytest.raises(KeyboardInterrupt):
        make_run(name, "stopped", train=train, profile="lite", progress=StopInTaskTwo()).go()
    assert list((tmp_path / "stopped").rglob("checkpoint-*"))
    make_run(name, "stopped", train=train, profile="lite").go()
    assert_same_numbers(tmp_path / "straight", tmp_path / "stopped")
    timed = [
        read_json(tmp_path / run / "manifest.json")["budget"] for run in ("straight", "stopped")
    ]
    assert all(task["seconds"] > 0 for task in timed[0])
    assert timed[1][1]["seconds"] is None  # the steps before the stop were not timed here
