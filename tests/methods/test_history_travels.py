"""What a method knows of an adapter goes wherever PEFT takes the adapter, or is missed aloud."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import torch

import undrift
from tests.methods.test_trainers import MAKE, train
from tests.methods.training import SMALL, attached, learn, logits, weights
from tests.tuner.llava import tiny_llava
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.continual_llava import ContinualLlava
from undrift.methods.dymoe import DyMoE
from undrift.methods.ewc import Ewc
from undrift.methods.hide import Hide
from undrift.methods.llava_cmoe import LlavaCMoE
from undrift.methods.many import Many
from undrift.methods.olora import OLora
from undrift.methods.osf import Osf
from undrift.methods.replay import Replay
from undrift.methods.same import Same
from undrift.methods.sefe import Sefe
from undrift.methods.shared.model_card import RECORD
from undrift.methods.shared.pool import PoolMethod
from undrift.methods.smolora import SMoLora
from undrift.registry import METHODS
from undrift.tuner import MoeLoraConfig

STATE_FILE = "steadylora_state.safetensors"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
]
ALL = MAKE | {
    "ewc": lambda: Ewc(**SMALL, samples=4),
    "sefe": lambda: Sefe(**SMALL, asd=False),
    "olora": lambda: OLora(**SMALL),
    "osf": lambda: Osf(experts=2, rank=2),
    "hide": lambda: Hide(**SMALL),
    "smolora": lambda: SMoLora(**SMALL),
    "continual_llava": lambda: ContinualLlava(**SMALL),
    "llava_cmoe": lambda: LlavaCMoE(**SMALL, epochs=1),
    "replay": lambda: Replay(**SMALL),
    "dymoe": lambda: DyMoE(**SMALL),
    "many": lambda: Many(**SMALL, columns=8),
}
QUICK = ("steadylora", "ewc", "disco")
EACH = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL]


def taught(name, tasks=1):
    method = ALL[name]()
    model = attached(method)
    for task in range(1, tasks + 1):
        learn(method, model, task, steps=3)
    return method, model


def loaded(folder, **options):
    return peft.PeftModel.from_pretrained(tiny_llava(), folder, is_trainable=True, **options)


def second(method, model):
    """Learn the second task; return what is trained and what is known."""
    if isinstance(method, Replay | PoolMethod):  # before examples are chosen, an optimiser made
        method.take_up(model)
    torch.manual_seed(2)
    learn(method, model, 2, steps=3)
    return weights(model)


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def state(model, folder):
    model.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("name", EACH)
def test_the_next_task_after_save_and_load_is_the_next_task(name, tmp_path):
    method, model = taught(name)
    model.save_pretrained(tmp_path / "one")
    expected = second(method, model)
    again, other = ALL[name](), loaded(tmp_path / "one")
    same(expected, second(again, other))
    assert again.task_index == method.task_index == 3
    assert state(model, tmp_path / "a") == state(other, tmp_path / "b")


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("way", ["copied", "saved again", "another object", "another name"])
def test_other_ways_that_an_adapter_goes(way, tmp_path):
    method, model = taught("steadylora")
    model.save_pretrained(tmp_path / "one")
    other, again = model, ALL["steadylora"]()
    if way == "copied":
        other = copy.deepcopy(model)
    elif way == "saved again":
        loaded(tmp_path / "one").save_pretrained(tmp_path / "two")
        shutil.rmtree(tmp_path / "one")
        other = loaded(tmp_path / "two")
    elif way == "another name":
        other = loaded(tmp_path / "one", adapter_name="b")
        other.save_pretrained(tmp_path / "two")
        other = loaded(tmp_path / "two" / "b")
    before = {n: each.history.V.clone() for n, each in method.statistics.items()}
    found = second(again, other)
    method, model = taught("steadylora")
    same(second(method, model), found)
    assert any(V.any() for V in before.values())


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("name", ["same", "steadylora"])
def test_a_checkpoint_of_a_trainer_carries_it(name, tmp_path):
    method = ALL[name]()
    model = attached(method)
    train(method, model, 1, tmp_path, save_strategy="steps", save_steps=6)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    again, other = ALL[name](), loaded(checkpoint)
    same(second(method, model), second(again, other))
    assert again.task_index == 3


@pytest.mark.foreign("7.2")
def test_the_hub_is_asked_for_the_files_beside(tmp_path, monkeypatch):
    method, model = taught("steadylora")
    model.save_pretrained(tmp_path / "one")
    asked = []

    def download(origin, name, **how):
        asked.append((origin, name, how))
        return str(tmp_path / "one" / name)

    monkeypatch.setattr("undrift.methods.shared.sidecar.hf_hub_download", download)
    other = loaded(tmp_path / "one")
    from undrift.methods.shared.sidecar import Sidecar, sidecars

    source = ("somebody/adapter", {"revision": "v1"})
    sidecars(other)["default"] = Sidecar(other, source=source)
    same(second(method, model), second(ALL["steadylora"](), other))
    assert asked == [("somebody/adapter", n, {"revision": "v1"}) for n in (RECORD, STATE_FILE)]


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("name", ["steadylora", "ewc", "disco", "clmoe"])
def test_a_trained_adapter_without_its_history_is_refused(name, tmp_path):
    _, model = taught(name)
    model.save_pretrained(tmp_path)
    (tmp_path / RECORD).unlink()
    method, other = ALL[name](), loaded(tmp_path)
    with pytest.raises(ConfigError, match="has no history"):
        learn(method, other, 2, steps=1)
    method.start_history(other)
    learn(method, other, 1, steps=1)


@pytest.mark.foreign("7.2")
def test_experts_that_were_trained_without_statistics_are_refused(tmp_path):
    _, model = taught("moelora")
    with pytest.raises(AdapterMismatch, match="trained with moelora"):
        learn(ALL["same"](), model, 2, steps=1)
    model.save_pretrained(tmp_path)
    (tmp_path / RECORD).unlink()
    with pytest.raises(ConfigError, match="has no history"):
        learn(ALL["same"](), loaded(tmp_path), 2, steps=1)


@pytest.mark.foreign("7.2")
def test_a_method_that_remembers_nothing_goes_on_with_any_adapter_and_is_found_out_later():
    _, model = taught("steadylora")
    learn(ALL["finetune"](), model, 2, steps=1)
    with pytest.raises(AdapterMismatch, match="trained with finetune"):
        learn(ALL["steadylora"](), model, 3, steps=1)


@pytest.mark.foreign("7.2")
def test_what_was_trained_by_something_else_since_is_not_passed_off_as_known(tmp_path):
    _, model = taught("steadylora")
    model.save_pretrained(tmp_path / "one")
    other = loaded(tmp_path / "one")
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.add_(0.1)
    with pytest.raises(ConfigError, match="trained after it was loaded"):
        learn(ALL["steadylora"](), other, 2, steps=1)
    other.save_pretrained(tmp_path / "two")
    other.save_pretrained(tmp_path / "one")
    for folder in ("one", "two"):
        assert not (tmp_path / folder / RECORD).exists()
        with pytest.raises(ConfigError, match="has no history"):
            learn(ALL["steadylora"](), loaded(tmp_path / folder), 2, steps=1)


@pytest.mark.foreign("7.2")
def test_a_memory_that_comes_too_late_is_missed(tmp_path):
    _, model = taught("replay")
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="take_up"):
        learn(ALL["replay"](), loaded(tmp_path), 2, steps=1)


@pytest.mark.foreign("7.2")
def test_an_adapter_of_older_undrift_goes_on_where_it_holds_its_history(tmp_path):
    method, model = taught("same")
    model.save_pretrained(tmp_path)
    (tmp_path / RECORD).unlink()
    again, other = ALL["same"](), loaded(tmp_path)
    same(second(method, model), second(again, other))


@pytest.mark.foreign("7.2")
def test_a_plain_adapter_of_peft_is_saved_as_ever(tmp_path):
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_llava(), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "PEFT" in (tmp_path / "README.md").read_text()


# ---------------------------------------------------------------- which adapter is watched


@pytest.mark.foreign("7.3")
@pytest.mark.parametrize("how", ["added", "deleted and added"])
def test_the_active_adapter_is_the_one_that_is_watched(how):
    method, model = taught("steadylora")
    first = method.statistics
    name = "default" if how == "deleted and added" else "b"
    if how == "deleted and added":
        model.add_adapter("spare", method.peft_config())
        model.set_adapter("spare")
        model.delete_adapter("default")
    torch.manual_seed(5)
    model.add_adapter(name, method.peft_config())
    model.set_adapter(name)
    kept = {n: each.history.V.clone() for n, each in first.items()}
    learn(method, model, 1, steps=3)
    assert method.statistics is not first
    assert {int(each.tasks) for each in method.statistics.values()} == {1}
    learn(method, model, 2, steps=3)
    method.task_start(model, 3, 3)
    own = {p for n, p in model.named_parameters() if name in n.split(".") and "lora" in n}
    assert own == set(method.step_transforms(model))
    assert all(torch.equal(kept[n], each.history.V) for n, each in first.items())


@pytest.mark.foreign("7.3")
def test_each_adapter_has_its_own_history(tmp_path):
    method, model = taught("steadylora")
    model.add_adapter("b", method.peft_config())
    model.set_adapter("b")
    learn(method, model, 1, steps=3)
    model.set_adapter("default")
    found = second(method, model)
    method, alone = taught("steadylora")
    expected = second(method, alone)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    model.save_pretrained(tmp_path)
    for folder, tasks in ((tmp_path, 2), (tmp_path / "b", 1)):
        assert json.loads((folder / RECORD).read_text())["tasks"] == tasks


GATED = ["smolora", "continual_llava", "proglora", "dymoe", "llava_cmoe"]


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("how", ["a used base", "a second adapter", "deleted and added"])
def test_the_gate_of_a_new_adapter_is_new(name, how):
    method, base = METHODS.load(name)(**SMALL), tiny_llava(0)
    torch.manual_seed(0)
    model = method.attach(base)
    expected = learn(method, model, 1, steps=3)
    gate = {key: value.clone() for key, value in method.gate.state_dict().items()}
    if how == "a used base":
        other = METHODS.load(name)(**SMALL)
        torch.manual_seed(0)
        found = learn(other, other.attach(model.unload()), 1, steps=3)
        assert found == expected
        return
    called = "default" if how == "deleted and added" else "b"
    if how == "deleted and added":
        model.add_adapter("spare", method.peft_config())
        model.set_adapter("spare")
        model.delete_adapter("default")
    model.add_adapter(called, method.peft_config())
    model.set_adapter(called)
    other = METHODS.load(name)(**SMALL)
    other.take_up(model)
    learn(other, model, 1, steps=3)
    assert other.gate is not method.gate
    assert all(torch.equal(value, method.gate.state_dict()[key]) for key, value in gate.items())


@pytest.mark.parametrize("name", ["disco", "hide", "smolora", "dymoe"])
def test_gates_are_decided_for_the_active_adapter_or_not_at_all(name):
    method, model = taught(name)
    expected = logits(model)
    model.add_adapter("b", method.peft_config())
    model.set_adapter("b")
    other = METHODS.load(name)(**SMALL)
    other.take_up(model)
    learn(other, model, 1, steps=3)
    model.set_adapter("default")
    with pytest.raises(ConfigError, match=r"'b', and 'default' is active: call bind"):
        logits(model)
    method.bind(model)
    assert torch.equal(logits(model), expected)


@pytest.mark.foreign("7.3")
@pytest.mark.parametrize("name", ["steadylora", "same", "ewc", "disco"])
def test_two_active_adapters_are_refused(name):
    method, model = taught(name)
    model.add_adapter("b", method.peft_config())
    model.base_model.set_adapter(["default", "b"])
    with pytest.raises(ConfigError, match="one adapter can be trained at a time"):
        learn(method, model, 2, steps=1)


# ---------------------------------------------------------------- configurations


@pytest.mark.foreign("7.1")
@pytest.mark.parametrize("name", ["Finetune", "Joint", "MoeLora", "Same", "SteadyLora"])
def test_every_public_method_configures_an_adapter_without_a_model(name, tmp_path):
    method = getattr(undrift, name)(**SMALL)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_llava(), method.peft_config())
    expected = {n for n, p in attached(method).named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == expected
    assert not any("vision" in name for name in expected)
    learn(method, model, 1, steps=2)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["target_modules"] not in ("ffn", "all")
    if content["peft_type"] == "LORA":
        assert content.keys() == peft.LoraConfig().to_dict().keys()


@pytest.mark.foreign("7.1")
def test_a_method_without_an_adapter_says_so():
    with pytest.raises(ConfigError, match="trains nothing"):
        undrift.ZeroShot().peft_config()
    with pytest.raises(ConfigError, match=r"peft_config\(model\)"):
        Osf().peft_config()


@pytest.mark.foreign("7.9")
@pytest.mark.parametrize("name", ["steadylora", "same"])
def test_an_adapter_that_was_not_loaded_to_be_trained(name, tmp_path):
    _, model = taught(name)
    model.save_pretrained(tmp_path)
    frozen = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path)
    with pytest.raises(ConfigError, match="is_trainable=True"):
        train(ALL[name](), frozen, 2, tmp_path)


@pytest.mark.foreign("7.8")
def test_an_adapter_that_transformers_put_on():
    from peft import inject_adapter_in_model

    model = tiny_llava()
    inject_adapter_in_model(MoeLoraConfig(num_experts=2, r=2), model)
    model._hf_peft_config_loaded = True
    with pytest.raises(ConfigError, match="get_peft_model"):
        train(Same(), model, 1, "nowhere")


@pytest.mark.parametrize("name", ["olora", "disco", "same"])
def test_what_load_state_brings_is_gone_on_from(name, tmp_path):
    method, model = taught(name, tasks=2)
    method.save_state(model, tmp_path)
    again = ALL[name]()
    other = attached(again)
    again.load_state(other, tmp_path)
    assert again.task_index == 3
    train(again, other, 3, tmp_path / "training")
    assert again.task_index == 4 and again.in_adapter(other) in (3, None)
    if isinstance(again, PoolMethod):
        assert again.past(other) == 2
