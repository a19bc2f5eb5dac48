from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.methods import training
from tests.methods.training import SMALL, attached, batch_of, learn
from undrift.methods.continual_llava import ContinualLlava
from undrift.methods.shared.prompt_features import embedding_centre
from undrift.tuner import ForwardContext
from undrift.tuner.pool_lora import gate_context, pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def made(**options):
    method = ContinualLlava(**{**SMALL, "chosen": 2, **options})
    return method, attached(method)


def gates_of(method, model, batch):
    """The gates that a prompt sets, of all linears alike."""
    model.eval()
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    context: ForwardContext = gate_context(model)
    return context.gates_of(next(iter(pool_layers(model)))).clone(), logits


def test_shares_are_the_nearest_keys_cosines_over_their_sum():
    method, model = made()
    learn(method, model, steps=3)
    batch = batch_of(1, 50)
    gates, _ = gates_of(method, model, batch)
    centre = embedding_centre(model)
    keys = method._gate.keys.detach()
    for row in range(4):
        words = batch["input_ids"][row][batch["attention_mask"][row] == 1][4:]
        e = F.normalize(model.get_input_embeddings()(words).double().mean(0) - centre, dim=0)
        cosines = F.normalize(keys.double(), dim=1) @ e
        best = cosines.topk(2)
        share = best.values.clamp_min(0)
        wanted = torch.zeros(4, dtype=torch.float64).scatter(
            0, best.indices, share / share.sum().clamp_min(1e-12)
        )
        torch.testing.assert_close(gates[row].double(), wanted, atol=1e-5, rtol=1e-5)
    assert (gates > 0).sum(1).max() == 2


def test_routing_does_not_depend_on_the_batch_or_the_padding():
    method, model = made()
    learn(method, model, task=1, steps=3)
    learn(method, model, task=2, steps=3)
    batch = batch_of(1, 60)
    together, logits = gates_of(method, model, batch)
    for row, length in enumerate((9, 12, 7, 10)):
        one = {k: v[row : row + 1] for k, v in batch.items()}
        one = {k: v[:, :length] if v.dim() == 2 else v for k, v in one.items()}
        alone, said = gates_of(method, model, one)
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(said[0], logits[row, :length], atol=1e-4, rtol=1e-4)


def test_first_only_the_keys_move_then_only_increments_and_weights():
    method, model = made(align_share=0.5)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    seen = []

    def moved(step):
        now = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        seen.append({n for n in now if not torch.equal(now[n], start[n])})
        start.update(now)

    learn(method, model, steps=6, on_step=moved)
    assert all(names == {"base_model.model.undrift_gate.keys"} for names in seen[:3])
    assert all("base_model.model.undrift_gate.keys" not in names for names in seen[3:])
    assert any("pool_lora_A" in name for name in seen[-1])
    seen.clear()
    learn(method, model, task=2, steps=6, on_step=moved)
    assert any("undrift_gate.weights" in name for name in seen[-1])


def test_the_alignment_draws_the_chosen_keys_to_the_instructions(monkeypatch):
    always = batch_of(1, 0)
    monkeypatch.setattr(training, "batch_of", lambda task, step: dict(always))
    method, model = made(align_share=0.9)
    near = []

    @torch.no_grad()
    def look(step):
        near.append(float(method._cosines(method._queries)[0].mean()))

    learn(method, model, steps=30, weight_decay=0.0, on_step=look)
    assert near[26] > near[0] + 0.01 and near[-1] == near[27]


def test_a_finished_task_is_its_mean_shares_and_a_copy_of_the_pool():
    method, model = made()
    learn(method, model, task=1, steps=5)
    shares = torch.cat([method._shares(e) for e in [method._queries]])
    assert method._gate.mean.shape == shares.shape[1:]
    layer = next(iter(pool_layers(model).values()))
    ended = layer.pool_lora_B["default"].detach().clone()
    assert ended.abs().sum() > 0
    learn(method, model, task=2, steps=5)
    assert torch.equal(layer.pool_lora_past_B["default"], ended)  # bit for bit
    assert not torch.equal(layer.pool_lora_B["default"], ended)  # the pool itself goes on
    learn(method, model, task=3, steps=5)
    assert layer.pool_lora_past_B["default"].shape[0] == 2 * 4
    assert method._gate.picked.shape == (2, 4)
    gates, _ = gates_of(method, model, batch_of(3, 9))
    wanted = method._gate.weights.detach()[:2, None] * method._gate.picked
    torch.testing.assert_close(gates[0, :8], wanted.flatten())
    assert wanted[0].abs().sum() > 0


def test_mean_shares_are_exact():
    method, model = made()
    seen = []
    own = method._shares
    method._shares = lambda e: seen.append(own(e)) or seen[-1]
    learn(method, model, steps=6)
    exact = torch.cat(seen).double().mean(0)
    torch.testing.assert_close(method._gate.mean.double(), exact, atol=1e-7, rtol=1e-6)


def test_used_increments_are_held_with_freeze_used():
    for freeze in (True, False):
        method, model = made(freeze_used=freeze, chosen=1)
        learn(method, model, task=1, steps=4)
        used = (method._gate.mean > 0).nonzero().flatten()
        layer = next(iter(pool_layers(model).values()))
        before = layer.pool_lora_A["default"].detach().clone()
        learn(method, model, task=2, steps=4)
        same = torch.equal(layer.pool_lora_A["default"][used], before[used])
        assert same == freeze
