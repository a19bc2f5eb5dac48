"""A task whose training is cut off, and that begins anew in the same process."""

from __future__ import annotations

import pytest
import torch

from tests.methods.frozen import batches, gradients
from tests.methods.training import LR, SMALL, attached, batch_of, learn, trainable, weights
from undrift.methods import sefe
from undrift.methods.clmoe import ClMoe
from undrift.methods.continual_llava import ContinualLlava
from undrift.methods.eblora import EbLora
from undrift.methods.keeplora import KeepLora
from undrift.methods.modalprompt import ModalPrompt
from undrift.methods.sefe import Sefe
from undrift.tuner.pool_lora import pool_layers
from undrift.tuner.soft_prompt import soft_prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


class Stop(Exception):
    pass


def stop(step):
    if step == 3:
        raise Stop


def cut_off(method, model, task):
    """Stop a task behind its third step, as somebody does who sees that it goes wrong."""
    with pytest.raises(Stop):
        learn(method, model, task, steps=5, on_step=stop)


@pytest.mark.parametrize("kind", [KeepLora, EbLora])
def test_a_pool_begins_again_with_the_gradient_of_the_weights_that_past_tasks_left(kind):
    seen = []
    for stopped in (False, True):
        method = kind(**SMALL)
        model = attached(method)
        learn(method, model, 1, steps=3)
        if stopped:
            cut_off(method, model, 2)
        method.task_start(model, 2, 5)
        expected = gradients(model, batches(2, 1), newest=False)
        model.train()
        method.loss(model, batch_of(2, 0)).backward()
        for name, G in method._first.sums.items():
            torch.testing.assert_close(G, expected[name], rtol=1e-3, atol=1e-6)
        method.step_end(model, 1, 5)
        seen.append({
            f"{name}.{side}": held["default"].detach().clone()
            for name, layer in pool_layers(model).items()
            for side, held in (("A", layer.pool_lora_A), ("B", layer.pool_lora_B))
        })  # fmt: skip
    for name, p in seen[0].items():
        assert torch.equal(seen[1][name], p), name
        assert not (kind is KeepLora and name.endswith("B") and p.any())


def test_an_optimiser_that_goes_from_task_to_task_does_not_move_b_by_its_momentum():
    method, held = KeepLora(**SMALL), []

    def one(parameters, **options):
        held[:] = held or [torch.optim.AdamW(parameters, **options)]
        return held[0]

    def look(step):
        for layer in pool_layers(model).values():
            assert bool(layer.pool_lora_B["default"].any()) == (step > 1)

    model = attached(method)
    for task in (1, 2):
        learn(method, model, task, steps=3, on_step=look, optimizer=one)


@pytest.mark.parametrize("resumed", [False, True])
def test_modalprompt_goes_on_with_the_prompt_that_it_has_begun(resumed):
    method = ModalPrompt(**SMALL, prompt_length=4)
    model = attached(method)
    prompts = soft_prompts(model)
    learn(method, model, 1, steps=2)
    kept = prompts.soft_prompt_P["default"].detach().clone()
    cut_off(method, model, 2)
    if resumed:
        method.task_resume(model, 2, 5)
    half = prompts.soft_prompt_P["default"].detach().clone()
    method._step = 0
    method.task_start(model, 2, 5)
    assert torch.equal(prompts.soft_prompt_P["default"], half)
    cut_off(method, model, 2)
    learn(method, model, 2, steps=2)
    assert prompts.soft_prompt_config["default"].tasks == 2 and method.task_index == 3
    assert torch.equal(prompts.soft_prompt_past_P["default"], kept[None])
    learn(method, model, 3, steps=2)
    assert len(prompts.soft_prompt_past_P["default"]) == 2


def test_what_modalprompt_has_begun_on_one_model_it_has_not_on_another():
    method = ModalPrompt(**SMALL, prompt_length=4)
    cut_off(method, attached(method), 1)
    model = attached(method)
    learn(method, model, 1, steps=1)
    assert soft_prompts(model).soft_prompt_config["default"].tasks == 1


def test_clmoe_merges_with_what_the_last_task_left_and_counts_from_zero():
    method = ClMoe(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    before = weights(model)
    cut_off(method, model, 2)

    def look(step):
        for name, found in method._before.items():
            linear, _, side = name.rpartition(".")
            assert torch.equal(found, before[f"base_model.model.{linear}.moe_lora_{side}.default"])
        assert {int(each.sum()) for each in method._running.values()} == {2 * 38 * step}

    learn(method, model, 2, steps=2, on_step=look)
    assert {len(each) for each in method.counts.values()} == {2} and method._before == {}


def test_sefe_has_the_keys_of_past_tasks_though_the_end_of_one_is_cut_off(monkeypatch):
    method = Sefe(**SMALL)
    model = attached(method)
    learn(method, model, 1, steps=2)
    kept, own, calls = dict(method.keys), sefe.key_elements, []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 3:
            raise Stop
        return own(*given)

    monkeypatch.setattr(sefe, "key_elements", stopped)
    with pytest.raises(Stop):
        learn(method, model, 2, steps=2)
    assert method.keys.keys() == kept.keys()
    assert all(torch.equal(method.keys[name], keys) for name, keys in kept.items())
    learn(method, model, 2, steps=2)
    assert {len(method.keys[name]) for name in kept} == {2 * len(keys) for keys in kept.values()}


def test_a_pass_that_is_cut_off_leaves_gradients_on():
    method = ContinualLlava(**SMALL, align_share=0.9)
    model = attached(method)
    layer = next(iter(pool_layers(model).values()))

    def ctrl_c(*_):
        raise KeyboardInterrupt

    hook = layer.register_forward_hook(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        learn(method, model, 1, steps=4)
    assert torch.is_grad_enabled()
    hook.remove()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=LR)
    method.loss(model.train(), batch_of(1, 0)).backward()
    moved = {p for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    assert moved == {method.gate.keys}
