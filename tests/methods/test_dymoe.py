"""dymoe: what scores say of a token, whom it is steered to, and how experts and routers grow."""

from __future__ import annotations

import math

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn, trainable
from undrift.errors import ConfigError
from undrift.methods.dymoe import DyMoE, Routers, margin, token_loss
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
N = SMALL["rank"]  # experts of rank 1 in a group
OFF = {"separation": 0.0, "specialisation": 0.0}


def taught(tasks, **options):
    method = DyMoE(**{**SMALL, **options})
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task, steps=2)
    return method, model


class Looks:
    """What every linear reads in the next pass."""

    def __init__(self, model):
        self.x, self.layers = {}, pool_layers(model)
        for name, layer in self.layers.items():
            layer.register_forward_pre_hook(lambda _, given, name=name: self.see(name, given[0]))

    def see(self, name, x):
        self.x[name] = x.detach()


# ---------------------------------------------------------------- tokens


def test_a_group_scores_as_its_best_expert():
    new, old = torch.tensor([[1.0, 4.0], [0.0, -1.0]]), torch.tensor([[3.0, 2.0, -9.0], [5, 6, 7]])
    assert margin(new, old).tolist() == [1.0, -7.0]


def test_old_and_ambiguous_tokens_are_steered_off_and_new_ones_drawn_to_the_new_group():
    p = torch.tensor([0.9, 0.61, 0.59, 0.5, 0.1], dtype=torch.float64)
    m = p.logit().requires_grad_()
    found = token_loss(m, 0.2, guidance=2.0, separation=0.0, specialisation=3.0)
    by_hand = [-3 * math.log(0.9), -3 * math.log(0.61)]  # 2 p - 1 > 0.2: new
    by_hand += [-2 * math.log(0.41), -2 * math.log(0.5), -2 * math.log(0.9)]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64))
    (slope,) = torch.autograd.grad(found.sum(), m)  # d/dm: 3 (p - 1) and 2 p
    expected = torch.tensor([-0.3, -1.17, 1.18, 1.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(slope, expected)


def test_a_token_that_both_groups_share_costs_most():
    p = torch.tensor([0.5, 0.75, 0.25, 0.999])
    found = token_loss(p.logit(), 0.2, 0.0, separation=0.5, specialisation=0.0)
    torch.testing.assert_close(found, 0.5 * torch.tensor([1.0, 0.75, 0.75, 0.003996]))


# ---------------------------------------------------------------- growth


def test_old_experts_and_rows_stay_and_new_rows_begin_beside_the_last():
    method, model = taught(1)
    gate, layers = method.gate, pool_layers(model)
    rows = [row.detach().clone() for row in gate.new]
    experts = {n: each.pool_lora_A["default"].detach().clone() for n, each in layers.items()}
    drift = []

    def look(step):
        for place, (name, layer) in enumerate(layers.items()):
            new, old = gate.rows(name)
            assert torch.equal(old, rows[place])
            assert torch.equal(layer.pool_lora_past_A["default"], experts[name])
            drift.append(float(((new - old).norm() / old.norm()).detach()))

    learn(method, model, 2, steps=1, on_step=look)
    assert min(drift) > 0.05 and max(drift) < 0.5
    second = [row.detach().clone() for row in gate.new]
    learn(method, model, 3, steps=1)
    for place, name in enumerate(layers):  # in the order of the experts, oldest first
        assert torch.equal(gate.rows(name)[1], torch.cat([rows[place], second[place]]))
    assert {len(each.pool_lora_past_A["default"]) for each in layers.values()} == {2 * N}
    assert {len(old) for old in gate.old.values()} == {2 * N} and method.past(model) == 2


def test_a_new_row_is_as_far_off_as_the_option_says():
    method = DyMoE(**SMALL, perturb=0.0)
    gate = Routers({"linear": 400}, method.config)
    first = gate.new[0].detach().clone()
    gate.grow(1)
    assert torch.equal(gate.new[0], first) and torch.equal(gate.rows("linear")[1], first)
    gate.perturb = 0.1
    gate.grow(2)
    off = (gate.new[0].detach() - first).norm() / first.norm()
    torch.testing.assert_close(off, torch.tensor(0.1), rtol=0.1, atol=0)
    assert len(gate.rows("linear")[1]) == 2 * N


def test_the_first_tasks_router_learns():
    method, model = taught(0)
    before = [row.detach().clone() for row in method.gate.new]
    assert all(float(row.std()) < 0.05 for row in before)
    learn(method, model, 1, steps=2, weight_decay=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.gate.new, strict=True))


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("top_k", [None, 1, 100])
def test_the_output_is_the_top_k_sum_over_old_and_new_experts(top_k):
    method, model = taught(2, top_k=top_k)
    model.eval()
    name, layer = next(iter(pool_layers(model).items()))
    seen = {}
    layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    batch = {key: value for key, value in batch_of(1, 5).items() if key != "labels"}
    with torch.no_grad():
        model(**batch)
    x = seen["x"][1, 4]
    pairs = [torch.cat([held["default"], new]) for new, held in layer.pairs("default")]
    new, old = method.gate.rows(name)
    scores = torch.cat([old, new]) @ x
    best = scores.topk(min(top_k or N, 2 * N)).indices
    weights = scores[best].softmax(0)
    wanted = layer.base_layer(x)
    for i, weight in zip(best, weights, strict=True):
        A, B = (pair[i, 0] for pair in pairs)
        wanted = wanted + 2.0 * weight * (A @ x) * B
    torch.testing.assert_close(seen["y"][1, 4], wanted, atol=1e-5, rtol=1e-4)


def by_hand(method, looks, guidance):
    """-guidance log(1 - p) of tokens that are not new, over the prompts' six tokens."""
    losses = []
    for name, x in looks.x.items():
        new, old = method.gate.rows(name)
        p = ((x @ new.mT).amax(-1) - (x @ old.mT).amax(-1)).sigmoid()[:, :6]
        each = torch.where(2 * p - 1 > method.config.ambiguity, 0.0, -(1 - p).log())
        losses.append(guidance * each.mean())
    return torch.stack(losses).mean()


def test_the_guidance_is_added_behind_the_warm_up_of_the_second_task():
    method, model = taught(1, guidance=0.7, warmup_share=0.5, **OFF)
    model.train()
    model(**batch_of(1, 0))
    assert not method._losses and method._guided() is None  # the first task has no old experts
    learn(method, model, 2, steps=4)
    model.train()
    method._steps, looks, batch, found = 4, Looks(model), batch_of(2, 0), []
    for step in (1, 2):
        method._step = step
        found.append(model(**batch).loss.detach())
    expected = by_hand(method, looks, 0.7).detach()
    assert expected > 0.01
    torch.testing.assert_close(found[1] - found[0], expected, rtol=1e-4, atol=1e-5)


def test_the_losses_move_new_rows_and_nothing_else():
    method, model = taught(2)
    model.train()
    names, parameters = zip(*trainable(model).items(), strict=True)
    losses, guided = [], method._guided
    method._added._term = lambda: losses.append(guided())
    model(**batch_of(2, 0))
    found = torch.autograd.grad(losses[0], parameters, allow_unused=True)
    moved = {n for n, g in zip(names, found, strict=True) if g is not None and g.abs().sum() > 0}
    assert moved == {n for n in names if ".new." in n} and len(moved) == 6


def test_checkpoints_that_would_lose_the_losses_are_refused():
    _, model = taught(2)
    model.enable_input_require_grads()
    model.train()
    found = []
    for reentrant in (False, True):
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            with pytest.raises(ConfigError, match="'use_reentrant': False"):
                model(**batch_of(2, 0))
        else:
            found.append(float(model(**batch_of(2, 0)).loss.detach()))
    model.get_base_model().gradient_checkpointing_disable()
    assert found == [float(model(**batch_of(2, 0)).loss.detach())]


def test_guidance_keeps_the_tokens_of_an_old_task_off_new_experts():
    ahead = {}
    for guidance in (0.0, 1.0):
        method, model = taught(1, guidance=guidance, warmup_share=0.0, **OFF)
        looks = Looks(model)
        learn(method, model, 1, steps=16, weight_decay=0)  # the second task is the first again
        rows = {name: method.gate.rows(name) for name in looks.x}
        found = [margin(looks.x[n][:, :6] @ new.mT, looks.x[n][:, :6] @ old.mT).mean()
                 for n, (new, old) in rows.items()]  # fmt: skip
        ahead[guidance] = float(torch.stack(found).mean().detach())
    assert ahead[1.0] < ahead[0.0] - 0.03


def test_idle_are_the_experts_that_a_token_is_not_routed_to():
    method, model = taught(3)
    per_expert = sum(each.in_features + each.out_features for each in pool_layers(model).values())
    assert method.idle_parameters(model) == 2 * N * per_expert
    method, model = taught(1, top_k=2)
    assert method.idle_parameters(model) == (N - 2) * per_expert
    with pytest.raises(ConfigError, match="top_k is 0, expected None, or 1 or more"):
        DyMoE(top_k=0)
