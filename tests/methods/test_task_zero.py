"""The base as task zero: histories of inputs and of weights, and what methods make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.training import learn
from tests.tuner.llava import tiny_llava
from undrift.core import Metrics
from undrift.core.moment import History, MomentSketch
from undrift.errors import ConfigError
from undrift.methods.same import Same
from undrift.methods.shared.task_zero import TaskZero, of_inputs, of_weights
from undrift.methods.steadylora import SteadyLora
from undrift.tuner import find_targets

ALL = Metrics(delta=1.0, max_components=512, columns=512, token_weights="same")
GATE, UP, DOWN = (
    f"model.language_model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")
)
METHODS = {
    "same": lambda **o: Same(experts=3, rank=2, **o),
    "steadylora": lambda **o: SteadyLora(experts=2, rank=2, **o),
}


def texts(rows=3, length=7, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (rows, length), generator=drawn)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def second_moment(history: History) -> torch.Tensor:
    V, s = history.basis()
    return (V * s) @ V.mT


def remembered(model, **options):
    batches = (model(**texts(seed=seed), use_cache=False).loss for seed in (0, 1))
    return of_inputs(model, "ffn", batches, replace(ALL, **options))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_llava().requires_grad_(False).eval()


def test_it_is_the_second_moment_of_what_linears_read(model):
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(DOWN).register_forward_pre_hook(
        lambda module, x: seen.append(x[0].detach())
    )
    zero = remembered(model)
    hook.remove()
    tokens = torch.cat([x[texts()["attention_mask"].bool()] for x in seen]).double()
    expected = tokens.mT @ tokens / len(tokens)
    history = zero.histories[DOWN]
    torch.testing.assert_close(second_moment(history).double(), expected, rtol=1e-4, atol=1e-6)
    assert float(history.tokens) == len(tokens) == 2 * (3 * 7 - 2)
    assert float(history.trace) == pytest.approx(float(expected.trace()), rel=1e-5)


def test_tokens_are_weighed_by_the_gradient_of_their_loss(model):
    shared = remembered(model, token_weights="share").histories[DOWN]
    plain = remembered(model).histories[DOWN]
    assert not torch.allclose(second_moment(shared), second_moment(plain), rtol=1e-2)


def test_nothing_stays_on_the_model(model):
    remembered(model)
    modules = list(model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_without_a_prompt_there_is_nothing_to_remember(model):
    with pytest.raises(ConfigError, match="no prompt"):
        of_inputs(model, "ffn", [], ALL)


def test_weights_give_the_directions_that_they_read(model):
    zero = of_weights(model, "ffn", ALL)
    assert set(zero.histories) == set(find_targets(model, "ffn").names) and not zero.measured
    W = torch.cat([model.get_submodule(name).weight for name in (GATE, UP)])
    expected = W.mT @ W / len(W)
    torch.testing.assert_close(
        second_moment(zero.histories[UP]), expected.detach(), rtol=1e-4, atol=1e-7
    )
    assert zero.histories[GATE].V is zero.histories[UP].V


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(kind):
    model = tiny_llava().requires_grad_(False)
    linear: Any = model.get_submodule(DOWN)
    linear.weight = nn.Parameter(linear.weight.detach().to(kind), requires_grad=False)
    with pytest.raises(ConfigError, match="quantised"):
        of_weights(model, "ffn", ALL)


def test_weights_have_no_tokens_to_count():
    method, base = METHODS["same"](task_weights="tokens"), tiny_llava()
    zero = of_weights(tiny_llava(), "ffn", ALL)
    model = method.attach(base)
    method.remember(zero)
    with pytest.raises(ConfigError, match="has no tokens"):
        learn(method, model, 1, steps=1)


def test_a_history_is_cut_and_made_room_for():
    sketch = MomentSketch(6, 6)
    sketch.update(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
    history = History.empty(6, 4).merge(sketch, 1.0)
    less, more = history.resized(2), history.resized(9)
    assert less.V.shape == (6, 2) and int(less.k) == 2 and more.V.shape == (6, 6)
    torch.testing.assert_close(less.dropped + less.s.sum(), history.dropped + history.s.sum())
    torch.testing.assert_close(second_moment(more), second_moment(history))
    double = history.scaled(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(second_moment(double), 2 * second_moment(history))
    assert float(double.trace) == 2 * float(history.trace)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_task_is_held_by_what_is_remembered(name):
    def moved(zero):
        torch.manual_seed(0)
        method = METHODS[name]()
        model = method.attach(tiny_llava())
        method.remember(zero)
        learn(method, model, 1, steps=3)
        return method, [p.detach().clone() for p in model.parameters() if p.requires_grad]

    torch.manual_seed(0)
    zero = remembered(tiny_llava().requires_grad_(False), token_weights="share")
    free, without = moved(None)
    held, with_it = moved(zero)
    assert not all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))
    assert all(float(each.history.tokens) == 2 for each in held.statistics.values())
    assert all(float(each.history.tokens) == 1 for each in free.statistics.values())
    assert all(int(each.tasks) == 1 for each in held.statistics.values())  # the base is none


@pytest.mark.parametrize("name", METHODS)
def test_c_z_begins_as_what_a_makes_of_the_remembered_inputs(name):
    torch.manual_seed(0)
    method, base = METHODS[name](), tiny_llava().requires_grad_(False)
    zero = remembered(base)
    model = method.attach(base)
    method.remember(zero)
    method.task_start(model, 1, 3)
    (A,) = (p for n, p in model.named_parameters() if DOWN in n and "_A" in n)
    A = A.detach().flatten(0, -2)
    each = next(s for n, s in method.statistics.items() if n.endswith(DOWN))
    expected = A @ second_moment(zero.histories[DOWN]) @ A.mT / each.experts**2
    torch.testing.assert_close(each.cz, expected, rtol=1e-3, atol=1e-7)
    assert float(each.cz_tokens) == 1


@pytest.mark.parametrize("name", METHODS)
def test_weights_get_the_size_of_the_first_task(name):
    def traces(zero):
        torch.manual_seed(0)
        method, base = METHODS[name](delta=1.0), tiny_llava()
        model = method.attach(base)
        method.remember(zero)
        learn(method, model, 1, steps=1)  # which begins at the same weights
        return {n: float(each.history.trace) for n, each in method.statistics.items()}

    torch.manual_seed(0)
    zero = of_weights(tiny_llava(), "ffn", ALL)
    alone, both = traces(None), traces(zero)
    assert both == pytest.approx(alone, rel=1e-5)  # the mean of two of one size


@pytest.mark.parametrize("source", [remembered, lambda model: of_weights(model, "ffn", ALL)])
@pytest.mark.parametrize("name", METHODS)
def test_a_stream_is_begun_with_it_once(name, source):
    torch.manual_seed(0)
    method, base = METHODS[name](merge_share=0.5, delta=1.0), tiny_llava()
    zero = source(tiny_llava().requires_grad_(False))
    model = method.attach(base)
    method.remember(zero)
    learn(method, model, 1, steps=4)
    assert all(float(each.history.tokens) == 3 for each in method.statistics.values())
    each = next(s for n, s in method.statistics.items() if n.endswith(DOWN))
    kept = each.history.s.sum() + each.history.dropped
    assert 0 < float(kept) <= float(each.history.trace) * (1 + 1e-6)


def test_what_does_not_fit_is_refused():
    method = METHODS["same"]()
    model = method.attach(tiny_llava())
    method.remember(TaskZero({}))
    with pytest.raises(ConfigError, match="does not fit"):
        learn(method, model, 1, steps=1)


def test_a_second_task_is_not_begun_with_it():
    torch.manual_seed(0)
    method, base = METHODS["steadylora"](), tiny_llava()
    zero = remembered(tiny_llava().requires_grad_(False))
    model = method.attach(base)
    method.remember(zero)
    learn(method, model, 1, steps=1)
    learn(method, model, 2, steps=1)
    assert all(float(each.history.tokens) == 3 for each in method.statistics.values())
