"""What is known of past tasks follows a model that is moved after it was bound or loaded."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.methods.training import SMALL, attached, learn
from undrift.methods import sefe
from undrift.registry import METHODS
from undrift.tuner.forward import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
THERE = torch.device("meta")  # another device, which every machine has
MATCHED = ("disco", "hide", "nearlora")


class Stop(Exception):
    pass


def loaded(name, folder, tasks=1):
    """A method that was saved inside or behind a task, and loaded on the CPU."""
    kind = METHODS.load(name)
    method = kind(**SMALL)
    model = attached(method)

    def save(step):
        if step == 2:
            method.before_save(model)
            method.save_state(model, folder)

    for task in range(1, tasks + 1):
        learn(method, model, task, steps=3, on_step=save if tasks > 1 else None)
    if tasks == 1:
        method.save_state(model, folder)
    again = kind(**SMALL)
    other = attached(again)
    again.load_state(other, folder)
    return again, other


def on_the_cpu(method, model):
    """What of the state has not moved."""
    tensors = (method.state(model).tensors or {}).items()
    return {name.rpartition(":")[2] for name, each in tensors if each.device != THERE}


@pytest.mark.parametrize(
    "name", ["steadylora", "many", "ewc", "clmoe", "keeplora", "eblora", *MATCHED]
)
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_state_is_where_the_weights_are_when_a_task_begins(name, tasks, tmp_path):
    method, model = loaded(name, tmp_path, tasks)
    assert on_the_cpu(method, model)
    model.to(THERE)
    method.bind(model)
    assert on_the_cpu(method, model) <= {"counts", "before"}  # which CL-MoE brings when it merges


def test_clmoe_merges_where_the_experts_are(tmp_path):
    method, model = loaded("clmoe", tmp_path, tasks=2)
    assert method._before
    model.to(THERE)
    method.task_end(model)
    assert method._before == {}


def test_what_pulls_is_what_was_loaded_and_pulls_the_weights_that_there_are(tmp_path):
    method, model = loaded("ewc", tmp_path)
    kept = {name: each.clone() for name, each in method._penalty.tensors.items()}
    method.bind(model)
    assert all(torch.equal(each, kept[name]) for name, each in method._penalty.tensors.items())
    model.to(THERE)
    method.bind(model)
    found = method._penalty.transforms(1.0)
    assert {id(p) for p in found} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(turn(torch.zeros_like(p)).device == THERE for p, turn in found.items())


@pytest.mark.parametrize("name", [*MATCHED, "modalprompt", "smolora", "continual_llava"])
def test_prompts_are_looked_at_where_they_are_though_nothing_was_bound_there(
    name, tmp_path, monkeypatch
):
    method, model = loaded(name, tmp_path)
    model.to(THERE).eval()
    text = torch.ones(2, 3, dtype=torch.bool, device=THERE)
    prompt = Prompt(torch.zeros(2, 3, 24, device=THERE), text, ~text)

    def features(prompt, centre, encoder):
        assert centre.device == THERE
        raise Stop

    where = "undrift.methods.shared.task_matcher" if name in MATCHED else type(method).__module__
    monkeypatch.setattr(sys.modules[where], "features", features)
    with pytest.raises(Stop):
        (method._choose if name == "modalprompt" else method.gates)(prompt)
    assert name not in MATCHED or on_the_cpu(method, model) == set()


def test_a_matcher_goes_on_counting_when_it_is_moved(tmp_path):
    method, model = loaded("disco", tmp_path)
    before = method._matcher
    method.bind(model)
    assert method._matcher is before and before.tasks == 1
    method._follow(THERE)
    assert method._matcher is not before and method._matcher.identified is before.identified
    assert method._matcher.tasks == 1


def test_key_elements_that_lie_on_the_cpu_are_drawn_there_and_only_those_drawn_are_moved(
    tmp_path, monkeypatch
):
    method, model = loaded("sefe", tmp_path)
    model.to(THERE)
    seen = []
    monkeypatch.setattr(sefe, "drawn", lambda keys, *_: seen.append(keys.device.type) or keys[:3])
    turns = method.gradient_transforms(model)
    assert {*seen} == {"cpu"}
    assert all(turn(torch.zeros_like(p)).device == THERE for p, turn in turns.items())
