"""olora: an expert a task, all of them in the sum, the newest pushed away from the others."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn, logits
from tests.precision import assert_same
from tests.tuner.llava import tiny_llava
from undrift.core.step_hook import StepHook
from undrift.methods.olora import OLora
from undrift.tuner.frozen import count_parameters
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
OPTIONS = {
    "sum": {"strength": 0.5, "reduction": "sum"},
    "mean": {"strength": 30.0},
    "unit": {"strength": 30.0, "row_normalise": True},
    "short": {"strength": 0.5, "reduction": "sum", "shrink": 0.1},
}


def taught(tasks=2, steps=6, **options):
    method = OLora(**SMALL, **options)
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task=task, steps=steps)
    return method, model


def penalty(model, options):
    """Both penalties, written plainly, in a graph of the newest experts."""
    overlaps, lengths = [], []
    for layer in pool_layers(model).values():
        A, B = layer.pool_lora_A["default"], layer.pool_lora_B["default"]
        lengths += [A.norm(), B.norm()]
        for past in layer.pool_lora_past_A["default"]:
            rows, others = A[0], past
            if options.get("row_normalise"):
                rows, others = (m / m.norm(dim=1, keepdim=True) for m in (rows, others))
            overlaps.append((rows @ others.T).abs())
    whole = torch.stack(overlaps)
    whole = whole.sum() if options.get("reduction") == "sum" else whole.mean()
    return options["strength"] * whole + options.get("shrink", 0.0) * torch.stack(lengths).sum()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_added_gradient_is_that_of_the_penalty_by_autograd(options):
    method, model = taught(tasks=3, steps=3, **options)
    moved = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(penalty(model, options), moved, allow_unused=True)
    turns = method.gradient_transforms(model)
    assert len(turns) == (12 if "shrink" in options else 6)
    for p, wanted in zip(moved, expected, strict=True):
        before = torch.randn_like(p)
        added = turns[p](before) - before if p in turns else torch.zeros_like(p)
        torch.testing.assert_close(added, torch.zeros_like(p) if wanted is None else wanted,
                                   rtol=1e-4, atol=1e-6)  # fmt: skip


def test_it_is_added_once_per_step_however_many_batches_a_step_has():
    method, model = taught(tasks=1, **OPTIONS["sum"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    method.task_start(model, 2, 10)
    hook = StepHook(optimizer, lambda: method.gradient_transforms(model), "gradient").attach()
    model.train()
    for step in range(3):
        method.loss(model, batch_of(2, step)).backward()
    layer = next(iter(pool_layers(model).values()))
    A = layer.pool_lora_A["default"]
    plain = A.grad.clone()
    optimizer.step()
    hook.detach()
    (wanted,) = torch.autograd.grad(penalty(model, OPTIONS["sum"]), [A])
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(A.grad - plain, wanted, rtol=1e-4, atol=1e-6)


def test_the_first_task_has_nothing_to_be_orthogonal_to_and_needs_no_branch_of_its_own():
    method = OLora(**SMALL)
    model = attached(method)
    method.task_start(model, 1, 10)
    for p, turn in method.gradient_transforms(model).items():
        assert torch.equal(turn(torch.ones_like(p)), torch.ones_like(p))


def test_the_push_makes_the_newest_experts_orthogonal_to_the_others():
    def overlap(**options):
        _, model = taught(steps=10, **options)
        options = {"strength": 1.0, "row_normalise": True}
        return float(penalty(model, options).detach())

    free = overlap(strength=0.0)
    assert overlap(**OPTIONS["sum"]) < 0.5 * free
    assert overlap(strength=300.0) < 0.5 * free


def test_making_a_short_meets_the_plain_push_and_not_that_on_rows_of_length_one():
    _, model = taught()
    options = {"strength": 1.0, "row_normalise": False}, {"strength": 1.0, "row_normalise": True}
    before = [float(penalty(model, each).detach()) for each in options]
    with torch.no_grad():
        for layer in pool_layers(model).values():
            layer.pool_lora_A["default"].mul_(0.1)
    after = [float(penalty(model, each).detach()) for each in options]
    assert after[0] == pytest.approx(0.1 * before[0]) and after[1] == pytest.approx(before[1])


def test_training_and_test_use_the_same_forward_with_all_earlier_experts():
    method, model = taught()
    asked = logits(model)
    method.task_start(model, 2, 10)  # it is there already: nothing grows
    batch = batch_of(1, 0)
    with torch.no_grad():
        taught_with = model.train()(**batch).logits
        assert_same(taught_with, model.eval()(**batch).logits)
    for layer in pool_layers(model).values():
        assert layer.experts("default") == 2
        layer.pool_lora_past_B["default"].data.zero_()
    assert not torch.allclose(logits(model), asked)


def test_with_newest_alone_training_and_test_differ_as_in_later_public_code():
    method, model = taught(train_with="newest")
    batch = batch_of(1, 0)
    asked = model.eval()(**batch).logits
    method.task_start(model, 2, 10)
    assert not torch.allclose(model(**batch).logits, asked)
    method.task_end(model)
    assert torch.equal(model(**batch).logits, asked)


def test_the_adapter_answers_without_the_method(tmp_path):
    method, model = taught(tasks=3)
    method.save_state(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}


def test_state_grows_by_one_expert_a_task():
    sizes = []
    for tasks in (1, 2, 3):
        _, model = taught(tasks=tasks, steps=1)
        sizes.append(count_parameters(model) - count_parameters(tiny_llava()))
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == sizes[0]
