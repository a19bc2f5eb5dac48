"""steadylora: held like SAME's experts, and in the end an ordinary LoRA."""

from __future__ import annotations

import json
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.methods.training import SMALL, attached, learn, logits, weights
from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.core import naive
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.finetune import Finetune
from undrift.methods.many import Many
from undrift.methods.same import Same
from undrift.methods.shared.model_card import RECORD
from undrift.methods.steadylora import SteadyLora

STATE_FILE = "steadylora_state.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
EXACT = {"columns": 64, "max_components": 40, "delta": 1.0, "rebase_share": 0.0}
RANK = 12


def lora_layers(model):
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@pytest.mark.parametrize("method", [Same(**SMALL), SteadyLora(**SMALL)], ids=lambda m: m.name)
def test_a_tasks_length_counts_pieces_of_steps_and_processes(method, monkeypatch):
    model = attached(method)
    method._args = SimpleNamespace(gradient_accumulation_steps=3)
    monkeypatch.setattr("undrift.methods.shared.history.processes", lambda: 2)
    method.task_start(model, 1, 50)
    assert {each.batches for each in method.statistics.values()} == {50 * 3 * 2}


def test_the_statistics_are_the_moments_of_what_each_factor_reads():
    method = SteadyLora(**SMALL, **EXACT, token_weights="same", task_weights="tokens")
    model = attached(method)
    name, layer = list(lora_layers(model).items())[-1]
    x_seen, z_seen = [], []

    def keep(module, inputs, z):
        if module.training:
            mask = torch.tensor(current["mask"]).flatten().bool()
            x_seen.append(inputs[0].detach().flatten(0, -2)[mask])
            z_seen.append(z.detach().flatten(0, -2)[mask])

    current = {"mask": tiny_batch((9, 12, 7, 10))["attention_mask"].tolist()}
    layer.lora_A["default"].register_forward_hook(keep)
    learn(method, model, task=1)
    learn(method, model, task=2)
    X, Z = torch.cat(x_seen).double(), torch.cat(z_seen).double()
    each = method.statistics[name]
    V, s = each.history.basis()
    C = X.mT @ X / len(X)
    assert int(each.history.tokens) == len(X) == 2 * 8 * 38
    torch.testing.assert_close((V * s) @ V.mT, C.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each.cz, (Z.mT @ Z / len(Z)).float(), rtol=1e-4, atol=1e-6)


def test_a_token_weighs_the_squared_gradient_at_the_output_of_the_lora():
    method = SteadyLora(**SMALL, **EXACT, token_weights="gradient")
    model, outputs, batch = attached(method), {}, tiny_batch()
    method.task_start(model, 1, 10)

    def keep(module, inputs, y):
        y.retain_grad()
        outputs[module] = y

    found = lora_layers(model)
    for layer in found.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        layer.lora_B["default"].register_forward_hook(keep)
    model.train()
    model(**batch).loss.backward()
    counts = batch["attention_mask"].bool()
    for name, layer in found.items():
        g = outputs[layer.lora_B["default"]].grad
        weight = method.statistics[name].running()["z_weight"].float()
        torch.testing.assert_close(weight, g[counts].square().sum())


def test_both_factors_move_by_the_two_metrics():
    method = SteadyLora(**SMALL, **EXACT | {"delta": 0.9})
    model = attached(method)
    learn(method, model, task=1)
    method.task_start(model, 2, 10)
    turns = method.step_transforms(model)
    assert len(turns) == 12
    for name, layer in lora_layers(model).items():
        each = method.statistics[name]
        V, s = (part.double() for part in each.history.basis())
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        dA, dB = torch.randn_like(A), torch.randn_like(B)
        mu = 0.1 * s.mean()
        kept = V * s @ V.mT
        expected = mu * dA.double() @ naive.inverse(kept, len(s), float(mu))
        torch.testing.assert_close(turns[A](dA).double(), expected, rtol=1e-4, atol=1e-5)
        (expected,) = naive.b_step_z([dB.double()], each.cz.double(), method.config.mu_b)
        torch.testing.assert_close(turns[B](dB).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_aca_metric_uses_the_current_a():
    method = SteadyLora(**SMALL, **EXACT, b_metric="aca")
    model = attached(method)
    learn(method, model, task=1)
    method.task_start(model, 2, 10)
    layer = next(iter(lora_layers(model).values()))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    V, s = next(iter(method.bases().values()))
    dB = torch.randn_like(B)
    for _ in range(2):
        (expected,) = naive.b_step_aca([dB], [A.detach()], (V * s) @ V.mT, method.config.mu_b)
        turned = method.step_transforms(model)[B](dB)
        torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            A.add_(torch.randn_like(A))


@pytest.mark.parametrize("space", ["step", "gradient", "both"])
def test_task_one_is_plain_lora(space):
    steady, plain = SteadyLora(**SMALL, space=space), Finetune(**SMALL)
    model, other = attached(steady), attached(plain)
    assert learn(steady, model) == learn(plain, other)
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_in_step_space_the_old_task_drifts_less():
    drift = {}
    for held in (True, False):
        options = {} if held else {"a_metric": False, "b_metric": "none"}
        method = SteadyLora(**SMALL, **EXACT | {"delta": 0.99}, **options)
        model = attached(method)
        learn(method, model, task=1, steps=15)
        start = weights(model)
        past = {
            n: [part.clone() for part in each.history.basis()]
            for n, each in method.statistics.items()
        }
        learn(method, model, task=2, steps=15)
        drift[held] = sum(
            float((((weights(model)[key] - start[key]) @ V).square() * s).sum())
            for name, (V, s) in past.items()
            for key in [f"base_model.model.{name}.lora_A.default.weight"]
        )
    assert drift[True] < 0.5 * drift[False]


def test_the_adapter_is_an_ordinary_lora_that_merges(tmp_path):
    method = SteadyLora(**SMALL)
    model = attached(method)
    learn(method, model, task=1)
    learn(method, model, task=2)
    method.save_state(model, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", STATE_FILE, RECORD, "README.md",
    }  # fmt: skip
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == RANK
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in keys)

    served = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    assert torch.equal(logits(served), logits(model))
    merged = served.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_modules())


