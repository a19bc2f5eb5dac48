"""SAME on one page: plain loops, d x d matrices, float64, the paper's shapes and nothing clever.

Every fast function of `core` is tested against this file, and the method `same` against
`learn_task`, which puts the equations in order. It is slow on purpose; read it first.
x is one token (d,), X a batch of them (T, d), A[i] is r x d, B[i] is d_out x r, W_G is N x d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undrift.core.settings import Settings

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false


def route(x: Tensor, W_G: Tensor, active: list[bool] | None = None) -> Tensor:
    """The route w(x) = softmax(W_G x) over the experts that work, 0 for one that rests, (N,)."""
    e = torch.exp(W_G @ x - (W_G @ x).max())
    if active is not None:
        e = e * torch.tensor(active)
    return e / e.sum()


def layer(
    x: Tensor, W0: Tensor, A: list[Tensor], B: list[Tensor], W_G: Tensor, alpha: float,
    active: list[bool] | None = None,
) -> Tensor:  # fmt: skip
    """The layer: h = W_0 x + (alpha/r) sum_i w_i(x) B_i A_i x, (d_out,) [Eq. 2]."""
    w = route(x, W_G, active)
    h = W0 @ x
    for i in range(len(A)):
        if active is None or active[i]:
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


def components(C: Tensor, delta: float, trace: float | None = None) -> int:
    """The smallest k with sum_{i<=k} s_i / tr C >= delta [Eq. 5]; a trace of before truncation."""
    _, s = spectrum(C)
    k, energy, trace = 0, 0.0, float(C.trace()) if trace is None else trace
    while k < len(s) and energy < delta * trace * (1 - 1e-12):
        energy += float(s[k])
        k += 1
    return k


def gain(s: Tensor, w: int, rho: float) -> Tensor:
    """g(s)_i = (s_i / mean of s over [i-w, i+w])^rho, the window cut at the ends [Eq. 7]."""
    g: list[Tensor] = []
    for i in range(len(s)):
        window = s[max(0, i - w) : i + w + 1]
        g.append((s[i] / window.mean()) ** rho)
    return torch.stack(g) if g else s


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


# ------------------------------------------------------------ Algorithms 1 and 2


Apply = Callable[[str, Tensor, Sequence[bool]], Tensor]
"""The output (T, d_out) of a linear, by name, for X (T, d) and which of its rows are no padding."""


def learn_task(
    linears: Mapping[str, Mixture],
    batches: Sequence[Any],
    rates: Sequence[float],
    loss: Callable[[Any, Apply], Tensor],
    c: Settings,
    weight_decay: float = 0.0,
) -> None:
    """Learn one task as the setting `paper` does [Algorithm 1].

    Args:
        linears: The adapted linears by name, as the task before left them; changed in place.
        batches: What each optimiser step learns from.
        rates: The learning rate of each step.
        loss: The model around the linears: from a batch and how a linear is computed, to ().
        c: The numbers of the paper.
        weight_decay: AdamW's.
    """
    for linear in linears.values():
        linear.begin(c)
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        leaves = [W.requires_grad_() for linear in linears.values() for W in linear.weights()]
        value = loss(batch, lambda name, X, there: linears[name].forward(X, there))
        found = torch.autograd.grad(value, leaves, materialize_grads=True)  # 0 for who rests
        gradients = iter(found)
        for linear in linears.values():
            linear.step([next(gradients) for _ in linear.weights()], rate, weight_decay, c)
        if step % max(10, round(c.refresh_share * len(batches))) == 0:
            for linear in linears.values():
                linear.hold_router(c)
        if step == max(1, round(c.warmup_share * len(batches))):
            for linear in linears.values():
                linear.choose_active(c)
    for linear in linears.values():
        linear.end(c)


@dataclass
class Mixture:
    """The experts and the router of one linear, and what is remembered of its past inputs.

    When asked, `layer` answers with all experts, and nothing is counted [Algorithm 2].
    """

    W0: Tensor  # d_out x d, frozen
    A: list[Tensor]  # N times r x d
    B: list[Tensor]  # N times d_out x r
    W_G: Tensor  # N x d
    alpha: float  # LoRA's
    C: Tensor  # d x d, what is kept of C^{t-1}; 0 before the first task
    F_pre: Tensor  # (N,), what the past needed each expert for; 0 likewise
    trace: float = 0.0  # tr C^{t-1}, with what was not kept
    tokens: float = 0.0  # alpha_{t-1}, how many tokens C^{t-1} stands for

    def weights(self) -> list[Tensor]:
        """All that learns."""
        return [*self.A, *self.B, self.W_G]

    def begin(self, c: Settings) -> None:
        """Begin a task: all experts work, nothing is seen, the metric of the past is made."""
        self.active = [True] * len(self.A)
        self.seen: list[Tensor] = []
        self.used, self.energy = torch.zeros_like(self.F_pre), torch.zeros_like(self.F_pre)
        self.adam = [Adam(W) for W in self.weights()]
        self.metric = inverse(self.C, components(self.C, c.delta, self.trace), c.mu)
        self.hold_router(c)

    def forward(self, X: Tensor, there: Sequence[bool]) -> Tensor:
        """Answer every token, and count those that are no padding [Eq. 2]."""
        H: list[Tensor] = []
        for x, is_token in zip(X, there, strict=True):
            H.append(layer(x, self.W0, self.A, self.B, self.W_G, self.alpha, self.active))
            if is_token:
                x = x.detach()
                w = route(x, self.W_G.detach(), self.active)
                self.seen.append(x)
                self.used += w  # [Eq. 16]
                self.energy += w * (x @ x)  # [Eq. 17]
        return torch.stack(H)

    def step(self, G: list[Tensor], rate: float, weight_decay: float, c: Settings) -> None:
        """Turn the gradients as the past allows, and step with Adam; who rests stays put."""
        N = len(self.A)
        if self.tokens > 0:  # curvature-aware scaling of A [Eq. 14, 15]
            G[:N] = [G_i @ self.metric for G_i in G[:N]]
        G[-1] = router_step(G[-1], *self.router_basis, c.lambda_par, c.lambda_perp)  # [Eq. 11]
        new = [
            W.detach() + adam.change(W.detach(), G_W, rate, weight_decay)
            for W, G_W, adam in zip(self.weights(), G, self.adam, strict=True)
        ]
        for i in range(N):
            if not self.active[i]:
                new[i], new[N + i] = self.A[i].detach(), self.B[i].detach()
                new[-1][i] = self.W_G[i].detach()
        self.A, self.B, self.W_G = new[:N], new[N : 2 * N], new[-1]

    def history(self) -> tuple[Tensor, float, float]:
        """C^t with the task so far in it, its trace, and alpha_t [Eq. 3]."""
        if not self.seen:
            return self.C, self.trace, self.tokens
        C, tokens = second_moment(self.C, self.tokens, torch.stack(self.seen))
        squares = sum(float(x @ x) for x in self.seen)
        return C, (self.tokens * self.trace + squares) / tokens, tokens

    def hold_router(self, c: Settings) -> None:
        """Spectral-aware routing: V_par and its gains from C^t as it now is [Eq. 4 to 7]."""
        C, trace, _ = self.history()
        k = components(C, c.delta, trace)
        s = spectrum(C)[1][:k]
        self.router_basis = C, k, gain(s, c.half_width, c.rho)

    def choose_active(self, c: Settings) -> None:
        """Adaptive activation: let rest whom the past needs and this task hardly uses [Eq. 18]."""
        if self.tokens > 0:
            score = scores(self.used / len(self.seen), self.F_pre)
            frozen = freeze(score, c.tau, c.frozen_at_most(len(self.A)))
            self.active = [not rests for rests in frozen]

    def end(self, c: Settings) -> None:
        """End a task: keep the leading part of C^t [Eq. 3 to 5], and F^t [Eq. 17]."""
        C, trace, tokens = self.history()
        k = components(C, c.delta, trace)
        V, s = spectrum(C)
        self.F_pre = (self.tokens * self.F_pre + self.energy) / tokens
        self.C = V[:, :k] @ torch.diag(s[:k]) @ V[:, :k].T
        self.trace, self.tokens = trace, tokens


class Adam:
    """AdamW of one parameter."""

    def __init__(self, W: Tensor) -> None:
        self.m, self.v, self.t = torch.zeros_like(W), torch.zeros_like(W), 0

    def change(self, W: Tensor, G: Tensor, rate: float, weight_decay: float) -> Tensor:
        """What is added to W for the gradient G; beta_1, beta_2 and epsilon are torch's."""
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * G
        self.v = 0.999 * self.v + 0.001 * G * G
        m_hat, v_hat = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return -rate * (m_hat / (torch.sqrt(v_hat) + 1e-8) + weight_decay * W)
