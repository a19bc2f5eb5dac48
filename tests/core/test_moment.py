"""The second moment: additive within a task, exact merges between tasks, accurate enough to use."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.precision import assert_same
from tests.sweeps import mostly_slow
from undrift.core import naive
from undrift.core.moment import History, MomentSketch


def tokens(count: int, dim: int, *, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """Float64 tokens with a decaying spectrum in a random basis."""
    g = torch.Generator().manual_seed(seed)
    rank = dim if rank is None else rank
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64)).Q[:, :rank]
    scale = torch.arange(1, rank + 1, dtype=torch.float64).rsqrt()
    return (torch.randn(count, rank, generator=g, dtype=torch.float64) * scale) @ basis.mT


def sketched(X: torch.Tensor, columns: int, seed: int = 0) -> MomentSketch:
    sketch = MomentSketch(X.shape[1], columns, seed)
    sketch.update(X)
    return sketch


def matrix(history: History) -> torch.Tensor:
    V = history.V.double()
    return (V * history.s) @ V.mT


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=6),
    ranks=st.integers(1, 4),
    columns=st.sampled_from([8, 16, 40]),
    data=st.data(),
)
def test_any_split_over_batches_and_ranks_gives_the_same_sketch(cuts, ranks, columns, data):
    X = tokens(200, 40).float()
    whole = sketched(X, columns)
    bounds = sorted({0, 200, *cuts})
    shares = [MomentSketch(40, columns) for _ in range(ranks)]
    for low, high in itertools.pairwise(bounds):
        shares[data.draw(st.integers(0, ranks - 1))].update(X[low:high])
    for total, *parts in zip(whole.tensors(), *(s.tensors() for s in shares), strict=True):
        assert_same(sum(parts), total, terms=len(X), scale=float(total.norm()))
    assert all(torch.equal(share.Omega, whole.Omega) for share in shares)


@pytest.mark.foreign("1.1")
@pytest.mark.parametrize(("dim", "columns"), [(40, 8), (40, 40), (12, 8), (9, 1)])
def test_what_is_kept_is_row_major_from_the_moment_it_is_made(dim, columns):
    """As a file gives it back: a product of another layout may round otherwise after a resume."""
    history = History.empty(dim, dim - 1)
    for task in range(3):
        sketch = MomentSketch(dim, columns, seed=task)
        for part in tokens(90, dim, seed=task).split(30):
            sketch.update(part)
            assert sketch.Omega.is_contiguous()
            assert all(total.is_contiguous() for total in sketch.tensors())
            sketch.rebase()
        history = history.merge(sketch, delta=0.999)
        for field in dataclasses.fields(History):
            assert getattr(history, field.name).is_contiguous(), field.name


def test_rows_of_zeros_count_for_nothing():
    X = tokens(30, 24).float()
    padded = torch.cat([X, torch.zeros(7, 24)])[torch.randperm(37)]
    sketch = MomentSketch(24, 8)
    sketch.update(padded, tokens=torch.tensor(30))
    for a, b in zip(sketch.tensors(), sketched(X, 8).tensors(), strict=True):
        assert_same(a, b, terms=len(padded))


@pytest.mark.parametrize(("columns", "error"), [(16, 5e-6), (32, 1e-6)])  # sketched, exact
def test_history_of_two_tasks_equals_one_long_task_where_the_rank_fits(columns, error):
    X1, X2 = tokens(300, 32, rank=6, seed=1), tokens(500, 32, rank=6, seed=2)
    past = History.empty(32, 16).merge(sketched(X1, columns), delta=1.0)
    both = past.merge(sketched(X2, columns, seed=5), delta=1.0)
    C, alpha = naive.second_moment(torch.zeros(32, 32, dtype=torch.float64), 0, X1)
    C, alpha = naive.second_moment(C, alpha, X2)
    assert relative(matrix(both), C) <= error
    assert float(both.trace) == pytest.approx(float(C.trace()), rel=1e-6)
    assert float(both.tokens) == alpha == 800
    assert int(both.k) == 12
    assert float(both.s.sum() / both.trace) == pytest.approx(1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=8, unique=True))
def test_a_history_merged_on_the_way_is_that_of_one_merge_at_the_end(cuts):
    """However often: nothing is forgotten where all components are kept."""
    X = tokens(200, 16)
    history = History.empty(16, 16)
    for low, high in itertools.pairwise([0, *sorted(cuts), 200]):
        history = history.merge(sketched(X[low:high], 16), delta=1.0)
    once = History.empty(16, 16).merge(sketched(X, 16), delta=1.0)
    assert relative(matrix(history), matrix(once)) <= 2e-6
    assert float(history.trace) == pytest.approx(float(once.trace), rel=1e-6)
    assert float(history.tokens) == float(once.tokens) == 200


def test_kept_eigenpairs_merge_exactly_even_if_the_new_task_never_looks_their_way():
    """Omega re-based on task 2 is blind to task 1, whose eigenpairs stay all the same."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
    X1 = torch.randn(200, 8, dtype=torch.float64) @ basis[:, :8].mT
    X2 = torch.randn(100, 8, dtype=torch.float64) @ basis[:, 8:16].mT
    past = History.empty(64, 24).merge(sketched(X1, 24), delta=1.0)
    sketch = sketched(X2[:50], 24, seed=1)
    sketch.rebase(fresh=0)
    sketch.update(X2[50:])
    V, s = sketch.eigenpairs()
    seen = (past.V.mT @ sketch.Omega).square().sum() / 8
    assert seen < 0.5  # of task 1 by the new Omega: the sketch alone would lose it
    exact = (past.tokens * matrix(past) + (V * s) @ V.mT) / 300
    merged = past.merge(sketch, delta=1.0)
    assert relative(matrix(merged), exact) <= 1e-6
    assert relative(matrix(merged), (X1.mT @ X1 + X2.mT @ X2) / 300) <= 5e-6


