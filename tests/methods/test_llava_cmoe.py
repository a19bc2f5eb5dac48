from __future__ import annotations

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn
from undrift.errors import ConfigError
from undrift.methods.llava_cmoe import LlavaCMoE, Locator
from undrift.methods.shared.prompt_features import hidden_features
from undrift.tuner import ForwardContext
from undrift.tuner.pool_lora import gate_context, pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LENGTHS = (9, 12, 7, 10)


def made(**options):
    method = LlavaCMoE(**{**SMALL, "epochs": 3, **options})
    return method, attached(method)


def past(model):
    return {n: len(each.pool_lora_past_A["default"]) for n, each in pool_layers(model).items()}


def question(batch, row=None):
    batch = {key: value for key, value in batch.items() if key != "labels"}
    if row is None:
        return batch
    cut = slice(0, LENGTHS[row])
    return {
        k: v[row : row + 1, cut] if v.dim() == 2 else v[row : row + 1] for k, v in batch.items()
    }


def test_the_first_task_gives_every_linear_an_expert_without_a_probe():
    method, model = made()
    probed = []
    learn(method, model, steps=4, on_step=lambda step: probed.append(method.probing))
    assert not any(probed)
    assert set(past(model).values()) == {1}


@pytest.mark.parametrize("slack", [0.0, 100.0])
def test_only_linears_whose_probe_was_used_get_an_expert(slack):
    method, model = made(slack=slack, probe_share=0.5)
    learn(method, model, task=1, steps=4)
    seen = {}

    def look(step):
        routers = method.gate
        if step == 2:
            assert torch.equal(routers.used.sum(1), routers.tokens.expand(6))
            share = routers.used[:, 1] / routers.tokens
            deviation = share.std(correction=0)
            seen["wanted"] = share > share.mean() - slack * deviation
            seen["open"] = routers.open.clone()

    learn(method, model, task=2, steps=4, on_step=look)
    assert torch.equal(seen["open"], seen["wanted"]) and seen["open"].any()
    assert bool(seen["open"].all()) == (slack == 100.0)
    assert list(past(model).values()) == [1 + int(each) for each in seen["open"]]
    assert method.gate.counts.tolist() == [[1] * 6, list(past(model).values())]


def test_the_probe_is_thrown_away_with_its_momentum():
    method, model = made(probe_share=0.5, perturb=0.0, slack=100.0)
    learn(method, model, task=1, steps=4)
    layers = pool_layers(model).values()
    states = []

    def look(step):
        names = [each.pool_lora_B["default"] for each in layers]
        states.append([p in method._optimizer.state for p in names])
        if step == 2:  # each begins as its linear's most used old expert
            for each in layers:
                assert torch.equal(each.pool_lora_A["default"], each.pool_lora_past_A["default"])
                assert torch.equal(each.pool_lora_B["default"], each.pool_lora_past_B["default"])

    learn(method, model, task=2, steps=4, on_step=look)
    assert all(states[0]) and not any(states[1]) and all(states[2])


def test_copies_begin_a_little_aside():
    method, model = made(probe_share=0.5, perturb=0.01, slack=100.0)
    learn(method, model, task=1, steps=4)
    layer = next(iter(pool_layers(model).values()))
    apart = []

    def look(step):
        new, old = layer.pool_lora_A["default"], layer.pool_lora_past_A["default"]
        if step == 2:
            apart.append(float(((new - old).norm() / old.norm()).detach()))

    learn(method, model, task=2, steps=4, on_step=look)
    assert 0.005 < apart[0] < 0.02


def test_the_balancing_loss_moves_the_probes_router():
    method, model = made(top_k=1)
    learn(method, model, task=1, steps=4)
    method._step, method._probe_until = 0, 1
    model.train()
    method.loss(model, batch_of(2, 0))
    found = torch.autograd.grad(method.gate.imbalance(), list(method.gate.routers))
    assert all(each.abs().sum() > 0 for each in found)


def test_the_balancing_loss_is_added_during_the_probe_and_only_then():
    method, model = made(balance=0.5)
    learn(method, model, task=1, steps=4)
    model.train()
    for probe_until in (1, 0):
        method._step, method._probe_until = 0, probe_until
        batch = batch_of(2, 0)
        with_it = model(**batch).loss.detach()
        wanted = 0.5 * probe_until * method.gate.imbalance().detach()
        method._probe_until = 0
        extra = with_it - model(**batch).loss.detach()
        torch.testing.assert_close(extra, wanted, rtol=1e-4, atol=1e-5)
    assert method.gate.imbalance() > 0.5


