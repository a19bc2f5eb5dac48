"""osf: PEFT's tuner on the language model, with as many directions to learn as the others' rank."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.methods.training import SMALL, attached, learn, logits, trainable
from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.errors import ConfigError
from undrift.methods.osf import Osf

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def osf_layers(model):
    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, peft.tuners.osf.layer.OSFLayer)
    }


def leak(layer, W):
    """The share of a weight's change that touches the directions to be preserved."""
    U, _, Vt = torch.linalg.svd(W, full_matrices=False)
    change = layer.get_delta_weight("default")
    return float((U[:, :12].mT @ change @ Vt[:12].mT).norm() / change.norm())


@torch.no_grad()
def leaks(model):
    base = tiny_llava()
    return [leak(layer, base.get_submodule(n).weight) for n, layer in osf_layers(model).items()]


def test_as_many_directions_learn_as_the_rank():
    model = attached(Osf(**SMALL))
    assert {p.shape for n, p in trainable(model).items() if "S_low" in n} == {(12,)}
    assert all("language_model" in name for name in trainable(model))
    assert len(osf_layers(model)) == 2 * 3


def test_gradients_spare_the_preserved_directions_and_adams_steps_nearly():
    model = attached(Osf(**SMALL))
    model(**tiny_batch()).loss.backward()
    torch.optim.SGD(trainable(model).values(), lr=1.0).step()
    assert max(leaks(model)) < 1e-4
    method = Osf(**SMALL)
    model = attached(method)
    learn(method, model, weight_decay=0)
    assert 1e-4 < max(leaks(model)) < 0.1


def test_peft_opens_what_it_has_saved(tmp_path):
    method = Osf(**SMALL)
    model = attached(method)
    learn(method, model)
    method.save_state(model, tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)


def test_the_share_that_is_preserved_can_be_given():
    model = attached(Osf(preserved=0.75, targets="all"))
    assert {p.shape for n, p in trainable(model).items() if "S_low" in n} == {(6,)}
    with pytest.raises(ConfigError, match="has 24 singular directions"):
        attached(Osf(experts=4, rank=6))
    with pytest.raises(ConfigError, match="preserved is 1"):
        Osf(preserved=1.0)
