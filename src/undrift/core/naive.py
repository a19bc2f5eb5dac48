"""SAME on one page: plain loops, d x d matrices, float64, the paper's shapes and nothing clever.

Every fast function of `core` is tested against this file. It is slow on purpose; read it first.
x is one token (d,), X a batch of them (T, d), A[i] is r x d, B[i] is d_out x r, W_G is N x d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false


def route(x: Tensor, W_G: Tensor) -> Tensor:
    """The route w(x) = softmax(W_G x), (N,)."""
    e = torch.exp(W_G @ x - (W_G @ x).max())
    return e / e.sum()


def layer(
    x: Tensor, W0: Tensor, A: list[Tensor], B: list[Tensor], W_G: Tensor, alpha: float
) -> Tensor:
    """The layer: h = W_0 x + (alpha/r) sum_i w_i(x) B_i A_i x, (d_out,) [Eq. 2]."""
    w = route(x, W_G)
    h = W0 @ x
    for i in range(len(A)):
        h = h + alpha / A[i].shape[0] * w[i] * (B[i] @ (A[i] @ x))
    return h


def second_moment(
    C: Tensor, alpha: float, X: Tensor, u: Tensor | None = None
) -> tuple[Tensor, float]:
    """C^t = (alpha_{t-1} C^{t-1} + n_t C_hat^t) / alpha_t, and alpha_t [Eq. 3].

    C_hat^t = sum_x u x x^T / sum_x u; the paper's tokens all have the weight u = 1.
    """
    u = torch.ones(len(X), dtype=X.dtype) if u is None else u
    C_hat = torch.zeros_like(C)
    for x, weight in zip(X, u, strict=True):
        C_hat = C_hat + weight / u.sum() * torch.outer(x, x)
    return (alpha * C + len(X) * C_hat) / (alpha + len(X)), alpha + len(X)


def spectrum(C: Tensor) -> tuple[Tensor, Tensor]:
    """C = V diag(s) V^T, s descending [Eq. 4]."""
    s, V = torch.linalg.eigh(C)
    return V.flip(-1), s.flip(-1)


def components(C: Tensor, delta: float) -> int:
    """The smallest k with sum_{i<=k} s_i / tr C >= delta [Eq. 5]."""
    _, s = spectrum(C)
    k, energy = 0, 0.0
    while energy < delta * float(C.trace()) * (1 - 1e-12):
        energy += float(s[k])
        k += 1
    return k


def gain(s: Tensor, w: int, rho: float) -> Tensor:
    """g(s)_i = (s_i / mean of s over [i-w, i+w])^rho, the window cut at the ends [Eq. 7]."""
    g: list[Tensor] = []
    for i in range(len(s)):
        window = s[max(0, i - w) : i + w + 1]
        g.append((s[i] / window.mean()) ** rho)
    return torch.stack(g)


def router_step(
    dW: Tensor, C: Tensor, k: int, g: Tensor, lambda_par: float, lambda_perp: float
) -> Tensor:
    """dW_G = lambda_par dW V_par diag(g) V_par^T + lambda_perp dW V_perp V_perp^T [Eq. 5 to 11]."""
    V, _ = spectrum(C)
    V_par, V_perp = V[:, :k], V[:, k:]
    dW_par = dW @ V_par @ torch.diag(g) @ V_par.T
    dW_perp = dW @ V_perp @ V_perp.T
    return lambda_par * dW_par + lambda_perp * dW_perp


def degradation(dW: Tensor, C: Tensor) -> Tensor:
    """E ||dW x||^2 over the past = tr(dW C^{t-1} dW^T) [Eq. 12]."""
    return torch.trace(dW @ C @ dW.T)


def inverse(C: Tensor, k: int, mu: float) -> Tensor:
    """C^-1 ~ V_k (S_k + mu I)^-1 V_k^T + (1/mu) (I - V_k V_k^T) [Eq. 15]."""
    V, s = spectrum(C)
    V_k, S_k, eye = V[:, :k], torch.diag(s[:k]), torch.eye(len(C), dtype=C.dtype)
    inner = V_k @ torch.linalg.inv(S_k + mu * torch.eye(k, dtype=C.dtype)) @ V_k.T
    return inner + (eye - V_k @ V_k.T) / mu


def b_step_aca(dB: list[Tensor], A: list[Tensor], C: Tensor, mu_b: float) -> list[Tensor]:
    """dB_i <- dB_i mu_i (A_i C A_i^T + mu_i I)^-1 with mu_i = mu_b tr(A_i C A_i^T) / r."""
    steps: list[Tensor] = []
    for dB_i, A_i in zip(dB, A, strict=True):
        K = A_i @ C @ A_i.T
        mu = mu_b * K.trace() / len(K)
        steps.append(dB_i @ (mu * torch.linalg.inv(K + mu * torch.eye(len(K), dtype=C.dtype))))
    return steps


def expert_input(x: Tensor, A: list[Tensor], W_G: Tensor) -> Tensor:
    """The input of B: z = (w_i(x) A_i x)_i, (N r,)."""
    w = route(x, W_G)
    return torch.cat([w[i] * (A[i] @ x) for i in range(len(A))])


def b_step_z(
    dB: list[Tensor], C_z: Tensor, mu_b: float, active: list[bool] | None = None
) -> list[Tensor]:
    """Over the active experts dB <- dB mu (C_z + mu I)^-1; a frozen one does not move."""
    r, N = dB[0].shape[1], len(dB)
    active = active or [True] * N
    rows = [i * r + j for i in range(N) if active[i] for j in range(r)]
    K = C_z[rows][:, rows]
    mu = mu_b * K.trace() / len(K)
    joined = torch.cat([dB[i] for i in range(N) if active[i]], dim=1)  # d_out x (active r)
    joined = joined @ (mu * torch.linalg.inv(K + mu * torch.eye(len(K), dtype=K.dtype)))
    moved = iter(joined.split(r, dim=1))
    return [next(moved) if active[i] else torch.zeros_like(dB[i]) for i in range(N)]


def utilisation(X: Tensor, W_G: Tensor) -> Tensor:
    """U(i) = (1/n) sum_x w_i(x) [Eq. 16]."""
    total = torch.zeros(len(W_G), dtype=X.dtype)
    for x in X:
        total = total + route(x, W_G)
    return total / len(X)


def importance(F_pre: Tensor, alpha: float, X: Tensor, W_G: Tensor, power: int = 1) -> Tensor:
    """F^t(i) = (alpha_{t-1} F^pre(i) + sum_x w_i(x) ||x||^2) / alpha_t [Eq. 17]."""
    total = alpha * F_pre
    for x in X:
        total = total + route(x, W_G) ** power * (x @ x)
    return total / (alpha + len(X))


def scores(U: Tensor, F_pre: Tensor) -> Tensor:
    """Score(i) = minmax(U)(i) - minmax(F^pre)(i), 0 for a signal that is the same all over [18]."""

    def minmax(v: Tensor) -> Tensor:
        low, high = float(v.min()), float(v.max())
        return (v - low) / (high - low) if high > low else torch.zeros_like(v)

    return minmax(U) - minmax(F_pre)


def freeze(score: Tensor, tau: float, max_frozen: int) -> list[bool]:
    """Freeze where Score(i) < tau, lowest first, at most `max_frozen`, never all."""
    order = sorted(range(len(score)), key=lambda i: (float(score[i]), i))
    rest = [i for i in order if float(score[i]) < tau][: min(max_frozen, len(score) - 1)]
    return [i in rest for i in range(len(score))]


def multiplier(G: Tensor, C: Tensor, eps: float) -> float:
    """lambda* = (1/2) sqrt(tr(G C^-1 G^T) / eps): the drift budget eps, met exactly [Eq. 31]."""
    return 0.5 * math.sqrt(float(torch.trace(G @ torch.linalg.inv(C) @ G.T)) / eps)
