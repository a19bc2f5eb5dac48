"""Two processes give the adapter and the state of one, for the methods that keep one adapter."""

from __future__ import annotations

import pytest

from tests.distributed.test_two_processes import learned

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.mark.parametrize("name", ["ewc", "replay", "clmoe", "sefe"])
def test_two_processes_equal_one(name, tmp_path):
    (one,) = learned(tmp_path / "one", 1, "plain_methods", name)
    first, second = learned(tmp_path / "two", 2, "plain_methods", name)
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert (first[key] == second[key]).all(), f"ranks differ in {key}"
        want, got = value.double(), first[key].double()
        scale = max(float(want.abs().max()), 1e-12)
        error = float((want - got).abs().max())
        assert error <= 1e-4 * scale, f"{key}: {error:.2e} of {scale:.2e}"
