"""ewc: the Fisher of single examples, one pull for all tasks, and what public code does instead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from tests.methods.training import SMALL, attached, batch_of, learn, trainable, weights
from tests.precision import assert_same
from tests.tuner.llava import tiny_batch
from undrift.errors import AdapterMismatch, ConfigError, RunDirError, TrainingDiverged
from undrift.methods.ewc import (
    Ewc,
    QuadraticPenalty,
    fisher_information,
    normalised,
)
from undrift.methods.finetune import Finetune, lora_layers
from undrift.methods.shared.adapter import active_adapter

STATE_FILE = "ewc_state.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def trained():
    """A model whose A and B both get gradients, with its linears by name."""
    model, method = attached(Finetune(**SMALL)), Finetune(**SMALL)
    learn(method, model, steps=3)
    found = {
        f"{name}.{factor}": getattr(layer, factor)["default"]
        for name, layer in lora_layers(model, active_adapter(model)).items()
        for factor in ("lora_A", "lora_B")
    }
    return model, found


def gradients(model, linears, loss):
    found = torch.autograd.grad(loss, [each.weight for each in linears.values()])
    return dict(zip(linears, found, strict=True))


def one_by_one(model, linears, batch):
    """The Fisher as its definition has it: an example at a time, without padding."""
    total = dict.fromkeys(linears, 0.0)
    for row in range(len(batch["labels"])):
        real = batch["attention_mask"][row].bool()
        one = {k: v[row : row + 1] for k, v in batch.items()}
        one |= {k: one[k][:, real] for k in ("input_ids", "attention_mask", "labels")}
        answered = int((one["labels"][:, 1:] != -100).sum())
        for name, g in gradients(model, linears, model(**one).loss * answered).items():
            total[name] = total[name] + g.square() / len(batch["labels"])
    return total


def test_the_fisher_is_the_mean_square_of_each_examples_gradient():
    model, linears = trained()
    batches = [tiny_batch((9, 12, 7), seed=1), tiny_batch((6, 11), seed=2, side="left")]
    batches[0]["labels"][:, :5] = -100
    expected = [one_by_one(model.eval(), linears, batch) for batch in batches]
    model.train()
    found = fisher_information(model, linears, batches, "sample", 100)
    for name, each in found.items():
        exact = (3 * expected[0][name] + 2 * expected[1][name]) / 5
        torch.testing.assert_close(each, exact, rtol=2e-3, atol=1e-4 * float(exact.max()))
        assert float(exact.max()) > 0
    assert model.training and all(p.grad is None for p in model.parameters())
    few = fisher_information(model, linears, batches, "sample", 3)
    for name in few:
        torch.testing.assert_close(
            few[name], expected[0][name], rtol=2e-3, atol=1e-4 * float(few[name].max())
        )


def test_public_code_squares_a_batchs_gradient_which_is_far_smaller():
    model, linears = trained()
    batch = tiny_batch((9, 12, 7, 10), seed=3)
    found = fisher_information(model, linears, [batch, batch], "batch", 1)
    exact = gradients(model, linears, model.eval()(**batch).loss)
    for name, each in found.items():
        torch.testing.assert_close(each, exact[name].square())
    per_token = fisher_information(model, linears, [batch], "sample", 4)
    ratio = sum(float(e.sum()) for e in per_token.values()) / sum(
        float(e.sum()) for e in found.values()
    )
    assert ratio > 4


class OneLinear(nn.Module):
    """A linear whose outputs are logits, computed in half precision; its examples are given."""

    def __init__(self, dtype, size=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.size = nn.Linear(6, 4, bias=False).to(dtype), size

    def forward(self, x, labels=None):
        logits = self.linear(x.to(self.linear.weight.dtype)).float() * self.size
        loss = logits.sum() if labels is not None else None
        return SimpleNamespace(logits=logits, loss=loss)


def examples(count):
    torch.manual_seed(1)
    return [{"x": torch.randn(1, 5, 6), "labels": torch.randint(4, (1, 5))} for _ in range(count)]


@pytest.mark.parametrize("kind", ["sample", "batch"])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 1e-4), (torch.float16, 200.0), (torch.bfloat16, 1.0)]
)
def test_half_precision_is_squared_and_summed_in_float32(kind, dtype, size):
    """Squares of float16 go below and above what it can say, and bfloat16 stops counting at 256."""
    batches = examples(400)
    model, exact = OneLinear(dtype, size), OneLinear(torch.float64, size)
    exact.linear.weight.data = model.linear.weight.data.double()
    found = fisher_information(model, {"it": model.linear}, batches, kind, 400)["it"]
    wanted = fisher_information(exact, {"it": exact.linear}, batches, kind, 400)["it"]
    assert found.dtype == torch.float32 and wanted.dtype == torch.float64
    assert (found.double() - wanted).norm() < 0.01 * wanted.norm()
    assert abs(float(found.double().sum() / wanted.sum()) - 1) < 0.005


def test_a_gradient_that_is_not_finite_is_said():
    model = OneLinear(torch.float16, 1e30)
    with pytest.raises(TrainingDiverged, match="gradient of it is not finite; train in bfloat16"):
        fisher_information(model, {"it": model.linear}, examples(1), "batch", 1)


def test_a_task_whose_data_say_nothing_pulls_at_nothing():
    nothing = normalised({"a": torch.zeros(2, 3), "b": torch.zeros(4)})
    assert all(not each.any() for each in nothing.values())


@pytest.mark.parametrize("anchor", ["last", "each"])
def test_the_pull_on_a_parameter_in_half_precision_is_kept_in_float32(anchor):
    """As that on the same numbers in float32, rounded once."""
    torch.manual_seed(0)
    half, whole = (Parameter(torch.zeros(4, 3, dtype=d)) for d in (torch.bfloat16, torch.float32))
    pulls = [QuadraticPenalty({"p": half}), QuadraticPenalty({"p": whole})]
    for _ in range(3):
        value, fisher = torch.randn(4, 3).bfloat16(), torch.rand(4, 3)
        for p, pull in zip((half, whole), pulls, strict=True):
            p.data = value.to(p.dtype)
            pull.add({"p": fisher}, anchor, 0.9)
    for one, other in zip(pulls[0].tensors.values(), pulls[1].tensors.values(), strict=True):
        assert torch.equal(one, other)
    half.data = torch.randn(4, 3).bfloat16()
    whole.data = half.data.float()
    g = torch.randn(4, 3).bfloat16()
    turned = pulls[0].transforms(0.5)[half](g)
    assert torch.equal(turned, pulls[1].transforms(0.5)[whole](g.float()).bfloat16())


def test_where_a_token_belongs_to_no_example_it_is_said():
    linear = nn.Linear(3, 2)

    class Flat(nn.Module):
        def forward(self, x):
            return type("Out", (), {"logits": linear(x.flatten(0, 1)).view(1, -1, 2)})

    batch = {"x": torch.ones(1, 2, 3), "labels": torch.zeros(1, 2, dtype=torch.long)}
    with pytest.raises(ConfigError, match='use fisher="batch"'):
        fisher_information(Flat(), {"it": linear}, [batch], "sample", 1)
    with pytest.raises(ConfigError, match="hold no labels"):
        fisher_information(Flat(), {"it": linear}, [{"x": batch["x"]}], "sample", 1)
    with pytest.raises(ConfigError, match="gave no batch"):
        fisher_information(Flat(), {"it": linear}, [], "sample", 1)


@pytest.mark.parametrize(("anchor", "keep"), [("last", 1.0), ("last", 0.5), ("each", 1.0)])
def test_the_gradient_is_that_of_the_penalty_written_plainly(anchor, keep):
    torch.manual_seed(0)
    p, lam = Parameter(torch.randn(4, 3)), 0.7
    penalty = QuadraticPenalty({"p": p})
    past = []
    for _ in range(3):
        p.data = torch.randn(4, 3)
        fisher = torch.rand(4, 3)
        fisher[0, 0] = 0  # a parameter that nothing depends on
        past = [(keep * f, anchored) for f, anchored in past] + [(fisher, p.detach().clone())]
        penalty.add({"p": fisher}, anchor, keep)
    if anchor == "last":
        past = [(sum(f for f, _ in past), past[-1][1])]
    p.data = torch.randn(4, 3)
    loss = lam / 2 * sum((f * (p - anchored) ** 2).sum() for f, anchored in past)
    (expected,) = torch.autograd.grad(loss, [p])
    gradient = torch.randn(4, 3)
    turned = penalty.transforms(lam)[p](gradient)
    torch.testing.assert_close(turned - gradient, expected, rtol=1e-4, atol=1e-5)
    assert not turned.requires_grad and float(expected.abs().max()) > 0.1


def test_the_first_task_is_finetune_and_every_later_one_is_pulled():
    free, held = Finetune(**SMALL), Ewc(**SMALL, strength=100.0)
    one, other = attached(free), attached(held)
    learn(free, one), learn(held, other)
    for name, p in weights(one).items():
        assert torch.equal(p, weights(other)[name]), name
    start = weights(one)
    moved = []
    for task in (2, 3):
        learn(free, one, task=task, weight_decay=0), learn(held, other, task=task, weight_decay=0)
        moved.append(
            [
                sum(float((p - start[n]).square().sum()) for n, p in weights(m).items())
                for m in (one, other)
            ]
        )
    for free_moved, held_moved in moved:
        assert held_moved < 0.8 * free_moved


def test_the_state_is_two_numbers_a_parameter_however_many_tasks_and_its_mean_is_one_a_task():
    for setting, options in ((None, {}), ("public", {"normalise": True})):
        method = Ewc(setting, **SMALL, **options)
        model = attached(method)
        for task in (1, 2, 3):
            learn(method, model, task=task, steps=2)
            tensors = method._penalty.tensors
            count = sum(p.numel() for p in trainable(model).values())
            assert sum(each.numel() for each in tensors.values()) == 2 * count
            total = sum(float(each.sum()) for each in method._penalty.weight.values())
            assert total / count == pytest.approx(task, rel=1e-4)
    twice = normalised({"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([3.0])})
    assert_same(torch.cat(list(twice.values())).mean(), torch.tensor(1.0), terms=3)


def test_public_code_and_the_paper_differ_in_anchor_fisher_and_scale():
    paper, public = Ewc(**SMALL, strength=5000.0), Ewc("public", **SMALL)
    found = {}
    for method in (paper, public):
        model = attached(method)
        learn(method, model, task=1, steps=2)
        first = weights(model)
        learn(method, model, task=2, steps=2)
        penalty = method._penalty
        name, p = next(iter(penalty.parameters.items()))
        there = next(v for n, v in first.items() if n.replace(".default.weight", "").endswith(name))
        found[method] = penalty, name, p.detach(), there
    penalty, name, now, _ = found[paper]
    assert torch.equal(penalty.centre[name], now)
    penalty, name, now, first = found[public]
    centre, weight = penalty.centre[name], penalty.weight[name]
    between = (centre - first) * (centre - now) <= 1e-9
    assert between.all() and not torch.equal(centre, now)
    assert float(weight.mean()) < float(found[paper][0].weight[name].mean())


def test_a_lost_or_foreign_state_is_refused_and_so_is_a_loop_without_data(tmp_path):
    method = Ewc(**SMALL)
    model = attached(method)
    method.save_state(model, tmp_path)
    other = Ewc(**SMALL, targets="all")
    other.save_state(attached(other), tmp_path / "all")
    (tmp_path / "all" / STATE_FILE).rename(tmp_path / STATE_FILE)
    with pytest.raises(AdapterMismatch, match="of another adapter: it has"):
        method.load_state(model, tmp_path)
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(RunDirError, match=STATE_FILE):
        method.load_state(model, tmp_path)
    method.task_start(model, 1, 1)
    with pytest.raises(ConfigError, match="train_dataloader"):
        method.task_end(model)
    with pytest.raises(ConfigError, match="gamma is 2"):
        Ewc(gamma=2.0)
    with pytest.raises(ConfigError, match="samples is 0"):
        Ewc(samples=0)


def test_the_trainers_own_inputs_are_what_the_model_is_asked():
    method = Ewc(**SMALL)
    model = attached(method)
    seen = []
    with method.preparing(lambda batch: seen.append(batch) or batch):
        learn(method, model, steps=2)
    assert len(seen) == 2 and torch.equal(seen[0]["input_ids"], batch_of(1, 0)["input_ids"])
