"""What happens to a step, against the oracle, and the properties that the equations promise."""

from __future__ import annotations

import pytest
import torch

from undrift.core import naive, steps

D, N, R, D_OUT, K = 24, 4, 3, 10, 7


@pytest.fixture
def past():
    """C (d, d) and its leading eigenpairs, float64."""
    g = torch.Generator().manual_seed(1)
    X = torch.randn(100, D, generator=g, dtype=torch.float64)
    X *= torch.arange(1, D + 1).rsqrt()
    C, _ = naive.second_moment(torch.zeros(D, D, dtype=torch.float64), 0, X)
    V, s = naive.spectrum(C)
    return C, V[:, :K].contiguous(), s[:K]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("half_width", [0, 1, 3, 50])
@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0])
def test_gain_is_the_oracles(past, half_width, rho):
    _, _, s = past
    g = steps.gain(s, half_width, rho, clamp=False)
    torch.testing.assert_close(g, naive.gain(s, half_width, rho))
    torch.testing.assert_close(steps.gain(s, half_width, rho, clamp=True), g.clamp(max=1))


def test_gain_amplifies_a_massive_direction_unless_clamped():
    s = torch.tensor([1e6, 1.0, 1.0, 1.0, 1.0])
    assert float(steps.gain(s, 3, 1.0, clamp=False)[0]) == pytest.approx(4, rel=1e-4)
    assert float(steps.gain(s, 3, 1.0, clamp=True).max()) == 1
    assert steps.gain(s[:0], 3, 1.0, clamp=True).shape == (0,)


def test_router_step_is_the_oracles(past):
    C, V, s = past
    dW, g = normal(N, D), steps.gain(s, 2, 1.0, clamp=False)
    fast = steps.router_step(dW, V, g, 0.3, 0.9)
    torch.testing.assert_close(fast, naive.router_step(dW, C, K, g, 0.3, 0.9))


def test_without_history_every_step_is_free():
    none, dW, dA = torch.zeros(D, 0), torch.randn(N, D), torch.randn(N, R, D)
    s = torch.zeros(0)
    mu = steps.damping(s, 0.1, relative=True)
    assert torch.equal(steps.router_step(dW, none, s, 0.1, 1.0), dW)
    assert torch.equal(steps.expert_a_step(dA, none, *steps.a_metric(s, mu, normalise=True)), dA)
    dBt, A = torch.randn(N, R, D_OUT), torch.randn(N, R, D)
    torch.testing.assert_close(steps.expert_b_step_aca(dBt, A, none, s, 0.1), dBt)
    P = steps.z_metric(torch.zeros(N * R, N * R), 0.1)
    torch.testing.assert_close(steps.expert_b_step_z(dBt, P), dBt)


def test_a_step_is_the_oracles(past):
    C, V, s = past
    dA = normal(N, R, D)
    mu = steps.damping(s, 0.9, relative=False)
    M = naive.inverse(C, K, 0.9)
    plain = steps.expert_a_step(dA, V, *steps.a_metric(s, mu, normalise=False))
    torch.testing.assert_close(plain, dA @ M)
    normalised = steps.expert_a_step(dA, V, *steps.a_metric(s, mu, normalise=True))
    torch.testing.assert_close(normalised, 0.9 * dA @ M)


def test_the_a_metric_has_eigenvalues_mu_over_s_plus_mu(past):
    C, V, s = past
    mu = steps.damping(s, 0.1, relative=True)
    assert float(mu) == pytest.approx(0.1 * float(s.mean()))
    M = steps.expert_a_step(torch.eye(D, dtype=C.dtype), V, *steps.a_metric(s, mu, normalise=True))
    values = torch.linalg.eigvalsh(M)
    torch.testing.assert_close(values[:K], (mu / (s + mu)).sort().values)
    torch.testing.assert_close(values[K:], torch.ones(D - K, dtype=C.dtype))


def test_degradation_obeys_the_metric(past):
    """tr(dA C dA^T) shrinks by (mu/(s+mu))^2 direction by direction, and grows nowhere [Eq. 12]."""
    C, V, s = past
    mu = steps.damping(s, 0.1, relative=True)
    inside, outside = steps.a_metric(s, mu, normalise=True)
    for seed in range(10):
        dA = normal(R, D, seed=seed)
        turned = steps.expert_a_step(dA, V, inside, outside)
        raw_parts = (dA @ V).square().sum(0) * s
        parts = (turned @ V).square().sum(0) * s
        torch.testing.assert_close(parts, raw_parts * inside.square())
        past_only = (V * s) @ V.mT  # C as it is kept
        raw, new = naive.degradation(dA, past_only), naive.degradation(turned, past_only)
        assert new <= raw * inside.max() ** 2
        assert naive.degradation(turned, C) < naive.degradation(dA, C)


def test_the_budget_of_equation_31_is_met(past):
    """dW = -G C^-1 / (2 lambda*) drifts by eps exactly [Eq. 26, 30, 31]."""
    C, _, _ = past
    G, eps = normal(D_OUT, D), 0.37
    dW = -G @ torch.linalg.inv(C) / (2 * naive.multiplier(G, C, eps))
    assert float(naive.degradation(dW, C)) == pytest.approx(eps)


def test_b_step_aca_is_the_oracles(past):
    _, V, s = past
    A, dB = normal(N, R, D, seed=3), normal(N, D_OUT, R, seed=4)
    kept = (V * s) @ V.mT
    expected = naive.b_step_aca(list(dB), list(A), kept, 0.1)
    fast = steps.expert_b_step_aca(dB.mT, A, V, s, 0.1).mT
    torch.testing.assert_close(fast, torch.stack(expected))


@pytest.mark.parametrize("active", [None, [True, False, True, True], [False, False, True, False]])
def test_b_step_z_is_the_oracles(active):
    z = normal(50, N * R, seed=5)
    C_z, dB = z.mT @ z / 50, normal(N, D_OUT, R, seed=6)
    P = steps.z_metric(C_z, 0.1, None if active is None else torch.tensor(active))
    fast = steps.expert_b_step_z(dB.mT.contiguous(), P).mT
    torch.testing.assert_close(fast, torch.stack(naive.b_step_z(list(dB), C_z, 0.1, active)))


def test_frozen_experts_stay_put_under_the_z_metric_and_would_not_under_the_full_one():
    z, dBt = normal(50, N * R), normal(N, R, D_OUT)
    active = torch.tensor([True, False, True, True])
    dBt[1] = 0
    C_z = z.mT @ z
    assert not steps.expert_b_step_z(dBt, steps.z_metric(C_z, 0.1, active))[1].any()
    assert steps.expert_b_step_z(dBt, steps.z_metric(C_z, 0.1))[1].abs().max() > 1e-3


def test_the_z_metric_has_eigenvalues_mu_over_s_plus_mu():
    z = normal(50, N * R)
    C_z = z.mT @ z
    s = torch.linalg.eigvalsh(C_z)
    mu = 0.2 * s.mean()
    torch.testing.assert_close(
        torch.linalg.eigvalsh(steps.z_metric(C_z, 0.2)), (mu / (s + mu)).flip(0)
    )
