"""disco: experts that learn alone, mixed in every linear by the likeness of the text."""

from __future__ import annotations

import pytest
import torch

from tests.methods.pooled import answered, learned, mixture, prompt, seen_and_said, with_answers
from tests.methods.training import SMALL, attached, batch_of
from tests.precision import assert_same
from tests.tuner.llava import tiny_batch
from undrift.errors import ConfigError
from undrift.methods.disco import Disco
from undrift.methods.shared.prompt_features import features
from undrift.tuner import ForwardContext
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(autouse=True)
def _prompts(monkeypatch):
    answered(monkeypatch)


def made(tasks=3, **options):
    method = Disco(**SMALL, **options)
    return method, learned(method, attached(method), tasks)


def weights_of(method, model, batch):
    """The gates of a batch, as its linears are given them."""
    with torch.no_grad():
        model(**batch)
    (gates,) = {id(g): g for g in map(method._context.gates_of, pool_layers(model))}.values()
    return gates


def features_of(method, model, batch):
    seen = []
    context = ForwardContext.of(model)
    before, context.on_prompt = context.on_prompt, seen.append
    method._context.set_gates("all")
    with torch.no_grad():
        model(**batch)
    context.on_prompt = before
    return features(seen[0], method._centre)


def test_the_prototype_of_each_task_is_the_mean_text_of_its_examples():
    method, model = made(tasks=2)
    for task in (1, 2):
        rows = [
            features_of(method, model, with_answers(batch_of(task, step))).of["text"]
            for step in range(2)
        ]
        mean = torch.cat(rows).double().mean(0)
        torch.testing.assert_close(method._matcher.prototypes("text")[task - 1], mean)
    assert method._matcher.counts["text"].tolist() == [8, 8]


@pytest.mark.parametrize("centred", [True, False])
def test_every_linear_answers_the_sum_over_experts_weighed_by_the_softmax_of_the_cosines(centred):
    method, model = made(centred=centred)
    batch = prompt()
    own, mu = (
        features_of(method, model, batch).of["text"].double(),
        method._matcher.prototypes("text"),
    )
    if centred:
        own, mu = own - mu.mean(0), mu - mu.mean(0)
    cosine = torch.nn.functional.cosine_similarity(own[:, None], mu[None], dim=2)
    want = (cosine / 0.05).softmax(1).float()
    said = seen_and_said(model, batch)
    assert len(said) == 6
    for name, layer in pool_layers(model).items():
        x, y = said[name]
        torch.testing.assert_close(y, mixture(layer, x, want), rtol=1e-3, atol=1e-6)


def test_while_a_task_is_learned_its_expert_works_alone():
    method, model = made(tasks=2)
    method.task_start(model, 3, 5)
    model.train()
    said = seen_and_said(model, with_answers(tiny_batch()))
    for x, y in said.values():  # the newest's B is zero
        assert_same(y, torch.zeros_like(y), scale=float(x.abs().max()))
        assert x.any()
    assert int(method._matcher.state().tensors["text.running_count"]) == 3
    model.eval()(**prompt())  # an evaluation inside the task is no training example
    assert int(method._matcher.state().tensors["text.running_count"]) == 3


@pytest.mark.parametrize("modality", ["text", "image", "both"])
def test_each_modality_decides_where_it_is_chosen(modality):
    method, model = made(modality=modality)
    compared = {"both": {"image", "text"}}.get(modality, {modality})
    assert set(method._matcher.sums) == compared
    first, other = prompt(), prompt()
    other["pixel_values"] = -other["pixel_values"]
    same = torch.equal(weights_of(method, model, first), weights_of(method, model, other))
    assert same is (modality == "text")


def test_a_sample_without_a_picture_is_decided_by_its_own_text_not_by_the_last_sample():
    method, model = made(modality="both")
    ids = torch.tensor([[5, 9, 30, 31]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    first = weights_of(method, model, text)
    before = weights_of(method, model, prompt())
    again = weights_of(method, model, text)
    assert torch.equal(first, again) and not torch.allclose(again, before[:1])


def test_argmax_and_the_oracle_give_one_expert_everything():
    method, model = made()
    best = weights_of(method, model, prompt()).argmax(1)
    sharp, model = made(choice="argmax")
    gates = weights_of(sharp, model, prompt())
    assert torch.equal(gates.argmax(1), best) and gates.max(1).values.tolist() == [1.0] * 3
    told, model = made(oracle=True)
    told.asked = 2
    assert weights_of(told, model, prompt()).tolist() == [[0.0, 1.0, 0.0]] * 3
    assert told.facts()["prompts"] == 3
    told.asked = None
    with pytest.raises(ConfigError, match="needs to be told"):
        model(**prompt())


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ConfigError, match="tau"):
        Disco(tau=0.0)
