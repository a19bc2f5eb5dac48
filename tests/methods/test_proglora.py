"""proglora: gates from the prompt alone, keys and query network, recall, static and dynamic."""

from __future__ import annotations

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn
from tests.precision import assert_same
from tests.tuner.llava import IMAGE_TOKEN, tiny_batch
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.proglora import KeyGate, ProgLora
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def taught(tasks=2, steps=4, setting=None, **options):
    method = ProgLora(setting, **SMALL, **options)
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task=task, steps=steps)
    return method, model


def gates_of(method, model, batch):
    """The gates that a forward pass leaves behind."""
    model.eval()(**batch)
    return method._context.gates_of("").detach().clone()


def questions(**kwargs):
    batch = tiny_batch(**kwargs)
    del batch["labels"]
    return batch


def test_the_gate_is_the_softmax_of_what_the_keys_say_of_the_largest_embeddings():
    method, model = taught(tasks=3)
    batch = questions()
    found, gate = gates_of(method, model, batch), method.gate.requires_grad_(False)
    body = model.get_base_model()
    features = iter(torch.cat(list(body.get_image_features(batch["pixel_values"]).pooler_output)))
    for row in range(3):
        prompt = []
        for token, there in zip(batch["input_ids"][row], batch["attention_mask"][row], strict=True):
            if there:
                image = token == IMAGE_TOKEN
                prompt.append(next(features) if image else body.get_input_embeddings()(token))
        x = torch.stack(prompt).max(0).values
        middle = gate.query.down.weight @ x
        q = gate.query.norm(gate.query.up.weight @ (middle * middle.sigmoid()))
        keys = [*gate.past_keys, gate.key]
        z = torch.stack([key @ q / 24**0.5 for key in keys])
        torch.testing.assert_close(found[row], z.softmax(0))


def test_all_blocks_are_weighed_alike_in_all_layers_in_training_and_at_test():
    method, model = taught(tasks=2)
    batch = questions()
    asked = model.eval()(**batch).logits
    gate = method._context.gates_of("")
    assert gate.shape == (3, 2) and torch.allclose(gate.sum(1), torch.ones(3))
    assert_same(model.train()(**batch).logits, asked)
    method._context.set_gates("all")
    layer = next(iter(pool_layers(model).values()))
    x = torch.randn(3, 5, layer.in_features)
    parts = []
    for expert in range(2):
        method._context.set_gates(torch.eye(2)[expert])
        parts.append(layer(x) - layer.base_layer(x))
    method._context.set_gates(gate)
    expected = layer.base_layer(x) + sum(gate[:, i, None, None] * parts[i] for i in range(2))
    torch.testing.assert_close(layer(x), expected)


def test_key_and_query_are_trained_and_what_is_past_stays_bit_for_bit():
    method, model = taught(tasks=2)
    keys = torch.stack([*method.gate.past_keys, method.gate.key]).detach().clone()
    left = {n: p.detach().clone() for n, p in method.gate.query.named_parameters()}
    experts = {n: layer.pool_lora_B["default"].detach().clone()
               for n, layer in pool_layers(model).items()}  # fmt: skip
    learn(method, model, task=3)
    gate = method.gate
    assert torch.equal(gate.past_keys, keys)
    assert not list(gate.past_query.parameters())
    for name, p in gate.past_query.named_buffers():
        assert torch.equal(p, left[name])
        assert not torch.equal(dict(gate.query.named_parameters())[name], p)
    for name, layer in pool_layers(model).items():
        assert torch.equal(layer.pool_lora_past_B["default"][-1:], experts[name])
    gate.zero_grad()
    method.loss(model.train(), batch_of(3, 0)).backward()
    assert all(p.grad is not None and p.grad.any() for p in gate.parameters() if p.requires_grad)


