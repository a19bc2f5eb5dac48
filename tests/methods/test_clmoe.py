"""clmoe: what is counted, that the merge is the one stated, and the mixed route at test."""

from __future__ import annotations

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn, logits, weights
from tests.precision import assert_same
from undrift.core.routing import route
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.clmoe import ClMoe
from undrift.methods.moelora import MoeLora
from undrift.tuner import layers

STATE_FILE = "clmoe_state.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def given(method, old, new):
    """A method that has counted these uses in two tasks, in one linear."""
    method.counts = {"it": torch.tensor([old, new])}
    return method


def merged(**options):
    """Learn two tasks; return before, after without merge, and after, of the second."""
    method = ClMoe(**SMALL, **options)
    model = attached(method)
    learn(method, model, task=1)
    before = weights(model)
    twin, free = attached(method), MoeLora(**SMALL)
    twin.load_state_dict(model.state_dict())
    learn(free, twin, task=2)
    learn(method, model, task=2)
    return method, before, weights(twin), weights(model)


@pytest.mark.parametrize("roles", ["paper", "code"])
def test_after_a_task_each_expert_is_the_stated_convex_combination(roles):
    method, before, after, merged_now = merged(roles=roles)
    kinds = set()
    for key, now in merged_now.items():
        linear = next(name for name in method.counts if f"{name}." in key)
        if "moe_lora_G" in key:
            assert torch.equal(now, after[key])
            continue
        keep = method.kept(linear)
        kinds |= {round(float(k), 4) for k in keep}
        for expert, share in enumerate(keep):
            expected = share * before[key][expert] + (1 - share) * after[key][expert]
            torch.testing.assert_close(now[expert], expected)
        assert not torch.equal(now, after[key])
    assert kinds <= ({0.7, 0.3, 1.0} if roles == "paper" else {0.7, 0.3})


def test_the_roles_of_the_paper_and_those_of_the_script():
    old, new = [9, 8, 1, 0], [9, 1, 8, 0]  # the first is shared, one old, one new, one neither
    paper = given(ClMoe(experts=4), old, new)
    torch.testing.assert_close(paper.kept("it"), torch.tensor([0.7, 1.0, 0.3, 0.7]))
    code = given(ClMoe(experts=4, roles="code"), old, new)
    torch.testing.assert_close(code.kept("it"), torch.tensor([0.7, 0.3, 0.7, 0.7]))
    few = given(ClMoe(experts=4, important=1, gamma=0.6), old, new)
    torch.testing.assert_close(few.kept("it"), torch.tensor([0.6, 0.6, 0.6, 0.6]))


def test_the_script_has_one_set_of_experts_for_the_whole_network():
    uses = {
        "one": torch.tensor([[9, 8, 0, 0], [9, 8, 0, 0]]),
        "two": torch.tensor([[0, 0, 99, 98], [99, 98, 0, 0]]),
    }
    paper, code = ClMoe(experts=4), ClMoe(experts=4, roles="code")
    paper.counts = code.counts = uses
    assert not torch.equal(paper.kept("one"), paper.kept("two"))
    assert torch.equal(code.kept("one"), code.kept("two"))
    torch.testing.assert_close(code.kept("one"), torch.tensor([0.7, 0.7, 0.3, 0.3]))


def test_the_two_best_experts_of_every_token_are_counted_and_padding_is_not():
    method = ClMoe(**SMALL)
    model = attached(method)
    name, layer = list(layers(model).items())[-1]
    G, expected = layer.moe_lora_G["default"], torch.zeros(4, dtype=torch.int64)

    def see(module, args):
        if module.training:
            real = batch_of(1, see.step)["attention_mask"].flatten().bool()
            best = (args[0].detach().flatten(0, -2)[real] @ G.detach().mT).topk(2).indices
            expected.add_(torch.bincount(best.flatten(), minlength=4))
            see.step += 1

    see.step = 0
    layer.register_forward_pre_hook(see)
    learn(method, model, steps=3)
    assert torch.equal(method.counts[name], expected[None])
    assert int(expected.sum()) == 2 * 3 * 38
    torch.testing.assert_close(method.task_level(name).sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize("top_k", [None, 2])
def test_at_test_the_route_is_mixed_with_the_mean_use_and_no_cross_terms(top_k):
    method = ClMoe(**SMALL, beta=0.25, top_k=top_k)
    model = attached(method)
    for task in (1, 2):
        learn(method, model, task=task)
    plain = logits(model)
    name, layer = next(iter(layers(model).items()))
    x = torch.randn(5, layer.in_features)
    with method.predicting(model):
        assert not torch.equal(logits(model), plain)
        got = layer(x)
    assert torch.equal(logits(model), plain)
    A, B, G = (m["default"] for m in (layer.moe_lora_A, layer.moe_lora_B, layer.moe_lora_G))
    uses = method.counts[name].double()
    fixed = (uses / uses.sum(1, keepdim=True)).mean(0).float()
    w = 0.25 * route(x @ G.mT, top_k) + 0.75 * fixed
    expected = layer.base_layer(x)
    for i in range(4):
        expected = expected + 2.0 * w[:, i : i + 1] * (x @ A[i].mT @ B[i])
    torch.testing.assert_close(got, expected)
    method.config = ClMoe(**SMALL, beta=1.0).config
    with method.predicting(model):
        assert_same(logits(model), plain)


def test_counts_and_the_experts_before_survive_a_checkpoint_inside_a_task(tmp_path):
    method = ClMoe(**SMALL)
    model = attached(method)
    learn(method, model, task=1, steps=2)

    def save(step):
        if step == 2:
            method.before_save(model)
            method.save_state(model, tmp_path)
            save.counted = {n: c.clone() for n, c in method._running.items()}

    start = weights(model)
    learn(method, model, task=2, steps=3, on_step=save)
    other = ClMoe(**SMALL)
    loaded = attached(other)
    other.load_state(loaded, tmp_path)
    for name, count in save.counted.items():
        assert torch.equal(other._running[name], count) and int(count.sum()) == 2 * 2 * 38
    for name, before in other._before.items():
        linear, key = name.rsplit(".", 1)
        assert torch.equal(before, start[f"base_model.model.{linear}.moe_lora_{key}.default"])
    wide = ClMoe(**SMALL, targets="all")
    wide.save_state(attached(wide), tmp_path / "wide")
    (tmp_path / "wide" / STATE_FILE).rename(tmp_path / STATE_FILE)
    with pytest.raises(AdapterMismatch, match="its linears are others"):
        other.load_state(loaded, tmp_path)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"beta is 1\.5"):
        ClMoe(beta=1.5)
    with pytest.raises(ConfigError, match="important is 9"):
        ClMoe(important=9)
