"""The watch over the losses, and what a snapshot keeps of optimiser and random numbers."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from undrift.errors import TrainingDiverged
from undrift.run.checkpoint import (
    latest,
    load_optimizer,
    load_random,
    save_optimizer,
    save_random,
)
from undrift.run.trainer import StepWatch


def watched(watch: StepWatch, losses: list[float], steps: int) -> int:
    """Feed losses as a trainer would; return how many steps were made."""
    model = torch.nn.Linear(1, 1)
    for step, loss in enumerate(losses):
        state = SimpleNamespace(global_step=step, max_steps=steps)
        watch.on_step_begin(None, state, None)
        watch.see(torch.tensor(loss), [f"example-{step + 1}"])
        watch.see_gradients(torch.tensor(1.0), model)
    return len(losses)


def test_a_bad_loss_is_seen_before_its_step_is_made():
    with pytest.raises(TrainingDiverged, match=r"inf at step 2, .* example-2;"):
        watched(StepWatch(1), [1.0, float("inf"), 1.0], 9)


def test_looking_less_often_still_names_the_step():
    assert watched(StepWatch(5), [1.0, float("nan"), 1.0, 1.0], 9) == 4  # not yet looked
    with pytest.raises(TrainingDiverged, match=r"nan at step 2, .* example-2;"):
        watched(StepWatch(5), [1.0, float("nan"), 1.0, 1.0, 1.0], 9)
    with pytest.raises(TrainingDiverged, match="nan at step 3"):
        watched(StepWatch(5), [1.0, 1.0, float("nan")], 3)  # the last step is always looked at


def test_optimiser_state_survives_a_file(tmp_path):
    def made():
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
        return weights, torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1)

    def step(weights, optimizer, scale):
        for weight in weights:
            weight.grad = torch.full_like(weight, scale)
        optimizer.step()

    weights, optimizer = made()
    step(weights, optimizer, 1.0)
    save_optimizer(optimizer, tmp_path)
    copies, again = made()
    for copy, weight in zip(copies, weights, strict=True):
        copy.data.copy_(weight.data)
    load_optimizer(again, tmp_path)
    step(weights, optimizer, -0.3)
    step(copies, again, -0.3)
    for copy, weight in zip(copies, weights, strict=True):
        assert torch.equal(copy, weight)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pt", ".pth", ".bin")]


def test_random_numbers_go_on(tmp_path):
    def drawn():
        return torch.randn(3).tolist(), np.random.rand(2).tolist(), random.random()

    torch.randn(5), np.random.rand(3), random.gauss(0, 1)
    save_random(tmp_path)
    first = drawn()
    assert drawn() != first
    load_random(tmp_path)
    assert drawn() == first


def test_latest_snapshot_is_by_number(tmp_path):
    assert latest(tmp_path) is None
    counters = {"epoch": 1.0, "max_steps": 20, "num_train_epochs": 1, "log_history": []}
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "checkpoint-10.77.writing"):
        (tmp_path / name).mkdir()
        step = int(name.split("-")[1].split(".")[0])
        state = json.dumps(counters | {"global_step": step})
        (tmp_path / name / "trainer_state.json").write_text(state)
    assert latest(tmp_path) == tmp_path / "checkpoint-10"
