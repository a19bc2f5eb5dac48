"""A user's own SFTTrainer learns two tasks with `callbacks=[undrift.Same()]`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig
from safetensors.torch import load_file

from undrift.tuner import MoeLoraConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "sft_trainer.py"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
def test_two_tasks_are_learned_and_remembered(tmp_path):
    pytest.importorskip("trl")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert isinstance(PeftConfig.from_pretrained(tmp_path / "adapter"), MoeLoraConfig)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    history = {key: value for key, value in state.items() if ".moe_lora_statistics." in key}
    assert {int(value) for key, value in history.items() if key.endswith(".tasks")} == {2}
    tokens = {float(value) for key, value in history.items() if key.endswith("history_tokens")}
    assert len(tokens) == 1 and tokens.pop() > 0
    assert all(value.any() for key, value in state.items() if key.endswith("moe_lora_B"))