@pytest.mark.filterwarnings("ignore:None of the inputs:UserWarning")  # the locator's own pass
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_count_a_token_once_or_are_refused(reentrant):
    method, model = made()
    learn(method, model, task=1, steps=4)
    model.enable_input_require_grads()
    model.train()
    method._step, method._probe_until = 0, 1
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            how = {"use_reentrant": reentrant}
            model.get_base_model().gradient_checkpointing_enable(how)
        method.gate.used.zero_()
        if checkpointed and reentrant:
            with pytest.raises(ConfigError, match="llava_cmoe's losses have no graph"):
                model(**batch_of(2, 0))
            return
        model(**batch_of(2, 0)).loss.backward()
        found.append((method.gate.used.clone(), [r.grad.clone() for r in method.gate.routers]))
        model.zero_grad()
    assert found[0][0].sum() > 0
    torch.testing.assert_close(found[1], found[0])


def test_the_output_is_the_top_k_sum_of_the_named_tasks_router():
    method, model = made(slack=100.0, oracle=True)
    for task in (1, 2, 3):
        learn(method, model, task=task, steps=4)
    name, layer = next(iter(pool_layers(model).items()))
    seen = {}
    layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    model.eval()
    for asked, first in ((1, 0), (2, 1), (3, 3)):
        method.asked = asked
        R = method.gate.rows["0"][first : first + asked]
        with torch.no_grad():
            model(**question(batch_of(1, 5)))
            x = seen["x"][1, 4]
            weights = (R @ x).softmax(0)
            wanted = layer.base_layer(x)
            for i in weights.topk(min(2, asked)).indices:
                A, B = (p["default"][i] for p in (layer.pool_lora_past_A, layer.pool_lora_past_B))
                wanted = wanted + 2.0 * weights[i] * (x @ A.T @ B)
            torch.testing.assert_close(seen["y"][1, 4], wanted, atol=1e-5, rtol=1e-4)
    assert name in gate_context(model).layers


def test_routing_does_not_depend_on_the_batch_or_the_padding_and_stays_while_decoding():
    method, model = made(slack=100.0)
    for task in (1, 2):
        learn(method, model, task=task, steps=4)
    batch = batch_of(1, 6)
    model.eval()
    with torch.no_grad():
        together = model(**question(batch)).logits
        for row, length in enumerate(LENGTHS):
            alone = model(**question(batch, row)).logits
            torch.testing.assert_close(alone[0], together[row, :length], atol=1e-4, rtol=1e-4)
    asked = []
    own = method._locate
    method._locate = lambda prompt: asked.append(own(prompt)) or asked[-1]
    model.generate(**question(batch, 1), max_new_tokens=3, min_new_tokens=3, num_beams=2)
    assert len(asked) == 1


def test_the_locator_tells_tasks_apart_and_knows_no_unseen_one():
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(3, 24, generator=generator)
    locator = Locator(24, 16, 6)
    assert locator.scores(places).shape == (3, 0)
    for task in range(3):
        z = places[task] + 0.3 * torch.randn(200, 24, generator=generator)
        locator.add(locator.fit(z, epochs=20, seed=task))
        own = locator.scores(z)[:, task]
        torch.testing.assert_close(own.mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
        torch.testing.assert_close(own.std(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    for task in range(3):
        z = places[task] + 0.3 * torch.randn(50, 24, generator=generator)
        assert (locator.scores(z).argmax(1) == task).float().mean() > 0.9


def test_the_locator_sees_the_base_model_and_its_accuracy_is_told():
    method, model = made(features=6)
    learn(method, model, task=1, steps=4)
    shown = []
    ForwardContext.of(model).on_prompt = lambda prompt: (
        shown.append(prompt),
        method._decide(prompt),
    )
    model.eval()
    with torch.no_grad():
        model(**question(batch_of(1, 5)))
    before = hidden_features(model, shown[0])
    learn(method, model, task=2, steps=4)
    assert torch.equal(hidden_features(model, shown[0]), before)  # no adapter in it
    model.eval()
    method.asked = 2
    with torch.no_grad():
        model(**question(batch_of(2, 5)))
    assert method.facts()["prompts"] == 4 and len(method.gate.features) == 0


def test_options_are_checked():
    with pytest.raises(ConfigError, match="probe_share is 1"):
        LlavaCMoE(probe_share=1.0)
    with pytest.raises(ConfigError, match="top_k is 0"):
        LlavaCMoE(top_k=0)