def test_a_chain_of_merges_accounts_for_all_energy():
    """With exact sketches: trace = kept + dropped, and each cut is written down."""
    history, cut = History.empty(48, 10), 0.0
    for task in range(4):
        X = tokens(200, 48, seed=task)
        known = (history.tokens * matrix(history) + X.mT @ X) / (history.tokens + 200)
        cut *= float(history.tokens) / float(history.tokens + 200)
        history = history.merge(sketched(X, 48), delta=0.95)
        s = torch.linalg.eigvalsh(known).flip(-1)
        cut += float(s[int(history.k) :].sum())
        torch.testing.assert_close(
            history.s[: int(history.k)], s[: int(history.k)], rtol=1e-5, atol=0
        )
        assert float(history.dropped) == pytest.approx(cut, rel=1e-5)
        assert float(history.trace - history.s.sum()) == pytest.approx(cut, rel=1e-5)


@pytest.mark.parametrize("delta", [0.5, 0.9, 0.99])
def test_the_kept_components_are_the_fewest_that_hold_delta(delta):
    X = tokens(400, 32)
    history = History.empty(32, 32).merge(sketched(X, 32), delta)
    C, _ = naive.second_moment(torch.zeros(32, 32, dtype=torch.float64), 0, X)
    assert int(history.k) == naive.components(C, delta)
    assert float(history.s.sum() / history.trace) >= delta
    V, s = history.basis()
    assert V.shape == (32, int(history.k))
    assert_same(V.mT @ V, torch.eye(len(s)), terms=32)
    assert not history.V[:, int(history.k) :].any()


def test_the_cap_shows_in_the_share_that_is_kept():
    X = tokens(400, 32)
    history = History.empty(32, 4).merge(sketched(X, 32), delta=0.99)
    s = torch.linalg.eigvalsh(X.mT @ X).flip(-1)
    assert int(history.k) == 4
    kept = float(history.s.sum() / history.trace)
    assert kept == pytest.approx(float(s[:4].sum() / s.sum()), rel=1e-5)


def test_no_token_changes_nothing_and_an_empty_history_holds_nothing():
    empty = History.empty(16, 8)
    assert empty.merge(MomentSketch(16, 4), delta=0.9) is empty
    V, s = empty.basis()
    assert V.shape == (16, 0)
    assert s.shape == (0,)
    filled = empty.merge(sketched(tokens(20, 16), 16), delta=0.9)
    for field in dataclasses.fields(History):
        a, b = getattr(filled, field.name), getattr(empty, field.name)
        assert a.shape == b.shape
        assert a.dtype == b.dtype


@pytest.mark.parametrize("count", [0, 1, 5])
def test_recovery_of_a_sketch_with_fewer_tokens_than_columns(count):
    X = tokens(count, 40)
    V, s = sketched(X, 16).eigenpairs()
    assert relative((V * s) @ V.mT, X.mT @ X) <= 1e-5 if count else not s.any()


def test_rebasing_carries_the_tokens_seen_before():
    X = tokens(600, 64, rank=10)
    sketch = sketched(X[:100], 24)
    sketch.rebase()
    V, s = sketch.eigenpairs()
    assert relative((V * s) @ V.mT, X[:100].mT @ X[:100]) <= 1e-5
    sketch.update(X[100:])
    V, s = sketch.eigenpairs()
    assert relative((V * s) @ V.mT, X.mT @ X) <= 1e-5
    assert int(sketch.tokens) == 600
    assert float(sketch.trace) == pytest.approx(float(X.square().sum()), rel=1e-6)


def spectrum(name: str, dim: int) -> torch.Tensor:
    i = torch.arange(1, dim + 1, dtype=torch.float64)
    if name == "power":
        return 1 / i
    if name == "llm":  # one massive direction on top of a power law
        return torch.where(i == 1, 20.0, 1 / i)
    return torch.where(i <= 100, 1.0 / i.sqrt(), 1e-3)  # rank 100 and noise


@pytest.mark.parametrize(
    ("name", "energy_bar", "error_bar"),
    mostly_slow([("power", 0.985, 0.15), ("llm", 0.995, 0.15), ("rank100", 0.995, 0.05)], ["llm"]),
)
def test_rebased_sketch_against_the_exact_matrix(name, energy_bar, error_bar):
    """The bars: captured energy of the top 64 with 128 columns, d = 1024, and the eigenvalues."""
    torch.manual_seed(0)
    dim, k, batches = 1024, 64, 50
    basis = torch.linalg.qr(torch.randn(dim, dim)).Q
    scale = spectrum(name, dim).sqrt().float()
    sketch, C = MomentSketch(dim, 128), torch.zeros(dim, dim)
    for step in range(batches):
        tilt = 1 + 0.3 * torch.randn(dim)  # batches differ
        X = (torch.randn(300, dim) * scale * tilt) @ basis.mT
        C += X.mT @ X
        sketch.update(X)
        if step == 0:
            sketch.rebase()
    C = C.double()
    V, s = sketch.eigenpairs()
    V, s = V[:, :k], s[:k]
    optimal = torch.linalg.eigvalsh(C).flip(-1)[:k]
    captured = float(torch.einsum("dk,de,ek->", V, C, V) / optimal.sum())
    assert captured >= energy_bar
    assert float(((s - optimal) / optimal).abs().mean()) <= error_bar
