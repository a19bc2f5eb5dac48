"""What a method names as its state is saved, and what was saved is loaded again."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model_state_dict

from tests.methods.training import SMALL, attached, learn
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.base import Method
from undrift.methods.finetune import Finetune
from undrift.methods.shared.state import State
from undrift.registry import METHODS

LEARNING = [name for name in METHODS.names() if METHODS.load(name).schedule != "none"]
HOOKS = [name for name in dir(Method) if name.startswith("on_")]


def held(method, model):
    """All that a method has beside the base model: copies."""
    state = method.state(model)
    beside = {f"beside:{n}": t.clone() for n, t in (state.tensors or {}).items()}
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    return beside | {n: t.clone() for n, t in adapter.items()}, state.values


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_named_is_saved_and_what_was_saved_is_loaded(name, tmp_path):
    kind = METHODS.load(name)
    method = kind(**SMALL)
    model, saved = attached(method), {}

    def save(step):
        if step == 3:
            method.before_save(model)
            method.save_state(model, tmp_path / "inside")
            saved["inside"] = held(method, model)

    for task in (1, 2):
        learn(method, model, task, steps=4, on_step=save if task == 2 else None)
    method.save_state(model, tmp_path / "after")
    saved["after"] = held(method, model)
    for where, (tensors, values) in saved.items():
        other = kind(**SMALL)
        loaded = attached(other, seed=1)
        other.load_state(loaded, tmp_path / where)
        own, again = held(other, loaded)
        assert own.keys() == tensors.keys() and again == values
        for key, value in tensors.items():
            assert torch.equal(own[key], value), f"{where}: {key}"


@pytest.mark.parametrize("name", LEARNING)
def test_the_rest_follows_from_the_state(name, tmp_path):
    """No method hooks into a trainer or writes a file by itself, or keeps frozen parameters."""
    kind = METHODS.load(name)
    for each in (*HOOKS, "save_state", "load_state", "save_beside", "load_beside", "record"):
        if each != "on_init_end":  # a pool's gate is there before the optimiser is
            assert getattr(kind, each) is getattr(Method, each), each
    method = kind(**SMALL)
    model = attached(method)
    for task in (1, 2):
        learn(method, model, task, steps=3)
    method.save_state(model, tmp_path)
    files = method.record(model)["files"]
    assert all((tmp_path / file).is_file() for file in files)
    gate = getattr(model.get_base_model(), "undrift_gate", None)
    assert gate is None or all(p.requires_grad for p in gate.parameters())


def test_sums_are_added_up_and_only_the_first_process_goes_on_with_them(monkeypatch, tmp_path):
    method = METHODS.load("clmoe")(**SMALL)
    model = attached(method)

    def save(step):
        method.before_save(model)
        method.save_state(model, tmp_path)

    learn(method, model, 1, steps=2, on_step=save)
    for rank, some in ((0, True), (1, False)):
        monkeypatch.setattr("undrift.methods.base.rank", lambda number=rank: number)
        other = METHODS.load("clmoe")(**SMALL)
        loaded = attached(other)
        other.load_state(loaded, tmp_path)
        assert any(bool(each.any()) for each in other.state(loaded).sums) is some


def test_a_file_of_another_adapter_is_refused(tmp_path):
    own, x = State({"a": torch.zeros(2)}), torch.ones
    with pytest.raises(RunDirError, match=r"one\.safetensors is missing"):
        own.read(tmp_path, "one")
    for tensors, why in (
        ({"a": x(3)}, r"a is \(3,\) there and \(2,\) here"),
        ({"a": x(2), "b": x(1)}, "it has b"),
        ({"b": x(2)}, "it lacks a"),
    ):
        State(tensors).save(tmp_path, "one")
        with pytest.raises(AdapterMismatch, match=why):
            own.fill(own.read(tmp_path, "one"))
    State({"a": x(2)}).save(tmp_path, "one")
    own.fill(own.read(tmp_path, "one"))
    assert own.tensors["a"].tolist() == [1, 1] and own.size == 8
    assert State().file("one") is None and State(values={}).file("one") == "one.json"


@pytest.mark.parametrize(
    ("gone", "now"), [("save_beside", "state"), ("finish", "cut_off"), ("beside", "state_name")]
)
def test_a_method_of_the_old_protocol_is_refused(gone, now):
    with pytest.raises(ConfigError, match=rf"Old.{gone} is of an older protocol; override {now} "):
        type("Old", (Finetune,), {gone: None})
