"""Subspaces that are protected: directions of a linear's input, as the orthonormal columns of Q.

All is computed in float64, once a task.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from undrift.methods.shared.state import State

# torch.linalg and Tensor's methods on its results carry no types
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

DUST = 1e-5
"""The share of a matrix's norm below which a direction of it is rounding, in float32."""


def outside(Q: Tensor, X: Tensor) -> Tensor:
    """Take out of the columns of X what lies in Q: X - Q Q^T X.

    Args:
        Q: Orthonormal columns, (d, k).
        X: (d, n).

    Returns:
        (d, n) float64.
    """
    Q, X = Q.double(), X.double()
    return X - Q @ (Q.mT @ X)


def extension(Q: Tensor, X: Tensor, share: float, most: int) -> Tensor:
    """Find the fewest directions that, with Q, hold a share of the energy ||X||_F^2.

    They are the leading left singular vectors of what lies outside Q.

    Args:
        Q: Orthonormal columns, (d, k).
        X: (d, n).
        share: Of the energy, in [0, 1].
        most: The most directions.

    Returns:
        Orthonormal columns, orthogonal to Q, (d, m) float64 with m <= most.
    """
    U, S, _ = torch.linalg.svd(outside(Q, X), full_matrices=False)
    energy = S.square()
    left = energy.flip(0).cumsum(0).flip(0)  # outside, before the direction of that number is in
    slack = 1 + 1e-9  # so that a share of 0 is met by nothing, whatever was rounded
    limit = max(1 - share, DUST**2) * X.double().square().sum() * slack
    count = min(int((left > limit).sum()), max(0, most))
    return torch.linalg.qr(outside(Q, U[:, :count])).Q.contiguous()


def leading(Q: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose what of a gradient lies outside Q on the side of the input: G (I - Q Q^T).

    Args:
        Q: Orthonormal columns, (d_in, k).
        G: (d_out, d_in).
        rank: r, how many directions.

    Returns:
        Its leading r right singular vectors as rows (r, d_in), left ones as rows (r, d_out), and
        singular values (r,), all float64; the largest entry of a right one is positive. Where there
        are fewer, the rest is zero: a singular vector of the value 0 may be any, one in Q too.
    """
    U, S, Vh = torch.linalg.svd(outside(Q, G.mT), full_matrices=False)
    there = DUST * torch.linalg.matrix_norm(G.double()) < S
    count = min(int(there.sum()), rank)
    right, left = (torch.zeros(rank, width, dtype=S.dtype, device=S.device) for width in G.mT.shape)
    values = torch.zeros(rank, dtype=S.dtype, device=S.device)
    signs = U.gather(0, U.abs().argmax(0, keepdim=True)).sign().mT
    right[:count], left[:count] = (U.mT * signs)[:count], (Vh * signs)[:count]
    values[:count] = S[:count]
    return right, left, values


def restored(saved: State, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take back directions of any number, of the same linears' inputs.

    Args:
        saved: What was read.
        own: What there is, by name (d_in, k).

    Returns:
        Likewise, on the same devices.

    Raises:
        AdapterMismatch: If a linear is missing, left over or of another width.
    """
    found = saved.tensors or {}
    for name in sorted(found.keys() ^ own.keys()):
        raise saved.mismatch(f"it {'lacks' if name in own else 'has'} {name}")
    for name, each in own.items():
        if found[name].dim() != 2 or len(found[name]) != len(each):
            there = tuple(found[name].shape)
            raise saved.mismatch(f"{name} is {there} there, and its input has {len(each)} numbers")
    return {name: found[name].to(each) for name, each in own.items()}
