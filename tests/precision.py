"""How far two computations of one thing may differ, from the precision that they are made in.

Bit equality may be asked of the SAME computation done twice on one machine: twice in a row,
resumed, saved and loaded, watched or not. Same means the same operations on the same shapes in the
same memory layout. Whatever else two computations differ in (how a batch is split, a product's
width, the order of a sum, alone or among others, folded into two dimensions or not), a processor's
libraries may choose another order of sums for the one than for the other, and which they choose
differs from processor to processor. Those are held to `rounding`.

A sum of n numbers is off by at most n u times the sum of their sizes, with u = eps / 2, whatever
the order (Higham, Accuracy and Stability of Numerical Algorithms, 4.2); roundings go up as often as
down, so that it is off by about sqrt(n) u (the rule of thumb, 2.6). Two orders are each off by that
much. `rounding` takes four times as much as both together: 4 eps sqrt(n), relative to the size of
what was summed. It bounds the largest error of a tensor against its largest value, for where
numbers cancel, single ones keep no digits.

That leaves room for what was measured on several processors (a third of the bound at most, mostly
less than a tenth) and none for a fault: a share of 1e-4 more in a linear's product, in a pool's
gates, in one batch's part of a sketch or in a step fails the tests of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

PASS = 400  # roundings one after the other in a forward pass of the tiny models, generously
TRAINED = 2000  # forward, backward, and squares of what comes out


@contextmanager
def float32_means_float64() -> Iterator[None]:
    """Within this context all that is made in float32 (masters, sketches) is float64.

    What two computations differ in then is 1e-9 of what it is in float32, and a decision that
    compares two numbers, or an answer's best token, can no longer hang on it. Load models before.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(torch, "float32", torch.float64),
            patch.object(Tensor, "float", Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def rounding(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """How far two sums of the same numbers in different orders may be apart, as a share.

    Args:
        terms: How many numbers were summed, along the longest chain.
        dtype: What they were summed in.
    """
    return 4 * torch.finfo(dtype).eps * terms**0.5


def assert_same(
    found: Tensor,
    wanted: Tensor,
    terms: int = PASS,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    what: str = "",
) -> None:
    """Check that two tensors are the same thing, computed in two ways.

    Args:
        found: One.
        wanted: The other.
        terms: As for `rounding`.
        dtype: What they were summed in, which may be less than what they are kept in.
        scale: How large the numbers were that were summed; the largest of `wanted` where not given.
        what: Which ones, for the message.
    """
    assert found.shape == wanted.shape, f"{what} {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if not wanted.numel():
        return
    one, other = found.detach().double(), wanted.detach().double()
    size = float(other.abs().max()) if scale is None else scale
    error, bound = float((one - other).abs().max()), rounding(terms, dtype) * size
    assert error <= bound, f"{what} differs by {error:.2e}, more than rounding may: {bound:.2e}"
