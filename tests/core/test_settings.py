"""The two named settings are those of the specification; values out of range are refused."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from undrift.core import PAPER, SETTINGS, UNDRIFT, Metrics, Settings
from undrift.errors import ConfigError


def test_the_paper_to_the_letter():
    assert (PAPER.space, PAPER.token_weights, PAPER.task_weights) == ("gradient", "same", "tokens")
    assert (PAPER.history, PAPER.lambda_par, PAPER.lambda_perp) == ("running", 1, 1)
    assert not PAPER.clamp_gain
    assert (PAPER.mu, PAPER.mu_relative, PAPER.normalise) == (0.9, False, False)
    assert PAPER.a_metric
    assert PAPER.b_metric == "none"
    assert (PAPER.delta, PAPER.half_width, PAPER.rho, PAPER.max_components) == (0.9, 1, 1, 64)
    assert PAPER.tau == 0.1
    assert PAPER.frozen_at_most(8) == 7


def test_ours():
    assert Settings() == UNDRIFT
    assert (UNDRIFT.space, UNDRIFT.token_weights, UNDRIFT.task_weights) == (
        "both",
        "share",
        "equal",
    )
    assert (UNDRIFT.history, UNDRIFT.lambda_par, UNDRIFT.lambda_perp) == ("past", 0, 1)
    assert UNDRIFT.clamp_gain
    assert (UNDRIFT.mu, UNDRIFT.mu_relative, UNDRIFT.normalise) == (0.03, True, True)
    assert (UNDRIFT.a_metric, UNDRIFT.b_metric, UNDRIFT.mu_b) == (True, "z", 0.03)
    assert (UNDRIFT.delta, UNDRIFT.half_width, UNDRIFT.rho) == (0.99, 3, 1)
    assert UNDRIFT.max_components == 64
    assert not UNDRIFT.activation
    assert UNDRIFT.frozen_at_most(8) == 4
    assert dict(SETTINGS) == {"paper": PAPER, "undrift": UNDRIFT}


@pytest.mark.parametrize("value", [0, 3, -1, -3, 100, -100, None])
def test_never_all_experts_rest(value):
    assert 0 <= Settings(max_frozen=value).frozen_at_most(4) <= 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("space", "steps"),
        ("delta", 1.5),
        ("delta", 0.0),
        ("mu", -1.0),
        ("mu", "much"),
        ("router", 1),
        ("columns", 0),
        ("half_width", 1.5),
        ("max_frozen", "half"),
        ("importance_power", 3),
        ("lambda_par", True),
        ("tau", float("nan")),
    ],
)
def test_values_that_cannot_be_used_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        Settings(**{field: value})


def test_every_field_is_documented():
    text = f"{inspect.getdoc(Metrics)}\n{inspect.getdoc(Settings)}"
    for field in dataclasses.fields(Settings):
        assert text.count(f"\n    {field.name}: ") == 1
