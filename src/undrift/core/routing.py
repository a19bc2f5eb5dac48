"""Eq. 2 as ONE LoRA of rank N r whose hidden values are scaled by the route.

    w(x) = softmax(W_G x)                             W_G (N, d_in)
    y    = W0 x + scale * sum_i w_i(x) B_i A_i x      A (N, r, d_in), Bt (N, r, d_out)
         = W0 x + scale * Bt^T h                      h = (w_i(x) A_i x)_i, (N r,)

The experts lie one after the other in the rows of `[A; W_G]` and of `Bt` (B transposed), so that
the whole layer is two matrix products whatever N is. `mixture` says it in plain torch;
`add_mixture` is the same with one autograd Function, which keeps x and the small z = [A; W_G] x
for the backward pass and shows every token to an observer there: recomputation under gradient
checkpointing runs the forward twice but the backward once, so each token is seen exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Takes x (T, d_in), the route w (T, n), h (T, n r), B's own input, and the loss's gradient with
respect to the output (T, d_out), all without graph."""

Blend = tuple[float, Tensor]
"""beta and g, (N,): a token's weights are beta w(x) + (1 - beta) g."""


def route(logits: Tensor, top_k: int | None = None, dim: int = -1) -> Tensor:
    """Turn router logits into weights that sum to 1 over the experts [Eq. 1].

    Args:
        logits: W_G x of the active experts, (..., n).
        top_k: Keep the k largest weights of a token and renormalise; all of them where not given.
        dim: Where the experts are.

    Returns:
        w(x), like the logits; zero for an expert that is not among the k best.
    """
    if top_k is not None and top_k < logits.shape[dim]:
        best = logits.topk(top_k, dim=dim)
        logits = torch.full_like(logits, -torch.inf).scatter(dim, best.indices, best.values)
    return logits.softmax(dim)


def mixture(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    W_G: Tensor,
    scale: float,
    active: Tensor | None = None,
    top_k: int | None = None,
    blend: Blend | None = None,
) -> Tensor:
    """Compute what the experts add to W0 x, in plain torch [Eq. 2].

    Args:
        x: Tokens, (..., d_in).
        A: (N, r, d_in).
        Bt: (N, r, d_out), B transposed.
        W_G: The router, (N, d_in).
        scale: alpha / r.
        active: The experts that take part, (n,) int64; the weights of the others are shared out
            by the softmax. All where not given.
        top_k: See `route`.
        blend: Mix w(x) with weights that are the same for every token.

    Returns:
        scale * sum_i w_i(x) B_i A_i x, (..., d_out).
    """
    a, b, g = (p if active is None else p[active] for p in (A, Bt, W_G))
    w = route(x @ g.mT, top_k)  # (..., n)
    if blend is not None:
        beta, fixed = blend
        w = beta * w + (1 - beta) * (fixed if active is None else fixed[active])
    h = torch.einsum("...d, nrd, ...n -> ...nr", x, a, w)
    return scale * torch.einsum("...nr, nrd -> ...d", h, b)


@dataclass(frozen=True, eq=False)
class Packed:
    """The active experts and their router as the products read them: two matrices.

    Attributes:
        AR: `[A; W_G]`, (n r + n, d_in). In half precision W_G takes two blocks of rows, the
            rounded value and what rounding lost: bfloat16 logits would flip routes.
        Bt: (n r, d_out).
        active: The experts in the products, (n,) int64, or None for all N.
        experts: N.
        shape: (n, r).
    """

    AR: Tensor
    Bt: Tensor
    active: Tensor | None
    experts: int
    shape: tuple[int, int]


@torch.no_grad()
def pack(
    A: Tensor, Bt: Tensor, W_G: Tensor, dtype: torch.dtype, active: Tensor | None = None
) -> Packed:
    """Gather the active experts in the precision of the products; no graph, a few small copies.

    Args:
        A: (N, r, d_in), the masters.
        Bt: (N, r, d_out).
        W_G: (N, d_in).
        dtype: What the products are computed in.
        active: The experts to take, (n,) int64; all where not given.

    Returns:
        The two matrices.
    """
    a, b, g = (p if active is None else p.index_select(0, active) for p in (A, Bt, W_G))
    n, r, d_in = a.shape
    rows = [a.reshape(n * r, d_in).to(dtype), g.to(dtype)]
    if dtype.itemsize < 4:
        rows.append((g - rows[1]).to(dtype))
    return Packed(
        torch.cat(rows), b.reshape(n * r, b.shape[2]).to(dtype), active, A.shape[0], (n, r)
    )


def add_mixture(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    W_G: Tensor,
    packed: Packed,
    scale: float,
    *,
    top_k: int | None = None,
    observe: Observer | None = None,
    in_place: bool = False,
) -> Tensor:
    """Add the experts' part to the base layer's output [Eq. 2].

    Args:
        y: W0 x, (..., d_out); its own graph brings the gradient of the base layer.
        x: Tokens, (..., d_in).
        A: The master the gradient goes to, (N, r, d_in).
        Bt: Likewise, (N, r, d_out).
        W_G: Likewise, (N, d_in).
        packed: What `pack` made of these three.
        scale: alpha / r.
        top_k: See `route`.
        observe: Called once in the backward pass; never without a backward pass.
        in_place: Write into y, which must be a contiguous tensor that nobody else needs.

    Returns:
        y plus the mixture, in y's dtype.
    """
    x2d = (x if x.dim() == 2 else x.reshape(-1, x.shape[-1])).to(packed.AR.dtype)
    y2d = y if y.dim() == 2 else y.reshape(-1, y.shape[-1])
    apply = cast("Callable[..., Tensor]", _AddMixture.apply)  # pyright: ignore
    out = apply(y2d, x2d, A, Bt, W_G, packed, scale, top_k, observe, in_place)
    return out if y.dim() == 2 else out.view(y.shape)


