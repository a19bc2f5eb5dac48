"""Tensors of a model that are saved and counted like its parameters, and never trained again.

They are buffers, under the names that parameters would have: checkpoints of accelerate's FSDP2
leave out parameters that require no gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from undrift.tuner.peft_internals import BufferDict

_NAMES = "frozen_names"  # the attribute of a module that says which of its buffers are meant


class Frozen(BufferDict):
    """Frozen tensors by name."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(tensors, persistent=True)

    def __getitem__(self, key: str) -> Tensor:
        return self.get_buffer(key)

    def items(self) -> Any:
        """The tensors by name."""
        return {key: self.get_buffer(key) for key in self}.items()

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Which buffers are frozen tensors: all."""
        return tuple(self.keys())


def freeze(module: nn.Module, *names: str) -> None:
    """Make parameters of a module frozen tensors of the same names; all parameters where none.

    Args:
        module: The module; without names its submodules' parameters count as well.
        *names: Of its own parameters; those that are frozen already stay so.
    """
    for part in [module] if names else module.modules():
        given = names or [name for name, p in part.named_parameters(recurse=False)]
        for name in given:
            if isinstance(getattr(part, name), nn.Parameter):
                value = getattr(part, name).detach()
                delattr(part, name)
                part.register_buffer(name, value)
                setattr(part, _NAMES, (*getattr(part, _NAMES, ()), name))


def named_frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name the frozen tensors of a model, as `named_parameters` names the others."""
    for prefix, part in model.named_modules():
        for name in getattr(part, _NAMES, ()):
            yield f"{prefix}.{name}" if prefix else name, part.get_buffer(name)


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, frozen tensors included."""
    frozen = (value for _, value in named_frozen(model))
    return sum(p.numel() for p in (*model.parameters(), *frozen))
