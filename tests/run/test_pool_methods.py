"""Two tasks of a run with the methods that give every task an expert of its own."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.run.test_plain_methods import StopInTaskTwo, adapters
from tests.run.test_task_loop import assert_same_numbers
from tests.sweeps import mostly_slow
from undrift.errors import ConfigError
from undrift.run.adapters import open_adapter
from undrift.run.evaluate import ask, examine
from undrift.run.progress import Progress
from undrift.rundir import read_json, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["olora", "keeplora", "eblora", "octopus", "proglora", "proglora-static"], ["proglora"]
    ),
)
def test_two_tasks(name, make_run, tmp_path):
    result = make_run(name).go()
    assert all(score is not None for row, seen in zip(result["matrix"], (1, 2), strict=True)
               for score in row[:seen])  # fmt: skip
    first, second = adapters(tmp_path)
    for number, folder in ((1, first), (2, second)):
        assert read_json(folder / "adapter_config.json")["num_past"] == number - 1
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    grown = [key for key in before if key.endswith("pool_lora_B")]
    assert grown and all(before[key].any() for key in grown)
    for key in grown:
        assert torch.equal(after[key.replace("lora_B", "lora_past_B")], before[key])
    if name.startswith("proglora"):
        gate = load_file(second / "gate.safetensors")
        torch.testing.assert_close(gate["means"].sum(1), torch.ones(2))
        assert gate["past_keys"].shape[0] == 1


def test_an_oracle_is_told_the_task_when_its_adapter_is_examined(make_run, two, tmp_path):
    result = make_run("proglora-static").go()
    learned = open_adapter(tmp_path / "run")
    scores = examine(learned, two.tasks, tmp_path / "asked", 4, Progress())
    assert [scores[task.name]["strict"] for task in two.tasks] == result["matrix"][1]
    for number, task in enumerate(two.tasks, 1):
        said = read_lines(tmp_path / "asked" / f"{task.name}.jsonl")
        assert said == read_lines(tmp_path / "run/eval/after-02" / f"on-{number:02}.jsonl")
    with pytest.raises(ConfigError, match="has to be told which task"):
        ask(learned, "which colour is it?", two.tasks[0].test[0].images)


@pytest.mark.slow
def test_killed_inside_the_second_task_and_resumed_equals_uninterrupted(make_run, tmp_path):
    train, name = {"max_steps": 5, "checkpoint_steps": 2}, "proglora-static"
    make_run(name, "straight", train=train, profile="lite").go()
    with pytest.raises(KeyboardInterrupt):
        make_run(name, "stopped", train=train, profile="lite", progress=StopInTaskTwo()).go()
    assert list((tmp_path / "stopped").rglob("checkpoint-*"))
    make_run(name, "stopped", train=train, profile="lite").go()
    assert_same_numbers(tmp_path / "straight", tmp_path / "stopped")
