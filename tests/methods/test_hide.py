"""hide: experts added up below, mixed in the last layer; products, or factors as in public code."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.methods.pooled import (
    SCALE,
    answered,
    experts,
    learned,
    mixture,
    prompt,
    seen_and_said,
    with_answers,
)
from tests.methods.training import SMALL, attached, learn
from tests.precision import assert_same
from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.errors import ConfigError
from undrift.methods.hide import FUSED, Hide, last_layer
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(autouse=True)
def _prompts(monkeypatch):
    answered(monkeypatch)


def made(tasks=3, **options):
    method = Hide(**SMALL, **options)
    return method, learned(method, attached(method), tasks)


def last(model):
    return last_layer(model, pool_layers(model))


def test_the_last_layer_is_the_models_own_whatever_its_depth():
    method = Hide(**SMALL)
    model = method.attach(tiny_llava(num_hidden_layers=3))
    assert len(pool_layers(model)) == 9
    assert {name.split(".layers.")[1][0] for name in method._last} == {"2"}
    with pytest.raises(ConfigError, match="last layer"):
        Hide(targets=r".*language_model.*layers\.0\..*up_proj").attach(tiny_llava())


@pytest.mark.parametrize("expand", ["last", "all"])
def test_experts_are_weighed_in_the_last_layer_and_added_up_below(expand):
    method, model = made(expand=expand)
    with torch.no_grad():
        said = seen_and_said(model, prompt())
    weights = method._context.gates_of(next(iter(last(model))))
    assert weights.shape == (3, 3) and weights.std(1).min() > 0
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    for name, layer in pool_layers(model).items():
        x, y = said[name]
        mixed = name in last(model) or expand == "all"
        want = mixture(layer, x, weights if mixed else torch.ones(3))
        torch.testing.assert_close(y, want, rtol=1e-3, atol=1e-6)


def test_the_code_sums_factors_and_so_makes_cross_terms_that_the_paper_has_not(tmp_path):
    method, model = made(fuse="factors")
    with torch.no_grad():
        said = seen_and_said(model, prompt())
    for name, layer in pool_layers(model).items():
        x, y = said[name]
        A, B = experts(layer)
        summed = SCALE * ((x @ A.sum(0).mT) @ B.sum(0))
        product = mixture(layer, x, torch.ones(3))
        if name not in last(model):
            torch.testing.assert_close(y, summed, rtol=1e-3, atol=1e-6)
            assert (y - product).abs().max() > 0.1 * product.abs().max()
    method.save_state(model, tmp_path)
    assert not [key for key in load_file(tmp_path / "adapter_model.safetensors") if FUSED in key]
    again = Hide(**SMALL, fuse="factors")
    other = attached(again)
    again.load_state(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(other.eval()(**prompt()).logits, model(**prompt()).logits)


def test_factors_are_summed_when_a_task_ends_and_a_new_task_learns_alone_again():
    method, model = made(tasks=2, fuse="factors")
    layer = method._below[next(iter(method._below))]
    before = layer.pool_lora_A[FUSED].clone()
    torch.testing.assert_close(before, experts(layer)[0].sum(0, keepdim=True))
    model(**prompt())
    method.task_start(model, 3, 5)
    model.train()
    for x, y in seen_and_said(model, with_answers(tiny_batch())).values():  # the newest's B is zero
        assert_same(y, torch.zeros_like(y), scale=float(x.abs().max()))
    assert torch.equal(layer.pool_lora_A[FUSED], before)
    method.task_end(model)
    method._keep(model, anew=True)  # the test stands for a trainer
    learn(method, model, task=4, steps=1)
    assert not torch.equal(layer.pool_lora_A[FUSED], before)


def test_with_one_task_products_and_factors_are_the_same():
    models = [made(tasks=1, fuse=fuse)[1] for fuse in ("product", "factors")]
    with torch.no_grad():
        product, factors = (model(**prompt()).logits for model in models)
    torch.testing.assert_close(product, factors)


def test_pictures_and_texts_share_the_score():
    weights = []
    for share in (0.0, 0.5, 1.0):
        method, model = made(image_share=share, tau=0.05)
        with torch.no_grad():
            model(**prompt())
        weights.append(method._context.gates_of(next(iter(last(model)))).log() * 0.05)
    scores = [w - w.mean(1, keepdim=True) for w in weights]
    torch.testing.assert_close(scores[1], (scores[0] + scores[2]) / 2, rtol=1e-3, atol=1e-4)


def test_while_a_task_is_learned_its_expert_works_alone():
    method, model = made(tasks=2)
    method.task_start(model, 3, 5)
    model.train()
    for x, y in seen_and_said(model, with_answers(tiny_batch())).values():
        assert_same(y, torch.zeros_like(y), scale=float(x.abs().max()))


def test_the_oracle_uses_the_task_asked_in_the_last_layer():
    method, model = made(oracle=True)
    method.asked = 1
    with torch.no_grad():
        model(**prompt())
    gates = method._context.gates_of(next(iter(last(model))))
    assert gates.tolist() == [[1.0, 0.0, 0.0]] * 3
    assert method._context.gates_of(next(iter(method._below))) == "all"


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"image_share": 2.0}, {"fuse": "sum"}])
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        Hide(**wrong)
