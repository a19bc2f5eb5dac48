"""Features of prompts that were never asked, for the matcher and its methods."""

from __future__ import annotations

import torch
from torch.nn import functional

from undrift.methods.shared.prompt_features import Features

WEIGHTS = {"image": 0.5, "text": 0.5}


def random_features(batch: int, size: int, seed: int = 0) -> Features:
    """Unit vectors; every third example has no picture, every fifth no text."""
    generator = torch.Generator().manual_seed(seed)
    present = {
        "image": torch.arange(batch) % 3 != 2,
        "text": torch.arange(batch) % 5 != 4,
    }
    of = {
        name: functional.normalize(torch.randn(batch, size, generator=generator), dim=1)
        * there[:, None]
        for name, there in present.items()
    }
    return Features(of, present)


def chosen(features: Features, rows: slice) -> Features:
    """Some rows of a batch's features."""
    return Features(
        {name: value[rows] for name, value in features.of.items()},
        {name: value[rows] for name, value in features.present.items()},
    )
