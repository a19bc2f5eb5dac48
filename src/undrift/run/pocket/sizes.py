"""The sizes of the pocket's vision tower, as config.json has them; the tower comes when they do.

Importing this file registers them with `AutoConfig`, and is light; making one imports the tower,
which is how `AutoModel` gets to know it.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class PocketVisionConfig(PreTrainedConfig):
    """Sizes of the tower; the defaults are what ships."""

    model_type = "undrift_pocket_vision"

    image_size: int = 96
    patch_size: int = 32
    width: int = 128
    depth: int = 3
    heads: int = 4
    hidden_size: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        """Have the tower registered with `AutoModel`."""
        super().__post_init__(**kwargs)
        importlib.import_module("undrift.run.pocket.tower")


AutoConfig.register(PocketVisionConfig.model_type, PocketVisionConfig, exist_ok=True)