def test_recall_is_the_divergence_among_old_experts_and_moves_the_query_network():
    method, model = taught(tasks=2)
    x = torch.randn(5, 24)
    assert method.gate.recall(x) is None  # one old expert: nothing to choose among
    method.task_start(model, 3, 10)
    gate = method.gate
    assert float(gate.recall(x).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        gate.query.up.weight.add_(0.3 * torch.randn_like(gate.query.up.weight))
        old = (gate.past_query(x) @ gate.past_keys.T / 24**0.5).softmax(1)
        new = (gate.query(x) @ gate.past_keys.T / 24**0.5).softmax(1)
    loss = gate.recall(x)
    torch.testing.assert_close(loss, (old * (old / new).log()).sum(1).mean(), rtol=1e-4, atol=1e-6)
    loss.backward()
    assert gate.query.up.weight.grad.any() and gate.query.down.weight.grad.any()
    assert gate.key.grad is None and gate.past_query.up.weight.grad is None


def test_the_loss_holds_the_recall_with_its_weight():
    _, model = taught(tasks=3)
    batch, losses = batch_of(3, 0), []
    model.train()
    for weight in (0.0, 1.0, 10.0):
        other = ProgLora(**SMALL, recall=weight)
        other.task_resume(model, 3, 10)
        recalled, own = [], other.gate.recall
        other.gate.recall = lambda x, own=own, seen=recalled: seen.append(own(x)) or seen[-1]
        losses.append(float(model(**batch).loss.detach()))  # as a trainer of one's own would
        del other.gate.recall
        recall = float(recalled[-1].detach())
    assert recall > 0
    assert losses[1] - losses[0] == pytest.approx(recall, rel=1e-2, abs=1e-6)
    assert losses[2] - losses[0] == pytest.approx(10 * recall, rel=1e-2, abs=1e-6)


def test_static_uses_the_mean_gate_of_the_task_that_is_told_and_dynamic_the_samples_own():
    method = ProgLora("static", **SMALL)
    model, seen = attached(method), []
    for task in (1, 2):
        noted = []

        def note(step, noted=noted):
            noted.append(method._context.gates_of("").detach().clone())

        learn(method, model, task=task, steps=4, on_step=note)
        seen.append(torch.cat(noted[2:]).mean(0))
    batch = questions()
    with pytest.raises(ConfigError, match="has to be told which task"):
        model.eval()(**batch)
    for task in (1, 2):
        method.asked = task
        torch.testing.assert_close(gates_of(method, model, batch)[:task], seen[task - 1])
    assert torch.equal(method.gate.mean_of(1), torch.tensor([1.0, 0.0]))  # padded with 0
    method.asked = 3
    own = gates_of(method, model, batch)
    dynamic = ProgLora(**SMALL)
    dynamic.bind(model)
    torch.testing.assert_close(gates_of(dynamic, model, batch), own)
    assert own.shape == (3, 2) and not torch.allclose(own, seen[1].expand(3, 2))


def test_saved_and_loaded_it_has_the_keys_and_mean_gates_of_all_tasks(tmp_path):
    method, model = taught(tasks=3, setting="static")
    method.save_state(model, tmp_path)
    other = ProgLora("static", **SMALL)
    fresh = attached(other, seed=0)
    other.load_state(fresh, tmp_path)
    for key, value in method.gate.state_dict().items():
        assert torch.equal(other.gate.state_dict()[key], value), key
    method.asked = other.asked = 2
    batch = questions()
    assert torch.equal(fresh.eval()(**batch).logits, model.eval()(**batch).logits)
    wide = ProgLora("static", **SMALL, hidden=7)
    with pytest.raises(AdapterMismatch, match="of another adapter"):
        wide.load_state(attached(wide), tmp_path)


def test_the_running_sums_are_saved_and_moved_but_are_no_buffers():
    gate = KeyGate(8, 4)
    gate.add(torch.tensor([[1.0]]))
    assert gate.running()["sums"] is gate.sums
    assert "sums" not in gate.state_dict()  # DDP would give the first process's to all
    assert gate.to(torch.bfloat16).sums.dtype == torch.float64
    assert gate.sums.tolist() == [1.0, 1.0]
    assert gate.to("meta").sums.device.type == "meta"
