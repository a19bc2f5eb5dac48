"""Which experts rest, against the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.precision import assert_same
from undrift.core import naive
from undrift.core.activation import Usage, choose_frozen, minmax, scores

N, D = 5, 12


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    X, W_G = torch.randn(60, D, generator=g), torch.randn(N, D, generator=g)
    return X.double(), W_G.double()


def counted(X, W_G, power=1):
    usage = Usage(N, power)
    usage.update(torch.softmax(X @ W_G.mT, 1), X.square().sum(1))
    return usage


@pytest.mark.parametrize("power", [1, 2])
def test_usage_is_the_oracles(batch, power):
    X, W_G = batch
    usage = counted(X, W_G, power)
    F_pre, alpha = torch.rand(N).double(), torch.tensor(37.0, dtype=torch.float64)
    assert_same(usage.utilisation(), naive.utilisation(X, W_G), terms=len(X))
    expected = naive.importance(F_pre, 37, X, W_G, power)
    assert_same(usage.importance(F_pre, alpha), expected, terms=len(X))


def test_batches_and_ranks_of_any_size_sum_to_the_same(batch):
    X, W_G = batch
    whole = counted(X, W_G)
    parts = [counted(part, W_G) for part in X.split([1, 40, 19])]
    for total, *shares in zip(whole.tensors(), *(p.tensors() for p in parts), strict=True):
        assert_same(sum(shares), total, terms=len(X))


def test_a_frozen_expert_counts_for_nothing(batch):
    X, W_G = batch
    active = torch.tensor([0, 2, 3])
    usage = Usage(N)
    w = torch.softmax(X @ W_G[active].mT, 1)
    usage.update(w, X.square().sum(1), active=active)
    assert not usage.w[[1, 4]].any()
    assert_same(usage.w.sum(), torch.tensor(60.0), terms=len(X))
    assert_same(usage.w[active], w.sum(0), terms=len(X))


def test_a_signal_that_is_the_same_all_over_says_nothing():
    assert not minmax(torch.full((N,), 3.0)).any()
    U, F_pre = torch.rand(N).double(), torch.rand(N).double()
    torch.testing.assert_close(scores(U, F_pre), naive.scores(U, F_pre))
    torch.testing.assert_close(scores(U, torch.zeros(N).double()), minmax(U))


@settings(max_examples=60, deadline=None)
@given(
    score=st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.1, 0.5]), min_size=1, max_size=8),
    tau=st.sampled_from([-1.0, -0.1, 0.0, 0.1, 1.0]),
    most=st.integers(0, 9),
)
def test_freezing_is_the_oracles_and_never_all(score, tau, most):
    values = torch.tensor(score, dtype=torch.float64)
    frozen = choose_frozen(values, tau, most)
    assert frozen.tolist() == naive.freeze(values, tau, most)
    assert int(frozen.sum()) <= min(most, len(score) - 1)
