"""Which gates a layer gets, and which tokens they serve."""

from __future__ import annotations

import pytest
import torch

from undrift.errors import ConfigError, UnknownName
from undrift.tuner import GateContext
from undrift.tuner.gates import in_groups

E = 3


def serve(gates: torch.Tensor, tokens: int) -> torch.Tensor:
    """The gates of every single token, (tokens, E)."""
    rows = in_groups(gates, tokens, E, "up")
    return rows.repeat_interleave(tokens // len(rows), 0)


def test_one_row_for_all_one_a_sample_and_one_a_token():
    one, samples, tokens = torch.rand(E), torch.rand(2, E), torch.rand(2, 5, E)
    assert torch.equal(serve(one, 10), one.expand(10, E))
    assert torch.equal(serve(samples, 10), samples[[0] * 5 + [1] * 5])
    assert torch.equal(serve(tokens, 10), tokens.view(10, E))


def test_copies_of_a_sample_that_beams_make_get_its_gates():
    samples, tokens = torch.rand(2, E), torch.rand(2, 5, E)
    assert torch.equal(serve(samples, 2 * 4), samples[[0] * 4 + [1] * 4])  # four beams, one token
    assert torch.equal(serve(tokens, 2 * 3 * 5), tokens[[0, 0, 0, 1, 1, 1]].view(30, E))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), "has 3 experts, and gates of shape"),
        ((2, 4), "has 3 experts, and gates of shape"),
        ((3, 3), "another batch"),
        ((2, 4, 3), "another batch"),
        ((2, 10, 3), "another batch"),
        ((1, 1, 1, 3), "expected"),
    ],
)
def test_gates_of_another_batch_or_pool_are_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        in_groups(torch.rand(shape), 10, E, "up")


def test_a_layers_own_gates_win_over_those_of_all_layers():
    context = GateContext()
    context.layers |= {"up", "down"}
    assert context.for_layer("up") is None
    context.set("all")
    assert context.for_layer("up") == "all"
    context.set({"": "newest", "down": "all"})
    assert (context.for_layer("up"), context.for_layer("down")) == ("newest", "all")
    context.set({"down": "all"})
    assert context.for_layer("up") is None
    context.clear()
    assert context.for_layer("down") is None
    with pytest.raises(UnknownName, match="did you mean 'down'"):
        context.set({"donw": "all"})