class _AddMixture(torch.autograd.Function):
    """y + scale h Bt; saves x (T, d_in) and z (n r + n, T) and nothing of size T x d_out.

    What is small lies with the tokens in the last dimension, where elementwise work is fastest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        Bt: Tensor,
        W_G: Tensor,
        packed: Packed,
        scale: float,
        top_k: int | None,
        observe: Observer | None,
        in_place: bool,
    ) -> Tensor:
        """Add the mixture to y."""
        n, r = packed.shape
        with torch.autocast(x.device.type, enabled=False):
            z = _hidden(x, packed)
            z[n * r :].copy_(route(z[n * r :], top_k, dim=0))  # the route stands for its logits
            h = _routed(z, packed.shape).to(packed.Bt.dtype).mT
            out = added(ctx, y, h, packed.Bt, scale, in_place)
        ctx.save_for_backward(x, z)
        ctx.packed, ctx.scale, ctx.observe = packed, scale, observe
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x, A, Bt and W_G, and let the observer look."""
        x, z = ctx.saved_tensors
        packed: Packed = ctx.packed
        n, r = packed.shape
        with torch.autocast(x.device.type, enabled=False):
            h, w = _routed(z, packed.shape), z[n * r :]
            g = dy.to(packed.Bt.dtype)
            dBt = float32_product(h.to(g.dtype), g).mul_(ctx.scale)  # (n r, d_out)
            dh = float32_product(packed.Bt, g.mT).mul_(ctx.scale)  # (n r, T), the gradient of h
            dw = (dh * z[: n * r]).view(n, r, -1).sum(1)  # (n, T)
            dlogits = torch._softmax_backward_data(dw, w, 0, w.dtype)  # pyright: ignore # (n, T)
            dz = torch.cat([(dh.view(n, r, -1) * w.unsqueeze(1)).view_as(dh), dlogits])
            dz = dz.to(x.dtype)  # (n r + n, T)
            dAR = float32_product(dz, x)  # (n r + n, d_in)
            dx = dz.mT @ packed.AR[: n * r + n] if ctx.needs_input_grad[1] else None
            if ctx.observe is not None:
                ctx.observe(x.detach(), w.mT, h.mT, dy)
        dA = _scatter(dAR[: n * r].view(n, r, -1), packed)
        dW_G = _scatter(dAR[n * r :], packed)
        return dy, dx, dA, _scatter(dBt.view(n, r, -1), packed), dW_G, *[None] * 5


def added(ctx: Any, y: Tensor, h: Tensor, Bt: Tensor, scale: float, in_place: bool) -> Tensor:
    """Compute y + scale h Bt in the forward pass of an autograd Function, in y's dtype."""
    if y.dtype != h.dtype:
        return y + scale * (h @ Bt).to(y.dtype)
    if in_place:
        ctx.mark_dirty(y)
        return y.addmm_(h, Bt, alpha=scale)
    return y.addmm(h, Bt, alpha=scale)


class _ObservedIdentity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, z: Tensor, observe: Observer) -> Tensor:
        ctx.save_for_backward(x, z)
        ctx.observe = observe
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, z = ctx.saved_tensors
        ones = x.new_ones(x.shape[0], 1, dtype=torch.float32)
        ctx.observe(x, ones, z, dy)
        return dy, None, None, None


def observed_identity(y: Tensor, x: Tensor, z: Tensor, observe: Observer) -> Tensor:
    """Pass a plain LoRA's output through, and show its tokens in the backward pass: N = 1, w = 1.

    Args:
        y: B A x, (..., d_out), in a graph that needs a gradient.
        x: The linear's input, (..., d_in).
        z: B's own input A x, (..., r).
        observe: Called as `observe(x (T, d_in), ones (T, 1), z (T, r), dy (T, d_out))`.

    Returns:
        y, in the graph.
    """
    apply = cast("Callable[..., Tensor]", _ObservedIdentity.apply)  # pyright: ignore
    rows = (t.reshape(-1, t.shape[-1]) for t in (y, x.detach(), z.detach()))
    return apply(*rows, observe).view(y.shape)


def _hidden(x: Tensor, packed: Packed) -> Tensor:
    """Compute z = [A; W_G] x, (n r + n, T), in float32 at least: no logit is ever rounded."""
    n, r = packed.shape
    if x.dtype.itemsize >= 4:
        return packed.AR @ x.mT
    if x.is_cuda:  # one product, float32 out
        z = torch.mm(packed.AR, x.mT, out_dtype=torch.float32)
        z[n * r : n * r + n] += z[n * r + n :]
        return z[: n * r + n]
    W_G = packed.AR[n * r : n * r + n].float() + packed.AR[n * r + n :].float()
    return torch.cat([(packed.AR[: n * r] @ x.mT).float(), W_G @ x.mT.float()])


def _routed(z: Tensor, shape: tuple[int, int]) -> Tensor:
    """Compute h = (w_i A_i x)_i, (n r, T), from z = (A_i x)_i and w, one above the other."""
    n, r = shape
    h = z[: n * r].view(n, r, -1) * z[n * r :].unsqueeze(1)
    return h.view(n * r, -1)


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """A product of half or full precision matrices, float32 (or float64) out."""
    if a.dtype.itemsize >= 4:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


def _scatter(grad: Tensor, packed: Packed) -> Tensor:
    """Put the gradient of the active experts (n, ...) in its place among all N, zeros elsewhere."""
    if packed.active is None:
        return grad
    whole = grad.new_zeros(packed.experts, *grad.shape[1:])
    return whole.index_copy_(0, packed.active, grad)
