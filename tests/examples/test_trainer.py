"""A user's own Trainer learns two tasks with `callbacks=[undrift.Same()]`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from peft import PeftConfig
from safetensors.torch import load_file

from undrift.tuner import MoeLoraConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
EXAMPLE = Path(__file__).parents[2] / "examples" / "trainer.py"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 65


def test_two_tasks_are_learned_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])
    made = runpy.run_path(str(EXAMPLE), run_name="__main__")
    losses = [row["loss"] for row in made["trainer"].state.log_history if "loss" in row]
    assert made["method"].task_index == 3
    assert losses[-1] < losses[0]
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path / "adapter")), MoeLoraConfig)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tasks = {int(value) for key, value in state.items() if key.endswith("_statistics.tasks")}
    assert tasks == {2}
    tokens = {float(value) for key, value in state.items() if key.endswith("history_tokens")}
    assert len(tokens) == 1 and tokens.pop() > 0
