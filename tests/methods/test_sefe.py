"""sefe: key elements of past updates, the penalty on them, and what stands for a merge."""

from __future__ import annotations

import pytest
import torch

from tests.methods.training import SMALL, attached, learn, logits, weights
from tests.tuner.llava import tiny_llava
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.methods.sefe import Sefe, drawn, key_elements, penalty_gradient
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def penalty(A, Bt, keys):
    return (Bt.mT @ A).abs().flatten()[keys.long()].mean()


def factors(seed=0, rank=3, d_in=10, d_out=7):
    torch.manual_seed(seed)
    return torch.randn(rank, d_in), torch.randn(rank, d_out)


def test_key_elements_are_the_largest_entries_of_the_update():
    A, Bt = factors()
    keys = key_elements(A, Bt, 0.1)
    change = (Bt.mT @ A).abs()
    assert keys.dtype == torch.int32 and len(keys) == 7
    chosen = torch.zeros(7, 10, dtype=torch.bool)
    chosen[keys.long() // 10, keys.long() % 10] = True
    assert change[chosen].min() > change[~chosen].max()
    assert torch.equal(keys, keys.sort().values)


def test_the_gradient_is_that_of_the_penalty_written_plainly():
    A, Bt = (p.requires_grad_() for p in factors())
    keys = torch.tensor([3, 17, 17, 69], dtype=torch.int32)  # one of them twice
    expected = torch.autograd.grad(penalty(A, Bt, keys), [A, Bt])
    found = penalty_gradient(A.detach(), Bt.detach(), keys)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert float(one.abs().sum()) > 0


def test_a_drawn_penalty_has_the_right_mean():
    A, Bt = factors(d_in=20, d_out=15)
    keys = key_elements(A, Bt, 0.3)
    exact = torch.cat([g.flatten() for g in penalty_gradient(A, Bt, keys)])
    draws = []
    for _ in range(2000):
        some = drawn(keys, 10, torch.rand(10, dtype=torch.float64))
        assert len(some) == 10
        draws.append(torch.cat([g.flatten() for g in penalty_gradient(A, Bt, some)]))
    stacked = torch.stack(draws)
    error = (stacked.mean(0) - exact).abs()
    assert (error < 6 * stacked.std(0) / 2000**0.5 + 1e-6).all()
    assert drawn(keys, len(keys), torch.empty(0)) is keys


def test_the_penalty_begins_with_the_second_step_of_the_second_task():
    method = Sefe(**SMALL)
    model = attached(method)
    sizes = {}

    def see(step):
        gradients = [float(t(torch.zeros_like(p)).abs().max())
                     for p, t in method.gradient_transforms(model).items()]  # fmt: skip
        sizes[method.task_index, step] = gradients

    plain = weights(model)
    learn(method, model, task=1, steps=2, on_step=see)
    assert sizes[1, 1] == sizes[1, 2] == [] and plain
    starts = []

    def begin(model, *args):
        Sefe.task_start(method, model, *args)
        see(0)
        starts.append(len(method.keys))

    method.task_start = begin
    learn(method, model, task=2, steps=2, on_step=see)
    assert starts == [len(pool_layers(model))]
    assert len(sizes[2, 0]) == 2 * len(pool_layers(model))
    assert max(sizes[2, 0]) == 0 and min(sizes[2, 1]) > 0


def test_past_key_elements_are_left_alone():
    moved = []
    for strength in (1e-9, 2500.0):
        method = Sefe(**SMALL, strength=strength, key_share=0.1)
        model = attached(method)
        learn(method, model, task=1)
        keys = {name: each.clone() for name, each in method.keys.items()}
        learn(method, model, task=2, weight_decay=0)
        with torch.no_grad():
            moved.append(
                sum(
                    float(penalty(A["default"][0], B["default"][0], keys[name]))
                    for name, A, B in (
                        (name, layer.pool_lora_A, layer.pool_lora_B)
                        for name, layer in pool_layers(model).items()
                    )
                )
            )
    assert moved[1] < 0.5 * moved[0]


def test_the_past_is_frozen_and_equals_a_merge_into_the_weights():
    method = Sefe(**SMALL)
    model = attached(method)
    learn(method, model, task=1)
    after_one = logits(model)
    first = {name: layer.pool_lora_B["default"].detach().clone()
             for name, layer in pool_layers(model).items()}  # fmt: skip
    method.task_start(model, 2, 1)
    assert all(
        not bool(layer.pool_lora_B["default"].any()) for layer in pool_layers(model).values()
    )
    torch.testing.assert_close(logits(model), after_one)
    method.task_index = 3  # grown already; two more tasks
    method._keep(model, anew=True)  # the test stands for a trainer
    for task in (3, 4):
        learn(method, model, task=task, steps=3)
    merged = tiny_llava()
    for name, layer in pool_layers(model).items():
        assert torch.equal(layer.pool_lora_past_B["default"][0], first[name][0])
        weight = merged.get_submodule(name).weight
        for A, B in ((layer.pool_lora_past_A, layer.pool_lora_past_B),
                     (layer.pool_lora_A, layer.pool_lora_B)):  # fmt: skip
            for a, b in zip(A["default"], B["default"], strict=True):
                weight.data += 2.0 * b.mT @ a
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


def test_an_element_that_is_key_twice_weighs_twice_unless_a_union_is_asked_for():
    sizes = {}
    for union in (False, True):
        method = Sefe(**SMALL, union=union, key_share=0.3)
        model = attached(method)
        for task in (1, 2, 3):
            learn(method, model, task=task, steps=2)
        keys = next(iter(method.keys.values()))
        sizes[union] = len(keys), len(keys.unique())
    assert sizes[False][0] == 3 * round(0.3 * 24 * 40) > sizes[False][1]
    assert sizes[True][0] == sizes[True][1] < sizes[False][0]


def test_styles_can_be_left_out_and_are_the_same_each_time():
    train = [Example(f"{i}", f"what is {i}?", (f"thing {i}",)) for i in range(50)]
    assert Sefe(asd=False).examples(train, 1) is train
    one, other = Sefe().examples(train, 1), Sefe().examples(train, 1)
    assert one == other != Sefe().examples(train, 2)
    assert sum("style" in example.extra for example in one) == 10
    with pytest.raises(ConfigError, match="key_share is 0"):
        Sefe(key_share=0.0)
    with pytest.raises(ConfigError, match="strength is 0"):
        Sefe(strength=0.0)
