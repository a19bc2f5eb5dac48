"""Bars on the sketch: merges are exact, and what it captures is close to the best possible."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.meter import Bar
from undrift.core.moment import MomentSketch

DIM, KEPT, COLUMNS, TOKENS, CHUNK = 1024, 64, 128, 16_384, 512


def spectra() -> dict[str, tuple[Tensor, float]]:
    """Eigenvalues like those of inputs, and the least share of the best that is to be captured."""
    i = torch.arange(1, DIM + 1, dtype=torch.float32)
    massive = i.reciprocal()
    massive[0] = 30.0
    low_rank = torch.full((DIM,), 1e-3)
    low_rank[:100] = 1.0
    return {
        "1/i": (i.reciprocal(), 0.985),
        "one massive direction": (massive, 0.995),
        "rank 100 and noise": (low_rank, 0.995),
    }


def draw(s: Tensor, seed: int = 0) -> Tensor:
    """Tokens with the spectrum s in a random basis, (TOKENS, DIM)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
    return torch.randn(TOKENS, DIM, generator=generator) * s.sqrt() @ basis.mT


def captured(s: Tensor) -> float:
    """The energy in the top 64 directions of a re-based sketch, over that of the best 64."""
    X = draw(s)
    sketch = MomentSketch(DIM, COLUMNS)
    for number, chunk in enumerate(X.split(CHUNK)):
        if number == 1:  # the first 3 % of the task
            sketch.rebase()
        sketch.update(chunk)
    V = sketch.eigenpairs()[0][:, :KEPT].float()
    best = torch.linalg.eigvalsh((X.mT @ X).double())[-KEPT:].sum()
    return float((X @ V).square().sum() / best)


def merge_error() -> float:
    """The sum of the sketches of two halves against the sketch of the whole."""
    X = draw(spectra()["1/i"][0])
    whole, *halves = (MomentSketch(DIM, COLUMNS) for _ in range(3))
    for chunk in X.split(CHUNK):
        whole.update(chunk)
    for half, part in zip(halves, X.chunk(2), strict=True):
        for chunk in part.split(CHUNK):
            half.update(chunk)
    return float((halves[0].Y + halves[1].Y - whole.Y).norm() / whole.Y.norm())


def bars() -> list[Bar]:
    """All of them; they come out the same every time."""
    return [
        Bar("sketch: sum of two halves against the whole", merge_error(), 1e-6),
        *(
            Bar(f"sketch: captured energy, {name}", captured(s), limit, at_most=False)
            for name, (s, limit) in spectra().items()
        ),
    ]