def test_it_serves_a_users_own_lora_and_says_what_it_needs(tmp_path):
    config = peft.LoraConfig(r=5, target_modules=r".*language_model.*(up|down)_proj")
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_llava(), config)
    method = SteadyLora()
    learn(method, model, task=1)
    assert not method.step_transforms(model)
    learn(method, model, task=2)
    assert {each.rank for each in method.statistics.values()} == {5}
    method.save_state(model, tmp_path)

    again = SteadyLora()
    loaded = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    again.load_state(loaded, tmp_path)
    for name, each in method.statistics.items():
        assert torch.equal(again.statistics[name].cz, each.cz)

    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(RunDirError, match=STATE_FILE):
        again.load_state(loaded, tmp_path)
    with pytest.raises(ConfigError, match="carries no adapter"):
        learn(SteadyLora(), tiny_llava())


def test_a_state_of_another_adapter_is_refused(tmp_path):
    few, many = SteadyLora(**SMALL, columns=8), SteadyLora(**SMALL, columns=8, targets="all")
    model, other = attached(few), attached(many)
    few.save_state(model, tmp_path / "few")
    many.save_state(other, tmp_path / "many")
    (tmp_path / "few" / STATE_FILE).rename(tmp_path / "spare")
    (tmp_path / "many" / STATE_FILE).rename(tmp_path / "few" / STATE_FILE)
    (tmp_path / "spare").rename(tmp_path / "many" / STATE_FILE)
    for method, target, folder in ((few, model, "few"), (many, other, "many")):
        with pytest.raises(AdapterMismatch, match="of another adapter"):
            method.load_state(target, tmp_path / folder)


@pytest.mark.parametrize("kind", [SteadyLora, Many])
@pytest.mark.parametrize("space", ["step", "gradient"])
def test_what_a_trainer_has_cast_is_float32_again_when_a_task_begins(kind, space):
    """TRL does so for 4-bit models, with every trainer that is made."""
    method = kind(**SMALL, **({"space": space} if kind is SteadyLora else {}))
    model = attached(method)
    for task in (1, 2, 3):
        for p in weights_of(model):
            p.data = p.data.to(torch.bfloat16)
        held = [*weights_of(model)]
        learn(method, model, task, steps=2)
        assert {p.dtype for p in held} == {torch.float32}
        assert all(p is now for p, now in zip(held, weights_of(model), strict=True))
    assert {each.cz.dtype for each in method.statistics.values()} == {torch.float32}


def weights_of(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("reentrant", [True, False])
def test_tokens_are_counted_once_under_gradient_checkpointing(reentrant):
    """Recomputation runs the forward pass twice and the backward pass once."""
    counted = {}
    for checkpointing in (False, True):
        method = SteadyLora(**SMALL, columns=8, task_weights="tokens")
        model = attached(method)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        passes = []
        layer = next(iter(lora_layers(model).values()))
        layer.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        learn(method, model, steps=2)
        assert len(passes) == (4 if checkpointing else 2)
        counted[checkpointing] = {
            name: (float(each.history.tokens), float(each.history.trace))
            for name, each in method.statistics.items()
        }
    for name, (tokens, trace) in counted[False].items():
        assert counted[True][name][0] == tokens == 2 * 38
        assert counted[True][name][1] == pytest.approx(trace, rel=1e-5)
