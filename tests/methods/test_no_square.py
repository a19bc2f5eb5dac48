"""No d x d tensor is made for d > 512, whatever a method does with an input's second moment."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.methods.training import learn
from tests.tuner.llava import tiny_llava
from undrift.core.moment import MomentSketch
from undrift.methods.many import Many
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora

WIDE = 1024
METHODS = {
    "same": lambda: Same(experts=4, rank=2),
    "same, all switches": lambda: Same(
        experts=4, rank=2, history="running", activation=True, tau=1.0, b_metric="aca"
    ),
    "steadylora": lambda: SteadyLora(experts=4, rank=2),
    "many": lambda: Many(experts=4, rank=2),
}


class Squares(TorchDispatchMode):
    """Notes every operation that makes a tensor of WIDE x WIDE numbers or more."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for t in tree_leaves(out):
                if isinstance(t, torch.Tensor):
                    self.seen += 1
                    if t.numel() >= WIDE * WIDE:
                        self.found.append(f"{func} {tuple(t.shape)}")
        return out


def wide():
    """A model whose inputs are wide and whose projections are narrow, but for the projector's."""
    return tiny_llava(hidden_size=WIDE, intermediate_size=24, num_hidden_layers=1, head_dim=4)


@pytest.mark.parametrize("name", METHODS)
def test_no_square_is_made_in_whole_tasks(name, tmp_path):
    torch.manual_seed(0)
    first, base, again = METHODS[name](), wide(), wide()
    with Squares() as watched:
        model = first.attach(base)
        for task in (1, 2):  # the second goes through the transforms of the first
            learn(first, model, task, steps=3)
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(again, tmp_path, is_trainable=True)
        last = METHODS[name]()
        learn(last, loaded, 3, steps=3)
    assert {int(each.tasks) for each in last.statistics.values()} == {3}
    assert not watched.found, sorted(set(watched.found))
    assert watched.seen > 1000


def test_a_square_would_be_seen(monkeypatch):
    plain = MomentSketch.update

    def update(self, x, *more):
        plain(self, x, *more)
        x.mT @ x

    monkeypatch.setattr(MomentSketch, "update", update)
    method, base = SteadyLora(experts=4, rank=2), wide()
    model = method.attach(base)
    with Squares() as watched:
        learn(method, model, steps=1)
    assert any("mm" in found for found in watched.found)
