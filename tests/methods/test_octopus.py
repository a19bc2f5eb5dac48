"""octopus: stage 1 is free, stage 2 is held orthogonal to what the old weights would learn too."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch

from tests.methods.frozen import batches, gradients
from tests.methods.training import SMALL, attached, batch_of, learn, logits, weights
from tests.tuner.llava import tiny_llava
from undrift.core.step_hook import StepHook
from undrift.errors import ConfigError
from undrift.methods.octopus import Octopus
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def taught(tasks=2, steps=6, **options):
    method = Octopus(**SMALL, **options)
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task=task, steps=steps)
    return method, model


def terms(model, G):
    """sum |<G, theta>| and sum ||theta||^2 over the linears, in a graph of the newest LoRA."""
    along, size = [], []
    for name, layer in pool_layers(model).items():
        A, B = layer.pool_lora_A["default"][0], layer.pool_lora_B["default"][0]
        theta = layer.pool_lora_config["default"].scale * B.mT @ A
        along.append((G[name] * theta).sum().abs())
        size.append(theta.square().sum())
    return torch.stack(along).sum(), torch.stack(size).sum()


@pytest.mark.parametrize("weigh", [1.0, 0.25])
def test_the_added_gradient_is_that_of_both_terms_by_autograd(weigh):
    """Over three batches of a step, each with the weight that a trainer gives its loss."""
    method, model = taught(free=1.0)
    method.config = Octopus(**SMALL, strength=3.0, shrink=0.2, free=0.0).config
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=0.0)
    method.task_index = 2
    method.task_start(model, 2, 10)
    hook = StepHook(optimizer, lambda: method.gradient_transforms(model), "gradient").attach()
    found = gradients(model, batches(2, 3), newest=False)
    expected = {name: 3 * weigh * G for name, G in found.items()}
    model.train()
    for batch in batches(2, 3):
        (weigh * method.loss(model, batch)).backward()
    plain = [p.grad.clone() for p in own]
    optimizer.step()
    hook.detach()
    along, size = terms(model, expected)
    wanted = torch.autograd.grad(3.0 * along + 0.2 * size, own)
    assert float(along.detach()) > 1e-3 * weigh
    for p, before, push in zip(own, plain, wanted, strict=True):
        assert push.abs().max() > 1e-5
        torch.testing.assert_close(p.grad - before, push, rtol=1e-3, atol=1e-6)
    method.step_end(model, 1, 10)
    assert method._sums == {}


def passes(method, model, task, steps=6):
    """How often the model is gone through in each step of a task."""
    found, before = [], []
    whole = model.get_base_model()
    handle = whole.register_forward_hook(lambda *_: before.append(1))
    learn(method, model, task=task, steps=steps, on_step=lambda _: found.append(len(before)))
    handle.remove()
    return [b - a for a, b in zip([0, *found], found, strict=False)]


def test_the_old_weights_are_asked_in_the_second_stage_alone_and_never_in_the_first_task():
    method = Octopus(**SMALL, free=0.5)
    model = attached(method)
    hooks = len(model.get_base_model()._forward_hooks)
    assert passes(method, model, 1) == [1] * 6
    assert passes(method, model, 2) == [1, 1, 1, 2, 2, 2]
    assert len(model.get_base_model()._forward_hooks) == hooks
    method.config = Octopus(**SMALL, free=1.0).config
    assert passes(method, model, 3) == [1] * 6


def test_asking_the_old_weights_leaves_no_trace_but_the_push():
    def after(**options):
        return weights(taught(**options)[1])

    free, asked, pushed = after(free=1.0), after(strength=0.0, shrink=0.0), after()
    assert all(torch.equal(free[key], asked[key]) for key in free)
    assert any(not torch.equal(free[key], pushed[key]) for key in free)


def test_the_push_makes_the_update_orthogonal_to_the_old_weights_gradient():
    def left(strength):
        _, model = taught(steps=16, strength=strength, shrink=0.0, free=0.25)
        G = gradients(model, batches(2, 16), newest=False)
        return float(terms(model, G)[0].detach())

    assert left(5.0) < 0.5 * left(0.0)


def test_the_norm_is_pulled_down():
    def size(shrink):
        _, model = taught(steps=12, strength=0.0, shrink=shrink, free=0.25)
        return float(terms(model, gradients(model, batches(2, 1)))[1].detach())

    assert size(10.0) < 0.5 * size(0.0)


def test_what_cannot_be_is_refused():
    method, model = taught(tasks=1)
    again = {"gradient_checkpointing": True}
    again["gradient_checkpointing_kwargs"] = {"use_reentrant": True}
    for args, why in (({"fp16": True}, "train in bfloat16 or float32"), (again, "to false in")):
        method._args = SimpleNamespace(**args)
        with pytest.raises(ConfigError, match=why):
            method.task_start(model, 2, 4)
    method._args = None
    method.task_start(model, 2, 4)
    method._step = 3
    batch = batch_of(2, 0)
    batch.pop("labels")
    model.train()(**batch).logits.sum().backward()
    (p, turn), *_ = method.gradient_transforms(model).items()
    with pytest.raises(ConfigError, match="octopus saw no loss of the old weights: give the model"):
        turn(p.grad)


def test_the_adapter_answers_without_the_method(tmp_path):
    method, model = taught()
    method.save_state(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}
