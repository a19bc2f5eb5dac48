"""What every adapted linear does, whatever its experts: wrap, keep its masters, refuse to merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError, UndriftError
from undrift.tuner.upstream import BaseTunerLayer, Conv1D, device_of


class OneAdapter:
    """What a tuner of ours refuses of PEFT's: everything that mixes adapters."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse arguments that choose an adapter by sample; PEFT hands them over, and drops them.

        Raises:
            ConfigError: If there is one.
        """
        for name in ("adapter_names", "alora_offsets"):
            if kwargs.get(name) is not None:
                raise ConfigError(
                    f"{name} chooses an adapter for every sample of a batch, which only plain LoRA "
                    "can: choose one adapter for all of it with model.set_adapter(name)"
                )
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Args:
            *args: Not used.
            **kwargs: Not used.

        Raises:
            ConfigError: Always; what depends on the input has no weighted sum.
        """
        raise ConfigError(
            "adapters whose share depends on the input cannot be added up to one; train method "
            "steadylora, whose adapter is a plain LoRA"
        )


class Remade(dict[Any, Any]):
    """What is made anew where it is missing; a copy begins empty, since no view can be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()


class AdaptedLinear(nn.Module, BaseTunerLayer):
    """Wraps a linear layer of any kind.

    The masters are float32 and no cast of the model touches them or what lies beside them. The
    base layer is only ever called, so quantised and hooked linears work.

    Args:
        base_layer: What is wrapped, see `is_linear`.
        name: The layer's name in the model.

    Attributes:
        not_mergeable: Why there is no merged weight.
    """

    not_mergeable: str

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.in_features, self.out_features = widths(base_layer)
        self.merged_adapters = []

    def forget_packed(self) -> None:
        """Forget what was made of the masters for the products."""
        raise NotImplementedError

    def routes(self, x: Tensor) -> Tensor:
        """Say how much of each token goes to which expert, as in the next forward pass.

        Args:
            x: The linear's input, (B, L, d_in) or (T, d_in).

        Returns:
            (tokens, N) float32; a row's sum is 1.
        """
        raise NotImplementedError

    def base_is_plain(self) -> bool:
        """Whether the base's output in two dimensions is a fresh matrix of nobody else's."""
        base = self.base_layer
        return (
            type(base) is nn.Linear
            and "forward" not in base.__dict__
            and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks)
        )

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, and forget the packed experts."""
        self.forget_packed()
        return super().train(mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse.

        Args:
            safe_merge: Not used.
            adapter_names: Not used.

        Raises:
            UndriftError: Always; a mixture that depends on the input has no merged weight.
        """
        raise UndriftError(self.not_mergeable)

    def unmerge(self) -> None:
        """Do nothing: nothing is ever merged."""

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an adapter to the base layer's device and leave every dtype as it is."""
        device = device or device_of(self)
        if device is None or device.type == "meta":
            return
        for name in self.adapter_layer_names + self.other_param_names:
            held = getattr(self, name)
            if adapter_name not in held:
                continue
            if isinstance(held, nn.ParameterDict) and held[adapter_name].device.type != "meta":
                held[adapter_name].data = held[adapter_name].data.to(device)
            elif isinstance(held, nn.ModuleDict):
                held[adapter_name].to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a move to everything, but a cast to the base layer only."""

        def keep_dtype(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        for name, child in self.named_children():
            child._apply(fn if name == "base_layer" else keep_dtype, recurse)
        self.forget_packed()
        return self


def check_linear(name: str, module: nn.Module) -> None:
    """Refuse what is not a linear.

    Args:
        name: Its name in the model.
        module: What the targets matched.

    Raises:
        ConfigError: It is none.
    """
    if not is_linear(module):
        raise ConfigError(
            f"target {name} is a {type(module).__name__}; experts can be added to linear layers "
            "(with in_features and out_features, or Conv1D) only"
        )


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear of any kind: plain, quantised, transposed or wrapped."""
    base = base_of(module)
    sizes = (getattr(base, "in_features", None), getattr(base, "out_features", None))
    return isinstance(base, Conv1D) or all(isinstance(size, int) for size in sizes)


def base_of(module: nn.Module) -> nn.Module:
    """Take the adapter off a linear."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def widths(linear: nn.Module) -> tuple[int, int]:
    """Return d_in and d_out of a linear of any kind."""
    base: Any = base_of(linear)
    if isinstance(base, Conv1D):
        return base.nx, base.nf
    return int(base.in_features), int(base.out_features)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the products of an input are computed in: autocast's dtype, or the input's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
