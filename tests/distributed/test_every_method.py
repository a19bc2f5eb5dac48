"""Two processes give the adapter and the state of one, for every method."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_two_processes import launch, projector
from undrift.registry import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LEARNING = [name for name in METHODS.names() if METHODS.load(name).schedule != "none"]


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    for processes in (1, 2):
        launch(folder / str(processes), processes, "every_method", *LEARNING)
    return folder


@pytest.mark.parametrize("name", LEARNING)
def test_two_processes_equal_one(name, states):
    one = load_file(states / "1" / name / "rank0.safetensors")
    first, second = (load_file(states / "2" / name / f"rank{i}.safetensors") for i in (0, 1))
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"ranks differ in {key}"
        want, got = value.double(), first[key].double()
        if key.endswith("_V"):  # eigenvectors: single ones have no sign
            want, got = projector(one, key), projector(first, key)
        if want.numel():
            scale = max(float(want.abs().max()), 1e-2)
            error = float((want - got).abs().max())
            assert error <= 1e-4 * scale, f"{key}: {error:.2e} of {scale:.2e}"
