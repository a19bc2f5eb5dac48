from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from undrift.core import naive
from undrift.core.routing import add_mixture, mixture, observed_identity, pack, route

T, N, r, D_IN, D_OUT, ALPHA = 10, 4, 3, 7, 5, 6.0


def random(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=grad)


def experts(grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((N, r, D_IN), (N, r, D_OUT), (N, D_IN))
    A, Bt, W_G = (random(*shape, seed=i, grad=grad) for i, shape in enumerate(shapes))
    return A, Bt, W_G


def fast(x: Tensor, W0: Tensor, masters, *, active=None, dtype=torch.float64, **options) -> Tensor:
    packed = pack(*masters, dtype, active)
    return add_mixture(x @ W0.mT, x, *masters, packed, ALPHA / r, **options)


def test_equals_the_sum_over_experts_without_cross_terms():
    x, W0, (A, Bt, W_G) = random(T, D_IN, seed=9), random(D_OUT, D_IN, seed=8), experts()
    B = [b.T for b in Bt]
    expected = torch.stack([naive.layer(token, W0, list(A), B, W_G, ALPHA) for token in x])
    torch.testing.assert_close(x @ W0.T + mixture(x, A, Bt, W_G, ALPHA / r), expected)
    torch.testing.assert_close(fast(x, W0, (A, Bt, W_G)), expected)


def test_frozen_experts_are_left_out_and_the_other_weights_renormalised():
    x, W0, (A, Bt, W_G) = random(T, D_IN, seed=9), random(D_OUT, D_IN, seed=8), experts()
    active = torch.tensor([0, 2])
    weights = route(x @ W_G.T)
    kept = weights[:, active] / weights[:, active].sum(1, keepdim=True)
    terms = torch.einsum("tn,nro,nri,ti->to", kept, Bt[active], A[active], x)
    expected = x @ W0.T + ALPHA / r * terms
    torch.testing.assert_close(fast(x, W0, (A, Bt, W_G), active=active), expected)


def test_top_k_keeps_the_largest_weights():
    logits = random(T, N)
    w = route(logits, top_k=2)
    assert ((w > 0).sum(1) == 2).all()
    torch.testing.assert_close(w.sum(1), torch.ones(T, dtype=w.dtype))
    full = route(logits)
    best = full.topk(2, dim=1)
    expected = best.values / best.values.sum(1, keepdim=True)
    torch.testing.assert_close(w.gather(1, best.indices), expected)
    torch.testing.assert_close(route(logits, top_k=N), full)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("active", [None, [0, 3]])
def test_gradients_are_those_of_autograd(active, top_k, in_place):
    index = None if active is None else torch.tensor(active)
    x, W0, masters = random(2, 5, D_IN, seed=9, grad=True), random(D_OUT, D_IN), experts(grad=True)
    weight = random(2, 5, D_OUT, seed=7)
    slow = x @ W0.T + mixture(x, *masters, ALPHA / r, index, top_k)
    expected = torch.autograd.grad((slow * weight).sum(), [x, *masters])
    y = fast(x, W0, masters, active=index, top_k=top_k, in_place=in_place)
    torch.testing.assert_close(y, slow)
    grads = torch.autograd.grad((y * weight).sum(), [x, *masters])
    for grad, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, want)
    frozen = [] if active is None else [1, 2]
    for grad in grads[1:]:
        assert not grad[frozen].any()


def test_saves_x_and_the_small_hidden_only():
    x, W0, masters = random(T, D_IN, grad=True), random(D_OUT, D_IN), experts(grad=True)
    y = x.detach() @ W0.T
    packed = pack(*masters, torch.float64)
    sizes: list[int] = []

    def keep(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        add_mixture(y, x, *masters, packed, 1.0)
    assert sum(sizes) - x.numel() == T * (N * r + N)


def test_observer_sees_each_token_once_and_what_b_reads():
    x, W0, (A, Bt, W_G) = random(T, D_IN, grad=True), random(D_OUT, D_IN), experts(grad=True)
    seen: list[tuple[Tensor, ...]] = []
    y = fast(x, W0, (A, Bt, W_G), observe=lambda *parts: seen.append(parts))
    assert not seen
    y.sum().backward()
    ((x_seen, w, h, g),) = seen
    assert not any(part.requires_grad for part in (x_seen, w, h, g))
    torch.testing.assert_close(x_seen, x.detach())
    rows = [naive.expert_input(token, list(A.detach()), W_G.detach()) for token in x.detach()]
    torch.testing.assert_close(h, torch.stack(rows))
    torch.testing.assert_close(w, torch.stack([naive.route(t, W_G) for t in x]).detach())


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_does_not_count_twice_and_no_grad_does_not_count(reentrant):
    x, W0, masters = random(T, D_IN, grad=True), random(D_OUT, D_IN), experts(grad=True)
    counted: list[int] = []

    def block(x: Tensor) -> Tensor:
        return fast(x, W0, masters, observe=lambda x, w, h, g: counted.append(len(x)))

    y = checkpoint(block, x, use_reentrant=reentrant)
    with torch.no_grad():
        block(x)
    y.sum().backward()
    assert counted == [T]


def test_a_route_does_not_depend_on_batch_mates():
    x, W0, masters = random(T, D_IN), random(D_OUT, D_IN), experts()
    torch.testing.assert_close(fast(x, W0, masters)[3:5], fast(x[3:5], W0, masters))


def test_half_precision_does_not_round_the_logits():
    x, (A, Bt, W_G) = random(200, 64).bfloat16(), experts()
    W_G = random(N, 64, seed=3).float()
    A, Bt = random(N, r, 64).float(), Bt.float()
    seen: list[Tensor] = []
    masters = [p.requires_grad_() for p in (A, Bt, W_G)]
    packed = pack(*masters, torch.bfloat16)
    y = torch.zeros(200, D_OUT, dtype=torch.bfloat16)
    out = add_mixture(y, x, *masters, packed, 1.0, observe=lambda x, w, h, g: seen.append(w))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    exact = route(x.double() @ W_G.detach().double().T)
    rounded = route((x @ W_G.detach().bfloat16().T).double())
    assert (seen[0] - exact).abs().max() < 1e-4
    assert (rounded - exact).abs().max() > 1e-3  # what would have happened
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in masters)


def test_autocast_leaves_the_router_in_float32():
    x, masters = random(T, D_IN).float(), tuple(p.float() for p in experts())
    y = torch.zeros(T, D_OUT)
    exact = add_mixture(y, x, *masters, pack(*masters, torch.float32), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        again = add_mixture(y, x, *masters, pack(*masters, torch.float32), 1.0)
    assert torch.equal(exact, again)


def test_observed_identity_passes_through_and_shows_once():
    y, x, z, seen = random(2, 5, D_OUT, grad=True), random(2, 5, D_IN), random(2, 5, 6), []
    out = observed_identity(y, x, z, lambda *parts: seen.append(parts))
    assert torch.equal(out, y)
    (out * 2).sum().backward()
    assert torch.equal(y.grad, torch.full_like(y, 2))
    ((x_seen, w, h, g),) = seen
    assert torch.equal(x_seen, x.view(10, D_IN)) and torch.equal(h, z.view(10, 6))
    assert torch.equal(w, torch.ones(10, 1)) and torch.equal(g, torch.full((10, D_OUT), 2.0).to(g))
