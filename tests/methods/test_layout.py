"""One memory layout, row-major, for whatever a method, its model and its optimiser hold.

A file gives every tensor back row-major. What lay otherwise while it lived rounds otherwise in the
products after a resume, on some processors and not on others: so the layout is checked, not the
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.methods.training import SMALL, attached, learn, trainable, weights
from tests.sweeps import METHODS_OF_EACH_MAKE, mostly_slow
from tests.tuner.llava import tiny_llava
from undrift.data.types import Example
from undrift.methods.same import Same
from undrift.registry import METHODS
from undrift.run.checkpoint import load_optimizer, save_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LEARNING = [name for name in METHODS.names() if METHODS.load(name).schedule != "none"]
SKETCHED = {"columns": 8, "rebase_share": 0.3}  # fewer than the tiny model is wide: no Omega = I
OPTIONS = {"same": SKETCHED | {"history": "running"}, "steadylora": SKETCHED, "many": SKETCHED}
OPTIMISERS = {
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "amsgrad": partial(torch.optim.AdamW, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "adafactor": torch.optim.Adafactor,
}


def made(name, **options):
    return METHODS.load(name)(**SMALL, **OPTIONS.get(name, {}), **options)


def tensors(held: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached from an object, with the way to it; gradients are not."""
    if isinstance(held, Tensor):
        yield place, held
        return
    if id(held) in seen:
        return
    seen.add(id(held))
    inside: Any = ()
    if isinstance(held, Mapping):
        inside = held.items()
    elif isinstance(held, (list, tuple, set)):
        inside = enumerate(held)
    elif isinstance(held, Optimizer):
        numbers = {
            id(p): i for i, p in enumerate(p for g in held.param_groups for p in g["params"])
        }
        inside = [(numbers[id(p)], state) for p, state in held.state.items()]
    elif isinstance(held, partial):
        inside = [*enumerate(held.args), *held.keywords.items()]
    elif isinstance(held, nn.Module) or type(held).__module__.startswith("undrift."):
        inside = getattr(held, "__dict__", {}).items()
    for key, value in list(inside):
        yield from tensors(value, f"{place}.{key}", seen)


def live(method, model) -> dict[str, Tensor]:
    held = {"method": method, "model": model, "optimizer": [h.optimizer for h in method._hooks[:1]]}
    return {key: t for name, each in held.items() for key, t in tensors(each, name, set())}


def assert_row_major(held: Mapping[str, Tensor]) -> None:
    for key, tensor in held.items():
        assert tensor.is_contiguous(), f"{key} {tuple(tensor.shape)} has strides {tensor.stride()}"


def layout(tensor: Tensor) -> tuple[list[int], list[int]]:
    """Shape and strides; a stride along which there is one number means nothing."""
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    return list(tensor.shape), [step for step, size in steps if size > 1]


@pytest.mark.foreign("1.1")
@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_everything_is_row_major_in_the_middle_of_a_task_and_after_it(name):
    method = made(name)
    model, found = attached(method), set()

    def look(step):
        if step == 4:
            method.before_save(model)
        held = live(method, model)
        found.update(held)
        assert_row_major(held)

    for task in (1, 2):
        learn(method, model, task, steps=6, on_step=look)
        assert_row_major(live(method, model))
    assert any(key.startswith("optimizer.") for key in found)
    if name in OPTIONS:  # or there would be nothing that could lie otherwise
        assert any(key.endswith("_sketch.Omega") for key in found)


@pytest.mark.foreign("1.1")
@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_what_is_loaded_lies_in_memory_as_what_was_saved(name, tmp_path):
    method = made(name)
    model, saved = attached(method), {}
    learn(method, model, 1, steps=3)

    def save(step):
        if step == 4:
            method.before_save(model)
            method.save_state(model, tmp_path)
            save_optimizer(method._hooks[0].optimizer, tmp_path)
            saved.update({key: layout(t) for key, t in live(method, model).items()})

    learn(method, model, 2, steps=6, on_step=save)
    resumed = made(name)
    other = attached(resumed)
    resumed.load_state(other, tmp_path)
    resumed.task_index = 2
    resumed.examples([Example(f"2-{i}", "what is it?", ("it",)) for i in range(8)], 2)
    optimizer = torch.optim.AdamW(trainable(other).values())
    load_optimizer(optimizer, tmp_path)
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=str(tmp_path))
    (tmp_path / "checkpoint-4").symlink_to(tmp_path, target_is_directory=True)
    state = SimpleNamespace(global_step=4, max_steps=6, is_world_process_zero=True)
    resumed.on_train_begin(args, state, None, model=other, optimizer=optimizer)
    loaded = {key: layout(t) for key, t in live(resumed, other).items()}
    assert saved.keys() >= {key for key in loaded if key.startswith("optimizer.")} > set()
    assert len(saved.keys() & loaded.keys()) > len(list(other.parameters()))
    for key, lay in loaded.items():
        was = saved.get(key, lay)
        if was[0] == lay[0]:  # what one forward pass leaves may be of other sizes
            assert lay == was, key


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_other_optimisers_too(kind):
    method = Same(**SMALL, **SKETCHED, space="both")
    model = attached(method)
    for task in (1, 2):
        learn(
            method,
            model,
            task,
            steps=4,
            optimizer=OPTIMISERS[kind],
            on_step=lambda step: assert_row_major(live(method, model)),
        )


@pytest.mark.parametrize("name", ["finetune", "ewc", "steadylora"])
def test_a_users_parameters_of_another_layout_are_laid_out_anew(name):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=5, target_modules=r".*language_model.*(up|down)_proj")
    model = peft.get_peft_model(tiny_llava(), config)
    before = weights(model)
    for p in trainable(model).values():
        p.data = p.data.mT.contiguous().mT
    assert not any(p.is_contiguous() for p in trainable(model).values())
    method = made(name)
    same = list(trainable(model).values())
    learn(method, model, steps=3, on_step=lambda step: assert_row_major(live(method, model)))
    assert_row_major(live(method, model))
    assert all(p is q for p, q in zip(same, trainable(model).values(), strict=True))
    plain = peft.get_peft_model(tiny_llava(), config)
    for name_, p in trainable(plain).items():
        p.data = before[name_].clone()
    learn(made(name), plain, steps=3)
    assert all(torch.equal(p, weights(plain)[key]) for key, p in weights(model).items())
