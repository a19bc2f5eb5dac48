"""The same questions asked of a model whose weights are merged by hand and trained in full."""

from __future__ import annotations

from typing import Any

import torch

from tests.methods.pooled import experts
from tests.methods.training import batch_of
from tests.tuner.llava import tiny_llava
from undrift.tuner.pool_lora import pool_layers


@torch.no_grad()
def merged(model, newest=True):
    """The base with what the experts of a pool add, the newest or not, and its linears by name."""
    plain: Any = tiny_llava()
    found: dict[str, Any] = {name: plain.get_submodule(name) for name in pool_layers(model)}
    for name, layer in pool_layers(model).items():
        A, B = experts(layer)
        scale = layer.pool_lora_config["default"].scale
        for a, b in list(zip(A, B, strict=True))[: None if newest else -1]:
            found[name].weight += scale * b.mT @ a
    return plain, found


def gradients(model, batches, newest=True):
    """The mean gradient of every weight, by autograd, (d_out, d_in)."""
    plain, found = merged(model, newest)
    weights = [each.weight for each in found.values()]
    sums = [torch.zeros_like(each) for each in weights]
    for batch in batches:
        for total, g in zip(sums, torch.autograd.grad(plain(**batch).loss, weights), strict=True):
            total += g / len(batches)
    return dict(zip(found, sums, strict=True))


@torch.no_grad()
def inputs(model, batches):
    """What every linear reads of the tokens that are no padding, (T, d_in)."""
    plain, found = merged(model)
    seen = {name: [] for name in found}
    for batch in batches:
        real = batch["attention_mask"].bool()
        handles = [
            module.register_forward_pre_hook(
                lambda _, x, rows=seen[name], real=real: rows.append(x[0][real])
            )
            for name, module in found.items()
        ]
        plain(**batch)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(each) for name, each in seen.items()}


def batches(task, count):
    return [batch_of(task, step) for step in range(count)]


def energy_basis(Q, X, share, most):
    """The GPM rule, a direction at a time: add to Q (d, k) until it holds the share of X's."""
    rest = X - Q @ (Q.mT @ X)
    U, S, _ = torch.linalg.svd(rest.double())
    total, held = float(X.double().square().sum()), float((Q.mT @ X).double().square().sum())
    count = 0
    while held < share * total and count < most:
        held += float(S[count] ** 2)
        count += 1
    return U[:, :count]


def same_span(X, Y, atol=1e-3):
    """Whether the columns of two matrices span one space: their projectors are equal."""
    assert X.shape == Y.shape
    X, Y = X.double(), Y.double()
    torch.testing.assert_close(X @ X.mT, Y @ Y.mT, rtol=0, atol=atol)
