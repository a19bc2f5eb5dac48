"""What holds for every registered method."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn, logits, trainable, weights
from tests.precision import assert_same
from tests.sweeps import METHODS_OF_EACH_MAKE, mostly_slow
from tests.tuner.llava import tiny_llava
from undrift.errors import AdapterMismatch, ConfigError, RunDirError, UnknownName
from undrift.methods.shared import pool
from undrift.registry import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
NAMES = METHODS.names()
LEARNING = [name for name in NAMES if METHODS.load(name).schedule != "none"]
# Whose size the options of adapters do not decide: another option that does.
SIZED_BY = {"modalprompt": {"prompt_length": 5}}


def test_the_methods_are_these():
    assert {"finetune", "joint", "moelora", "same", "steadylora", "zeroshot"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_answers_as_before_until_the_first_step(name):
    model = attached(METHODS.load(name)(**SMALL))
    assert_same(logits(model), logits(tiny_llava()))


@pytest.mark.parametrize("name", NAMES)
def test_the_files_stem_is_its_name_and_every_option_is_documented(name):
    kind = METHODS.load(name)
    assert kind.name == name
    text = "\n".join(inspect.getdoc(base) or "" for base in kind.Config.__mro__)
    for field in dataclasses.fields(kind.Config):
        assert f"\n    {field.name}: " in text, field.name


@pytest.mark.parametrize("name", NAMES)
def test_it_has_one_sentence_about_its_idea_and_names_its_own_paper(name):
    kind = METHODS.load(name)
    assert kind.summary().endswith(".") and len(kind.summary()) > 20
    assert kind.summary() == vars(kind)["__doc__"].splitlines()[0]
    assert len(vars(kind)["paper"]) > 3  # its own, not that of the method it builds on


@pytest.mark.parametrize("name", NAMES)
def test_a_typo_is_answered_with_the_nearest_key(name):
    kind = METHODS.load(name)
    with pytest.raises(
        UnknownName, match=r"unknown key of .* 'alpha_over_rnk'; did you mean 'alpha_over_"
    ):
        kind(alpha_over_rnk=3)
    with pytest.raises(UnknownName, match="unknown setting"):
        kind("papr")
    with pytest.raises(ConfigError, match="rank is 0"):
        kind(rank=0)
    with pytest.raises(ConfigError, match="experts is 'many'"):
        kind(experts="many")
    for setting in kind.settings:
        kind(setting)


def test_joint_learns_and_only_adapters_move():  # the others: test_contract_tasks.py
    model, method = attached(METHODS.load("joint")(**SMALL)), METHODS.load("joint")(**SMALL)
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad and p.numel()}
    losses = learn(method, model, steps=20)
    model.eval()
    with torch.no_grad():
        again = model(**batch_of(task=1, step=0)).loss
    assert again < losses[0]
    assert method.task_index == 2
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


@pytest.mark.parametrize("name", [name for name in LEARNING if name not in SIZED_BY])
def test_adapters_of_all_methods_have_the_same_size(name):
    kind = METHODS.load(name)
    beside = ("moe_lora_G", pool.GATE, "S_low")  # what weighs the experts, or is trained on top
    held = attached(kind(**SMALL)).named_parameters()  # keeplora's A is not trained
    count = sum(p.numel() for n, p in held if p.requires_grad or "pool_lora_A" in n
                if not any(each in n for each in beside))  # fmt: skip
    if issubclass(kind.Config, pool.Config):  # an expert a task: as large after as many tasks
        count *= SMALL["experts"]
    lora = attached(METHODS.load("finetune")(**SMALL))
    assert count == sum(p.numel() for p in trainable(lora).values())


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_save_load_continue_equals_uninterrupted(name, tmp_path):
    kind = METHODS.load(name)
    straight = kind(**SMALL)
    model = attached(straight)
    learn(straight, model, task=1, steps=4)
    straight.save_state(model, tmp_path)
    learn(straight, model, task=2, steps=4)

    resumed = kind(**SMALL)
    other = attached(resumed, seed=0)
    learn(kind(**SMALL), other, task=5, steps=2)  # so that loading has something to overwrite
    other = attached(resumed, seed=0)
    resumed.load_state(other, tmp_path)
    resumed.task_index = 2
    learn(resumed, other, task=2, steps=4)
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    straight.save_state(model, tmp_path / "a")
    resumed.save_state(other, tmp_path / "b")
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_an_adapter_that_does_not_fit_is_refused(name, tmp_path):
    kind = METHODS.load(name)
    method = kind(**SMALL)
    model = attached(method)
    with pytest.raises(RunDirError, match="holds no adapter_model"):
        method.load_state(model, tmp_path)
    method.save_state(model, tmp_path)
    larger = kind(**{"experts": 4, "rank": 5} | SIZED_BY.get(name, {}))
    with pytest.raises(AdapterMismatch, match="does not fit"):
        larger.load_state(attached(larger), tmp_path)
    routed = any("moe_lora" in key for key in trainable(model))
    other = METHODS.load("finetune" if routed else "moelora")(**SMALL)
    with pytest.raises(AdapterMismatch, match="is of the type"):
        other.load_state(attached(other), tmp_path)


@pytest.mark.parametrize("name", mostly_slow(NAMES, METHODS_OF_EACH_MAKE))
def test_predicting_leaves_no_trace(name):
    method = METHODS.load(name)(**SMALL)
    model = attached(method)
    before = logits(model)
    with method.predicting(model):
        assert torch.equal(logits(model), before)
    assert method.examples(("a", "b"), 1) == ("a", "b")
    assert method.needs_training == (name != "zeroshot")
