"""Histories that other people's code comes by: saves of all kinds, folders, writes, optimisers."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any, cast

import peft
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import TrainerCallback

from tests.methods.test_history_travels import ALL, loaded, same, second, taught
from tests.methods.test_trainers import Stop, Task, train
from tests.methods.training import SMALL, attached, learn, weights
from tests.tuner.llava import tiny_llava
from undrift.core.step_hook import StepHook
from undrift.errors import ConfigError, RunDirError
from undrift.methods.shared.model_card import RECORD
from undrift.methods.shared.sidecar import Sidecar, sidecars
from undrift.methods.steadylora import SteadyLora

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
]
BOTH = pytest.mark.parametrize("name", ["steadylora", "same"])


def held(folder, name):
    """How many parameters the next task holds, of an adapter that was saved inside the first."""
    method, model = ALL[name](), loaded(folder)
    method.take_up(model)
    method.task_start(model, method.task_index, 3)
    return method.task_index, len(method.step_transforms(model))


def plain(model, write=lambda p: p.data.add_(1e-3)):
    for p in model.parameters():
        if p.requires_grad:
            with torch.no_grad():
                write(p)


# ---------------------------------------------------------------- saved inside a task


class Ask(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_save = control.should_save or state.global_step == 4


OPTIONS: dict[str, Any] = {**SMALL}


class Write(TrainerCallback):
    def __init__(self, folder):
        self.folder = folder

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == 4:
            cast(Any, model).save_pretrained(self.folder)


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product(["steadylora", "same"], ["best", "a later callback", "save_pretrained"]),
        ("steadylora", "deepcopy"),
    ],
)
def test_whatever_saves_inside_a_task_finds_what_was_seen(name, how, tmp_path):
    method, folder = ALL[name](), tmp_path / "checkpoint-4"
    model = attached(method)
    if how == "deepcopy":

        def copied(step):
            if step == 4:
                copy.deepcopy(model).save_pretrained(folder)

        learn(method, model, 1, steps=6, on_step=copied)
    elif how == "best":
        from transformers import Trainer, TrainingArguments

        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=2, learning_rate=3e-3, max_steps=4,
            report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
            save_strategy="best", eval_strategy="steps", eval_steps=4, label_names=["labels"],
            metric_for_best_model="loss",
        )  # fmt: skip
        Trainer(
            model, args, train_dataset=Task(1), eval_dataset=Task(1), callbacks=[method]
        ).train()
    else:
        later = Ask() if how == "a later callback" else Write(folder)
        train(method, model, 1, tmp_path, callbacks=[later])
    assert json.loads((folder / RECORD).read_text())["learning"]
    expected = len(weights(model)) if name == "steadylora" else 1
    index, found = held(folder, name)
    assert index == 2
    assert found >= expected


@pytest.mark.foreign("7.2")
@BOTH
def test_of_several_processes_only_sums_of_all_are_saved(name, tmp_path, monkeypatch):
    method = ALL[name]()
    model = attached(method)
    several = {"is_initialized": lambda: True, "get_world_size": lambda: 2}

    def save(step):
        with monkeypatch.context() as patch:
            for function, value in several.items():
                patch.setattr(f"torch.distributed.{function}", value)
            with pytest.raises(ConfigError, match="2 processes"):
                model.save_pretrained(tmp_path)
            method._flushed = True  # as where all processes came by
            model.save_pretrained(tmp_path)

    learn(method, model, 1, steps=2, on_step=save)


@pytest.mark.foreign("7.2")
def test_another_object_goes_on_after_a_training_that_was_cut_off(tmp_path):
    method = ALL["steadylora"]()
    model = attached(method)
    with pytest.raises(KeyboardInterrupt):
        train(method, model, 1, tmp_path, callbacks=[Stop(4)])
    again = ALL["steadylora"]()
    again.take_up(model)
    again.task_start(model, 2, 3)
    assert again.task_index == 2
    assert again.step_transforms(model)


# ---------------------------------------------------------------- where it was loaded from


@pytest.mark.foreign("7.2")
@BOTH
def test_a_relative_folder_is_found_from_elsewhere(name, tmp_path, monkeypatch):
    method, model = taught(name)
    model.save_pretrained(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    other = loaded("one")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    other.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / RECORD).read_bytes() == (tmp_path / "one" / RECORD).read_bytes()
    same(second(method, model), second(ALL[name](), other))


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("record", [True, False])
def test_a_folder_that_is_written_again_hands_over_no_other_history(record, tmp_path):
    method, model = taught("steadylora")
    model.save_pretrained(tmp_path)
    if not record:
        (tmp_path / RECORD).unlink()
    other = loaded(tmp_path)
    taught("steadylora", tasks=2)[1].save_pretrained(tmp_path)
    again = ALL["steadylora"]()
    if record:
        same(second(method, model), second(again, other))
        assert again.task_index == 3
    else:
        with pytest.raises(ConfigError, match="has no history"):
            again.take_up(other)


@pytest.mark.foreign("7.2")
def test_a_hub_that_cannot_be_asked_has_not_said_no(tmp_path, monkeypatch):
    _, model = taught("steadylora")
    model.save_pretrained(tmp_path / "one")
    other = loaded(tmp_path / "one")

    def download(origin, name, **how):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("undrift.methods.shared.sidecar.hf_hub_download", download)
    sidecars(other)["default"] = Sidecar(other, source=("somebody/adapter", {}))
    with pytest.raises(RunDirError, match="go online"):
        ALL["finetune"]().take_up(other)
    with pytest.warns(UserWarning, match="saved without"):
        other.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / RECORD).exists()


# ---------------------------------------------------------------- trained by something else


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("steadylora", "same object"),
        ("steadylora", "copied"),
        ("same", "loaded"),
        *(
            pytest.param(name, again, marks=pytest.mark.slow)
            for name in ("steadylora", "same")
            for again in ("same object", "another object", "loaded", "copied")
            if (name, again)
            not in {("steadylora", "same object"), ("steadylora", "copied"), ("same", "loaded")}
        ),
    ],
)
@pytest.mark.parametrize("how", ["p.data", "in place", "set_peft_model_state_dict"])
def test_what_something_else_has_trained_is_noticed(name, how, again, tmp_path):
    method, model = taught(name)
    if again == "loaded":
        model.save_pretrained(tmp_path / "one")
        model = loaded(tmp_path / "one")
    if again == "copied":
        model = copy.deepcopy(model)
    if how == "set_peft_model_state_dict":
        state = peft.get_peft_model_state_dict(model)
        changed = {k: v + 1e-3 if "lora_A" in k else v for k, v in state.items()}
        peft.set_peft_model_state_dict(model, changed)
    else:
        plain(model, *([lambda p: p.add_(1e-3)] if how == "in place" else []))
    method = method if again == "same object" else ALL[name]()
    with pytest.raises(ConfigError, match="not by an undrift method"):
        learn(method, model, 2, steps=1)
    model.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / RECORD).exists()
    method.start_history(model)
    learn(method, model, 1, steps=1)


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("there", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["loaded", "learned"])
def test_another_precision_is_no_training(there, source, tmp_path):
    method, model = taught("steadylora")
    if source == "loaded":
        model.save_pretrained(tmp_path)
        method, model = ALL["steadylora"](), loaded(tmp_path)
    learn(method, model.to(there).float(), 2, steps=1)
    assert method.task_index == 3


@pytest.mark.foreign("7.2")
def test_a_training_that_was_cut_off_begins_again_with_the_same_object(tmp_path):
    method = ALL["steadylora"]()
    model = attached(method)
    with pytest.raises(KeyboardInterrupt):
        train(method, model, 1, tmp_path, callbacks=[Stop(3)])
    train(method, model, 1, tmp_path)
    assert method.task_index == 2


@pytest.mark.foreign("7.2")
def test_a_lora_that_begins_elsewhere_than_at_zero_has_learned_where_it_was_loaded(tmp_path):
    config = SteadyLora(**OPTIONS).peft_config()
    config.init_lora_weights = "orthogonal"
    config.r = 4
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_llava(), config)
    learn(SteadyLora(**OPTIONS), copy.deepcopy(model), 1, steps=1)  # fresh: nothing to miss
    plain(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no history"):
        learn(SteadyLora(**OPTIONS), loaded(tmp_path), 1, steps=1)


@pytest.mark.foreign("7.2")
@pytest.mark.parametrize("kinds", [("steadylora", "steadylora"), ("finetune", "steadylora")])
def test_two_methods_in_one_training_are_refused(kinds, tmp_path):
    one, two = (ALL[name]() for name in kinds)
    model = attached(one)
    with pytest.raises(ConfigError, match="leave the other out"):
        train(one, model, 1, tmp_path, callbacks=[two])


@pytest.mark.foreign("7.2")
def test_a_merged_adapter_is_not_trained():
    method, model = taught("steadylora")
    model.merge_adapter()
    with pytest.raises(ConfigError, match=r"unmerge_adapter\(\)"):
        learn(method, model, 2, steps=1)


# ---------------------------------------------------------------- steps that nobody sees


class Late(torch.optim.Optimizer):
    """Hangs on the parameters from its first step on, and goes past their versions."""

    def __init__(self, params, **_):
        super().__init__(list(params), {"lr": 1e-2})
        self.on = False

    def step(self, closure=None):
        if not self.on:
            for p in self.param_groups[0]["params"]:
                p.register_post_accumulate_grad_hook(self.move)
        self.on = True

    def move(self, p):
        p.data.add_(p.grad, alpha=-1e-2)
        p.grad = None


class Instead(torch.optim.Optimizer):
    """Whose step is its own, and not its class's, so that no hook of a step runs."""

    def __init__(self, params, **_):
        super().__init__(list(params), {"lr": 1e-2})
        self.step = self.move

    @torch.no_grad()
    def move(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-2)


@pytest.mark.foreign("7.5")
@pytest.mark.parametrize(
    ("optimizer", "said"), [(Late, "inside the backward"), (Instead, "past the step hooks")]
)
@BOTH
def test_steps_that_no_hook_can_turn_are_refused(name, optimizer, said):
    method, model = taught(name)
    with pytest.raises(ConfigError, match=said):
        learn(method, model, 2, steps=4, optimizer=optimizer)


@pytest.mark.foreign("7.5")
def test_a_first_step_that_a_scaler_skips_and_idle_parameters_are_fine():
    a, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([a, idle], lr=0.1)
    hook = StepHook(optimizer, lambda: {a: lambda step: 0 * step, idle: lambda step: step}).attach()
    hook.check_seen()
    for _ in range(3):
        a.grad = torch.ones(2)
        optimizer.step()
        hook.check_seen()
    assert torch.equal(a, torch.ones(2))
