"""Choices, and sums that are kept, are float32's under autocast: bfloat16 has many ties."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.methods.training import SMALL, attached, batch_of, learn
from undrift.core.moment import MomentSketch
from undrift.methods.continual_llava import ContinualLlava
from undrift.methods.keeplora import KeepLora
from undrift.methods.llava_cmoe import LlavaCMoE
from undrift.methods.modalprompt import ModalPrompt
from undrift.methods.smolora import SMoLora
from undrift.tuner.forward import Prompt
from undrift.tuner.pool_lora import gate_context, pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def is_exact(call):
    """Whether a call gives the same, bit for bit, under autocast."""
    plain = call()
    with torch.autocast("cpu", torch.bfloat16):
        found = call()
    plain, found = ([each] if isinstance(each, torch.Tensor) else each for each in (plain, found))
    return all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def prompt_of(seed=0):
    text = torch.arange(7).expand(3, 7) >= 4
    return Prompt(drawn(3, 7, 24, seed=seed), text, ~text)


def test_the_nearest_increments_of_an_instruction():
    method = ContinualLlava(**SMALL | {"experts": 16})
    attached(method)
    with torch.no_grad():
        method.gate.keys.copy_(drawn(1, 24) + 0.02 * drawn(16, 24, seed=1))
    e = F.normalize(drawn(1, 24) + 0.1 * drawn(50, 24, seed=2), dim=1)
    assert is_exact(lambda: method._cosines(e))


@pytest.mark.parametrize("gate_grad", ["none", "straight_through"])
def test_the_experts_of_a_sample_and_their_fusion(gate_grad):
    method = SMoLora(**SMALL, gate_grad=gate_grad)
    model = attached(method)
    learn(method, model, steps=2)
    model(**{k: v for k, v in batch_of(1, 5).items() if k != "labels"})
    name, layer = next(iter(pool_layers(model).items()))
    route = gate_context(model).gates_of(name)
    x = drawn(4, 12, layer.in_features)
    assert is_exact(lambda: route(x)) and route(x).dtype == torch.float32


def test_the_experts_of_a_token_and_the_task_of_a_prompt():
    method = LlavaCMoE(**SMALL, epochs=2)
    model = attached(method)
    for task in (1, 2):
        learn(method, model, task, steps=3)
    gate, layer = method.gate, next(iter(pool_layers(model).values()))
    x, mask = drawn(3, 7, layer.in_features), torch.ones(3, 7, dtype=torch.bool)
    with torch.no_grad():
        assert is_exact(lambda: gate.current(1, mask)[0](x))
        assert is_exact(lambda: gate.past(1, torch.tensor([0, 1, 1]))[0](x))
        assert is_exact(lambda: gate.locator.scores(drawn(5, 24)))


@pytest.mark.parametrize("training", [False, True])
def test_the_newest_prototype_is_as_exact_as_the_past_ones(training):
    method = ModalPrompt(**SMALL, prompt_length=4)
    model = attached(method)
    for task in (1, 2):
        learn(method, model, task, steps=2)
    model.train(training)

    def look():
        method._choose(prompt_of())
        return method._prompts.insertion.chosen, method._match_loss or torch.zeros(())

    assert is_exact(look)
    seen = []
    own = method._scores
    method._scores = lambda *given: seen.append(given[1:]) or own(*given)
    assert is_exact(lambda: (look(), seen.pop())[1])


def test_the_sketch_of_a_tasks_inputs():
    method = KeepLora(**SMALL)
    model = attached(method)
    layer = next(iter(pool_layers(model).values()))
    model(**{k: v for k, v in batch_of(1, 5).items() if k != "labels"})
    rows = batch_of(1, 5)["input_ids"].shape

    def look():
        sketch = MomentSketch(layer.in_features, 8)
        method._see(sketch, layer, (drawn(*rows, layer.in_features),))
        return sketch.tensors()

    assert is_exact(look)
