"""Nothing is learned: what the backbone can do by itself."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import nn

from undrift.methods.base import Method, Schedule


class ZeroShot(Method):
    """The backbone as it is; there is nothing to train, save or load."""

    name: ClassVar[str] = "zeroshot"
    paper: ClassVar[str] = "none: the backbone alone"
    schedule: ClassVar[Schedule] = "none"

    def attach(self, model: nn.Module) -> nn.Module:
        """Leave the model as it is."""
        return model

    def save_state(self, model: nn.Module, directory: Path) -> None:
        """Save nothing."""

    def load_state(self, model: nn.Module, directory: Path) -> None:
        """Load nothing."""


METHOD = ZeroShot
