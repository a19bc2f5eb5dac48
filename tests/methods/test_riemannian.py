"""riemannian: the r x r preconditioners, by hand and against PEFT's own optimiser."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_riemannian_optimizer

from tests.methods.training import LR, SMALL, attached, batch_of, learn, trainable, weights
from tests.tuner.llava import tiny_llava
from undrift.errors import ConfigError
from undrift.methods.finetune import Finetune
from undrift.methods.riemannian import Riemannian, a_gradient, b_gradient

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def test_each_gradient_is_divided_by_the_other_factors_square():
    A, B = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    found = a_gradient(torch.ones(2, 2), B, damping=1.0)  # B^T B = diag(4, 1)
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.2], [0.5, 0.5]]))
    found = b_gradient(torch.ones(2, 2), A, damping=1.0)  # A A^T = diag(9, 1)
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.5], [0.1, 0.5]]))


def test_half_precision_is_computed_in_float32_and_given_back_as_it_came():
    A = torch.tensor([[100.0, 1.0], [100.0, 0.0]], dtype=torch.bfloat16)  # nearly of rank 1
    gradient = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
    found = b_gradient(gradient, A, damping=0.01)
    wide = A.float()
    exact = gradient.float() @ torch.linalg.inv(wide @ wide.mT + 0.01 * torch.eye(2))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.01, atol=0)


def by_peft(model, steps, damping):
    optimizer = create_riemannian_optimizer(
        model, torch.optim.AdamW, lr=LR, reg=damping, weight_decay=0.1
    )
    model.train()
    for step in range(steps):
        model(**batch_of(1, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def test_it_learns_bit_for_bit_as_pefts_own_optimiser():
    method, damping = Riemannian(**SMALL, damping=0.05), 0.05
    model = attached(method)
    learn(method, model, steps=4)
    theirs = by_peft(attached(Finetune(**SMALL)), 4, damping)
    other = by_peft(attached(Finetune(**SMALL)), 4, 2 * damping)
    for key, value in weights(model).items():
        assert torch.equal(value, theirs[key]), key
        assert not torch.equal(value, other[key]), key


def test_it_needs_no_history_to_go_on_with_what_was_learned():
    model = attached(Finetune(**SMALL))
    learn(Finetune(**SMALL), model, steps=2)
    method = Riemannian(**SMALL)
    learn(method, model, task=2, steps=2)
    assert method.record(model)["files"] == []


def test_the_factors_of_the_users_own_lora_are_found_and_other_optimisers_serve():
    torch.manual_seed(0)
    config = LoraConfig(r=3, target_modules=r".*language_model.*down_proj")
    model = get_peft_model(tiny_llava(), config)
    method = Riemannian()
    held = method.gradient_transforms(model)
    assert {id(p) for p in held} == {id(p) for p in trainable(model).values()}
    before = weights(model)
    learn(method, model, steps=2, optimizer=partial(torch.optim.SGD, momentum=0.9))
    assert all(not torch.equal(p, before[n]) for n, p in weights(model).items())


def test_damping_is_positive():
    with pytest.raises(ConfigError, match=r"damping is 0\.0, expected a positive number"):
        Riemannian(damping=0.0)
