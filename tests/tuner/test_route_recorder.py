"""Routes as a model has them; measures of their drift against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tuner.llava import tiny_batch, tiny_experts
from tests.tuner.pools import tiny_pool
from undrift.errors import ConfigError
from undrift.tuner import layers
from undrift.tuner.pool_lora import gate_context
from undrift.tuner.route_recorder import (
    compare,
    drift,
    inputs_seen,
    mean,
    recorded,
    routed_layers,
    use,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

ROUTES = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])


def test_the_same_routes_have_not_drifted_at_all():
    assert drift(ROUTES, ROUTES.clone()) == (100.0, 0.0, 0.0, 100.0)


def test_permuted_experts_give_what_paper_and_pencil_give():
    found = drift(ROUTES, ROUTES[:, [1, 0, 2]])
    # mean routes (0.3, 0.55, 0.15) and (0.55, 0.3, 0.15): 0.3 + 0.3 + 0.15 in common
    assert found.overlap == pytest.approx(75.0)
    # half of 0.2 + 0.2 and half of 0.7 + 0.7
    assert found.tv == pytest.approx((0.2 + 0.7) / 2)
    assert found.top1 == 0.0
    tokens = [_js((0.5, 0.3), (0.3, 0.5)), _js((0.1, 0.8), (0.8, 0.1))]
    assert found.js == pytest.approx(sum(tokens) / 2)


def _js(p: tuple[float, float], q: tuple[float, float]) -> float:
    pairs = [(a, (a + b) / 2) for a, b in zip(p, q, strict=True)]
    pairs += [(b, (a + b) / 2) for a, b in zip(p, q, strict=True)]
    return sum(a * math.log2(a / m) for a, m in pairs) / 2


def test_routes_to_quite_other_experts_are_as_far_apart_as_can_be():
    before, after = torch.eye(4)[:1].expand(5, 4), torch.eye(4)[1:2].expand(5, 4)
    assert drift(before, after) == (0.0, 1.0, 1.0, 0.0)


def test_one_token_of_four_that_changes_its_expert():
    before = torch.eye(2)[[0, 0, 1, 1]]
    after = torch.eye(2)[[0, 0, 1, 0]]
    assert drift(before, after) == pytest.approx((75.0, 0.25, 0.25, 75.0))


def test_experts_that_were_not_there_before_count_as_unused():
    before = torch.tensor([[1.0], [1.0]])
    after = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert drift(before, after)[0::2] == pytest.approx((62.5, 0.375))


def test_a_model_is_the_mean_of_its_linears():
    other = {"up": ROUTES, "down": ROUTES[:, [1, 0, 2]]}
    found = compare({"up": ROUTES, "down": ROUTES}, other)
    assert found == mean([drift(ROUTES, ROUTES), drift(ROUTES, other["down"])])
    assert found.overlap == pytest.approx(87.5)


def test_routes_of_other_tokens_or_linears_are_refused():
    with pytest.raises(ConfigError, match="2 and of 1 tokens"):
        drift(ROUTES, ROUTES[:1])
    with pytest.raises(ConfigError, match="of 1 and of 0 linears"):
        compare({"up": ROUTES}, {})


def test_use_of_even_and_of_lonely_experts():
    even = use(torch.full((3, 4), 0.25))
    assert even.shares == [0.25] * 4
    assert (even.entropy, even.spread, even.balance) == pytest.approx((100, 100, 1))
    lonely = use(torch.eye(4)[[2, 2, 2]])
    assert (lonely.entropy, lonely.spread, lonely.balance) == (0, 0, 4)
    in_turn = use(torch.eye(4))  # every token sure of its expert, every expert used alike
    assert (in_turn.entropy, in_turn.spread, in_turn.balance) == pytest.approx((0, 100, 1))
    assert use(torch.ones(2, 1)).entropy == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_recorded_routes_are_those_of_the_tokens_and_not_of_padding(side):
    model = tiny_experts().eval()
    batch = tiny_batch(side=side)
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, a: inputs.update({m.name: a[0].clone()}))
        for layer in layers(model).values()
    ]
    with recorded(model) as recorder, torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    found = recorder.routes()
    assert found.keys() == inputs.keys() == routed_layers(model).keys()
    kept = batch["attention_mask"].bool()
    for name, layer in routed_layers(model).items():
        G = layer.moe_lora_G["default"].detach()
        torch.testing.assert_close(found[name], (inputs[name][kept] @ G.mT).softmax(-1))
        assert found[name].shape == (9 + 12 + 7, 4)


def test_recording_changes_nothing_and_ends():
    model = tiny_experts().eval()
    batch = tiny_batch()
    with torch.no_grad():
        before = model(**batch).logits
        with recorded(model) as recorder:
            assert torch.equal(model(**batch).logits, before)
        seen = len(next(iter(recorder.routes().values())))
        model(**batch)
        assert len(next(iter(recorder.routes().values()))) == seen


def test_top_k_and_the_task_level_are_part_of_the_route():
    model = tiny_experts(top_k=2).eval()
    with recorded(model) as recorder, torch.no_grad():
        model(**tiny_batch())
    for routes in recorder.routes().values():
        assert ((routes > 0).sum(1) == 2).all()
    for layer in layers(model).values():
        layer.blend = (0.5, torch.tensor([1.0, 0, 0, 0]))
    with recorded(model) as blended, torch.no_grad():
        model(**tiny_batch())
    first = next(iter(blended.routes().values()))
    assert (first[:, 0] >= 0.5).all()
    torch.testing.assert_close(first.sum(1), torch.ones(len(first)))


def test_a_pool_shares_by_the_size_of_its_gates():
    model = tiny_pool(tasks=3).eval()
    batch = tiny_batch()

    def routes(gates):
        gate_context(model).set_gates(gates)
        with recorded(model) as recorder, torch.no_grad():
            model(**batch)
        return next(iter(recorder.routes().values()))

    assert torch.equal(routes("newest"), torch.eye(3)[[2] * 28])
    torch.testing.assert_close(routes("all"), torch.full((28, 3), 1 / 3))
    of_samples = routes(torch.tensor([[2.0, 1, 1], [0, 3, 0], [0, 0, 0.5]]))
    lengths = torch.tensor([9, 12, 7])
    expected = torch.tensor([[0.5, 0.25, 0.25], [0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(of_samples, expected.repeat_interleave(lengths, 0))


def test_a_mask_that_does_not_fit_is_refused():
    model = tiny_experts().eval()
    base = model.get_base_model()
    with (
        pytest.raises(ConfigError, match="whole prompts"),
        inputs_seen(model, lambda *seen: None),
        torch.no_grad(),
    ):
        base.register_forward_pre_hook(
            lambda *_: print(base.get_decoder()(inputs_embeds=torch.zeros(1, 2, 24)))
        )
        model(**tiny_batch())
