"""How a step of the router, of A and of B is turned so that the past keeps its answers [Eq. 6-15].

All of them multiply a step by a symmetric matrix built from the history: `spectral_product` is the
one operation, the rest says which eigenvalues. Nothing larger than d x k is ever formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false


def spectral_product(dW: Tensor, V: Tensor, inside: Tensor, outside: float) -> Tensor:
    """Multiply: dW (V diag(inside) V^T + outside (I - V V^T)), as two skinny products.

    Args:
        dW: A step, (..., d).
        V: Orthonormal columns, (d, k).
        inside: Eigenvalues of the matrix along V, (k,).
        outside: Its eigenvalue everywhere else.

    Returns:
        The step taken out, (..., d).
    """
    rows = dW.reshape(-1, dW.shape[-1])
    P = (rows @ V).mul_(inside - outside)  # (rows, k)
    return torch.addmm(rows, P, V.mT, beta=outside).view_as(dW)


def gain(s: Tensor, half_width: int, rho: float, clamp: bool) -> Tensor:
    """The gain g(s)_i = (s_i / s_bar_i)^rho, s_bar_i a mean over [i-w, i+w], cut at the ends [7].

    Args:
        s: Kept eigenvalues, descending, (k,).
        half_width: w.
        rho: The exponent.
        clamp: Take min(g, 1).

    Returns:
        g, (k,).
    """
    k = s.numel()
    if k == 0:
        return s
    i = torch.arange(k, device=s.device)
    low, high = (i - half_width).clamp_min(0), (i + half_width + 1).clamp_max(k)
    total = torch.cat([s.new_zeros(1, dtype=torch.float64), s.double().cumsum(0)])
    s_bar = (total[high] - total[low]) / (high - low)
    g = (s.double() / s_bar).pow(rho).to(s.dtype)
    return g.clamp_max(1) if clamp else g


def router_step(dW: Tensor, V: Tensor, g: Tensor, lambda_par: float, lambda_perp: float) -> Tensor:
    """The step lambda_par dW V_par g V_par^T + lambda_perp dW (I - V_par V_par^T) [Eq. 6 to 11].

    Args:
        dW: The raw step of W_G, (N, d).
        V: V_par, (d, k).
        g: The gain of each direction, (k,).
        lambda_par: Weight of the part inside V_par.
        lambda_perp: Weight of the part outside.

    Returns:
        dW_G, (N, d).
    """
    return spectral_product(dW, V, lambda_par * g, lambda_perp)


def damping(s: Tensor, mu: float, relative: bool) -> Tensor:
    """The mu of Eq. 15: in units of the mean eigenvalue where `relative`, else as given, ()."""
    return mu * s.mean() if relative and s.numel() else s.new_tensor(mu)


def a_metric(s: Tensor, mu: Tensor, normalise: bool) -> tuple[Tensor, float]:
    """The eigenvalues of (C^{t-1})^-1 ~ V (S + mu I)^-1 V^T + (1/mu) (I - V V^T) [Eq. 15].

    Args:
        s: Kept eigenvalues, (k,).
        mu: The damping, ().
        normalise: Multiply all by mu, so that free directions keep their step.

    Returns:
        The eigenvalues inside V, (k,), and the one outside.
    """
    if normalise:
        return mu / (s + mu), 1.0
    return 1 / (s + mu), 1 / float(mu)


def expert_a_step(dA: Tensor, V: Tensor, inside: Tensor, outside: float) -> Tensor:
    """Per expert dA_i <- dA_i M, M of `a_metric` the same for all experts [Eq. 14, 15].

    W_i = B_i A_i, so the right-hand metric of W_i reaches A_i directly.

    Args:
        dA: The raw steps, (N, r, d).
        V: V_k of C^{t-1}, (d, k).
        inside: M's eigenvalues along V, (k,).
        outside: M's eigenvalue elsewhere.

    Returns:
        The steps taken out, (N, r, d).
    """
    return spectral_product(dA, V, inside, outside)


def expert_b_step_aca(dBt: Tensor, A: Tensor, V: Tensor, s: Tensor, mu_b: float) -> Tensor:
    """Per expert dB_i <- dB_i mu_i (A_i C^{t-1} A_i^T + mu_i I)^-1.

    mu_i = mu_b tr(A_i C A_i^T) / r; nothing but r x r matrices, and nothing to store.

    Args:
        dBt: The raw steps, B transposed, (N, r, d_out).
        A: The current A, (N, r, d).
        V: V_k of C^{t-1}, (d, k).
        s: Its eigenvalues, (k,).
        mu_b: The damping in units of the mean eigenvalue of A_i C A_i^T.

    Returns:
        The steps taken out, (N, r, d_out).
    """
    AV = (A @ V).mul_(s.sqrt())  # (N, r, k)
    ACA = AV @ AV.mT  # (N, r, r)
    return _damped_inverse(ACA, mu_b) @ dBt


def z_metric(C_z: Tensor, mu_b: float, active: Tensor | None = None) -> Tensor:
    """The metric mu (C_z + mu I)^-1 of the active experts' block, mu = mu_b tr(C_z) / size.

    Args:
        C_z: Second moment of B's own input z = (w_i(x) A_i x)_i, (N r, N r).
        mu_b: The damping in units of the mean eigenvalue of the block.
        active: Which experts work, (N,) bool; all where not given. Only the block
            C_z[active, active] is inverted: the full matrix would move frozen experts.

    Returns:
        The metric, (N r, N r); zero in the rows and columns of frozen experts.
    """
    if active is None:
        return _damped_inverse(C_z, mu_b)
    rows = active.repeat_interleave(C_z.shape[0] // active.numel()).nonzero().squeeze(1)
    P = torch.zeros_like(C_z)
    P[rows[:, None], rows] = _damped_inverse(C_z[rows[:, None], rows], mu_b)
    return P


def expert_b_step_z(dBt: Tensor, P: Tensor) -> Tensor:
    """Over all experts at once dB <- dB mu (C_z + mu I)^-1.

    Args:
        dBt: The raw steps, B transposed, (N, r, d_out).
        P: The metric of `z_metric`, (N r, N r).

    Returns:
        The steps taken out, (N, r, d_out).
    """
    return (P @ dBt.flatten(0, 1)).view_as(dBt)


def _damped_inverse(C: Tensor, mu: float) -> Tensor:
    """mu_C (C + mu_C I)^-1 with mu_C = mu tr(C) / n, of symmetric (..., n, n); I where C = 0."""
    n = C.shape[-1]
    trace = C.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    eye = torch.eye(n, dtype=C.dtype, device=C.device)
    L, _ = torch.linalg.cholesky_ex(C * (n / (mu * trace).clamp_min(1e-30)) + eye)
    return torch.cholesky_inverse(L)
