from __future__ import annotations

import torch
from torch import nn

from undrift.tuner.frozen import Frozen, count_parameters, freeze


def test_frozen_tensors_have_the_names_of_parameters_and_count_like_them():
    made = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    names, count = list(made.state_dict()), count_parameters(made)
    x, before = torch.randn(2, 3), made(torch.ones(2, 3))
    freeze(made[0], "weight")
    assert [n for n, _ in made.named_buffers()] == ["0.weight"]
    freeze(made)
    freeze(made)  # what is frozen stays so
    assert not list(made.parameters()) and sorted(made.state_dict()) == sorted(names)
    assert count_parameters(made) == count == 3 * 4 + 3 * 4
    assert torch.equal(made(torch.ones(2, 3)), before) and not made(x).requires_grad
    other = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))


def test_a_dictionary_of_frozen_tensors_is_saved_by_name():
    held = Frozen({"a": torch.ones(2)})
    held["b"] = torch.zeros(3)
    assert list(held.state_dict()) == ["a", "b"] and count_parameters(held) == 5
    held["a"] = torch.ones(4)
    assert dict(held.items())["a"].shape == (4,) and "a" in held
