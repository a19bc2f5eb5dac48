"""What the manifest says about the learning of a task: tokens, memory, experts that rested."""

from __future__ import annotations

import gc
from time import perf_counter, process_time, sleep

import pytest
import torch
from transformers import TrainerState

from undrift.run import training_cost
from undrift.run.progress import Progress
from undrift.run.session import make_method
from undrift.run.training_cost import Meter, forget_peak, peak
from undrift.rundir import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
CPU = torch.device("cpu")


class StopLearning(Progress):
    """Stops a run as a kill would, when a task has made so many steps."""

    def __init__(self, task: str, steps: int) -> None:
        self.task, self.left = task, steps
        self.here = False

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        self.here = title.endswith(f"learning {self.task}")

    def advance(self, pieces: int = 1) -> None:
        self.left -= pieces * self.here
        if not self.left:
            raise KeyboardInterrupt


def costs(folder):
    return read_json(folder / "manifest.json")["budget"]


def tokens_of(run, backbone, task):
    """The tokens of every training example, counted one by one: nothing is padded."""
    backbone.prepare([picture for e in task.train for picture in e.images])
    encoded = backbone.collator().encode(task.train, answered=True)
    return [len(example) for example in encoded]


def test_tokens_of_whole_epochs_are_counted_exactly(make_run, tmp_path, backbone):
    # 12 examples in batches of 5 and two batches a step: the last batch, and step, are not full
    train = {"batch_size": 5, "accumulation": 2, "epochs": 2, "max_steps": None}
    run = make_run(train=train)
    run.go()
    for task, cost in zip(run.tasks, costs(tmp_path / "run"), strict=True):
        lengths = tokens_of(run, backbone, task)
        assert len(set(lengths)) > 1  # so that there is padding to leave out
        assert cost["tokens"] == 2 * sum(lengths)
        assert cost["steps"] == 4


def test_a_resumed_task_knows_all_its_tokens_but_not_its_time(make_run, tmp_path):
    train = {"max_steps": 7, "checkpoint_steps": 3}
    make_run(out="straight", train=train).go()
    with pytest.raises(KeyboardInterrupt):
        make_run(out="stopped", train=train, progress=StopLearning("lower", 5)).go()
    assert list((tmp_path / "stopped").rglob("checkpoint-3"))
    make_run(out="stopped", train=train).go()
    whole, resumed = costs(tmp_path / "straight")[0], costs(tmp_path / "stopped")[0]
    assert resumed["tokens"] == whole["tokens"] > 0 and resumed["steps"] == 7
    assert resumed["seconds"] is resumed["cpu_seconds"] is resumed["peak_bytes"] is None
    assert whole["seconds"] > 0


def test_a_pause_is_not_counted():
    clock, cpu = perf_counter(), process_time()
    with Meter(make_method("finetune", {}), CPU) as measured:
        with measured.paused():
            sleep(0.3)
        sleep(0.01)
        measured.on_train_begin(None, TrainerState(), None)
    clock, cpu = perf_counter() - clock, process_time() - cpu
    assert 0.01 <= measured.effort()["seconds"] <= clock - 0.3  # however busy the machine is
    assert -0.01 <= measured.effort()["cpu_seconds"] <= cpu + 0.01


@pytest.mark.skipif(not forget_peak(CPU), reason="this system does not reset the peak of memory")
def test_the_peak_is_that_of_the_block_alone():
    size = 64 * 2**20
    gc.collect()  # what earlier tests have left would be given back meanwhile
    forget_peak(CPU)
    before = peak(CPU)
    torch.ones(size, dtype=torch.uint8)  # given back to the system at once
    assert 0.9 * size < peak(CPU) - before < 1.5 * size
    forget_peak(CPU)
    assert peak(CPU) - before < 0.5 * size


def test_where_the_peak_cannot_be_reset_it_is_not_known(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "_CLEAR", tmp_path / "no" / "such" / "file")
    assert not forget_peak(CPU) and not forget_peak(torch.device("mps"))
    make_run("finetune").go()
    assert [cost["peak_bytes"] for cost in costs(tmp_path / "run")] == [None, None]


def test_the_experts_that_rested_are_told(make_run, tmp_path):
    options = {"activation": True, "warmup_share": 0.3, "tau": 1.0}
    make_run("same", method=options, train={"max_steps": 4}).go()
    first, second = (cost["resting"] for cost in costs(tmp_path / "run"))
    assert first.keys() == second.keys() and len(first) == 6
    assert "model.language_model.layers.1.mlp.down_proj" in first
    assert set(first.values()) == {0}  # no task before it needs them
    assert all(0 < count < 2 for count in second.values())  # of two, one at least stays awake


def test_a_method_whose_experts_never_rest_says_so(backbone):
    for name in ("same", "finetune"):  # by default `same` keeps all its experts awake
        assert make_method(name, {}).resting(backbone.model) is None
