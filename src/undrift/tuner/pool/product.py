"""What a pool adds to a linear: two matrix products, however many experts there are.

    y = W0 x + scale * sum_i g_i B_i A_i x        A (E, r, d_in), Bt (E, r, d_out)
      = W0 x + scale * Bt^T h                     h = (g_i A_i x)_i, (E r,)

The gate stands between A and B once, so no cross term B_j A_i arises. Gradients are made for the
newest experts, the gates and x; the past experts need none, and none is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def add_pool(
    y: Tensor,
    x: Tensor,
    gates: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    packed: tuple[Tensor, Tensor],
    scale: float,
    *,
    in_place: bool = False,
) -> Tensor:
    """Add a pool's part to the base layer's output.

    Args:
        y: W0 x, (..., d_out); its own graph brings the gradient of the base layer.
        x: Tokens, (..., d_in).
        gates: A row for every T / G consecutive tokens, (G, E); 1 for every expert where None.
        A: The newest experts, to which the gradient goes, (n, r, d_in).
        Bt: Likewise, (n, r, d_out).
        packed: All experts in the precision of the products, the newest last: (E r, d_in) and
            (E r, d_out).
        scale: alpha / r.
        in_place: Write into y, which must be a contiguous matrix that nobody else needs.

    Returns:
        The sum, in y's dtype.
    """
    x2d = x.reshape(-1, x.shape[-1]).to(packed[0].dtype)
    y2d = y if y.dim() == 2 else y.reshape(-1, y.shape[-1])
    apply = cast("Callable[..., Tensor]", _AddPool.apply)  # pyright: ignore
    return apply(y2d, x2d, gates, A, Bt, packed, scale, in_place).view(y.shape)


class _AddPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        gates: Tensor | None,
        A: Tensor,
        Bt: Tensor,
        packed: tuple[Tensor, Tensor],
        scale: float,
        in_place: bool,
    ) -> Tensor:
        """Add the pool's part to y."""
        with torch.autocast(x.device.type, enabled=False):
            z = x @ packed[0].mT  # (T, E r)
            h = _gated(z, gates, A.shape[1])
            if y.dtype != h.dtype:
                out = y + scale * (h @ packed[1]).to(y.dtype)
            elif in_place:
                ctx.mark_dirty(y)
                out = y.addmm_(h, packed[1], alpha=scale)
            else:
                out = y.addmm(h, packed[1], alpha=scale)
        ctx.save_for_backward(x, z, gates)
        ctx.packed, ctx.scale, ctx.shape = packed, scale, A.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x, the gates, A and Bt."""
        x, z, gates = ctx.saved_tensors
        A, Bt = ctx.packed
        n, r, _ = ctx.shape
        dA = dBt = dx = dgates = None
        with torch.autocast(x.device.type, enabled=False):
            g = dy.to(Bt.dtype)
            dh = (g @ Bt.mT).mul_(ctx.scale)  # (T, E r)
            dz = _gated(dh, gates, r)
            if ctx.needs_input_grad[1]:
                dx = dz @ A
            if ctx.needs_input_grad[2]:
                wide = dh.to(torch.promote_types(dh.dtype, torch.float32)) * z
                dgates = wide.view(len(gates), -1, gates.shape[1], r).sum((1, 3))  # (G, E)
                dgates = dgates.to(gates.dtype)
            if ctx.needs_input_grad[3]:
                dA = _float32_product(dz[:, -n * r :].mT, x).view(n, r, -1)
            if ctx.needs_input_grad[4]:
                h = _gated(z, gates, r)[:, -n * r :]
                dBt = _float32_product(h.mT, g).mul_(ctx.scale).view(n, r, -1)
        return dy, dx, dgates, dA, dBt, None, None, None


def _gated(z: Tensor, gates: Tensor | None, r: int) -> Tensor:
    """Scale the block of every expert in z (T, E r) by its gate."""
    if gates is None:
        return z
    groups, experts = gates.shape
    blocks = z.view(groups, -1, experts, r)
    return (blocks * gates[:, None, :, None]).to(z.dtype).view_as(z)


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """A product of half or full precision matrices, float32 (or float64) out."""
    if a.dtype.itemsize >= 4:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()
