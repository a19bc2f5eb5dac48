"""What is added to gradients under float16, where a fused optimiser takes the scale off itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn, trainable, weights
from undrift.methods.ewc import Ewc
from undrift.methods.olora import OLora
from undrift.methods.sefe import Sefe
from undrift.methods.shared.added_loss import loss_scale

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ADDING = {
    "ewc": lambda strength: Ewc(**SMALL, strength=strength),
    "olora": lambda strength: OLora(**SMALL, strength=strength, shrink=strength / 300),
    "sefe": lambda strength: Sefe(**SMALL, strength=strength),
}


def second_task(method, *, clipped, fused=True):
    """Learn a second task as a trainer does under float16, with or without clipping."""
    model = attached(method)
    learn(method, model, 1, steps=3)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1, fused=fused, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    args = SimpleNamespace(output_dir="nowhere", resume_from_checkpoint=None)
    state = SimpleNamespace(global_step=0, max_steps=4)
    control = SimpleNamespace(should_save=False)
    method.on_train_begin(args, state, control, model=model, optimizer=optimizer)
    model.train()
    for step in range(state.max_steps):
        scaler.scale(method.loss(model, batch_of(2, step))).backward()
        if clipped:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state.global_step += 1
        method.on_step_end(args, state, control, model=model)
    return weights(model)


@pytest.mark.parametrize("name", ADDING)
def test_a_penalty_is_the_same_whether_the_optimiser_or_the_scaler_takes_the_scale_off(name):
    plain = second_task(ADDING[name](30.0), clipped=False, fused=False)
    weak = second_task(ADDING[name](0.03), clipped=False, fused=False)
    apart = max(float((weak[key] - p).abs().max()) for key, p in plain.items())
    for clipped in (True, False):
        found = second_task(ADDING[name](30.0), clipped=clipped)
        for key, p in plain.items():
            assert (found[key] - p).abs().max() < 1e-3 * apart


def test_in_other_trainings_there_is_no_scale():
    p = torch.nn.Parameter(torch.zeros(2))
    assert loss_scale(None) == loss_scale(torch.optim.AdamW([p], fused=True)) == 1.0
    scaled = torch.optim.AdamW([p], fused=True)
    scaled.grad_scale = torch.tensor(8.0)
    assert loss_scale(SimpleNamespace(optimizer=scaled)) == 8.0
    scaled.grad_scale = None  # the scaler took it off
    assert loss_scale(scaled) == 1.0
