"""What every linear with experts is made of: its configuration, its layer and its PEFT tuner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Self

import torch
from peft import PeftConfig
from torch import Tensor, nn

from undrift.errors import ConfigError, UndriftError, unknown
from undrift.tuner.forward import ForwardContext
from undrift.tuner.frozen import Frozen
from undrift.tuner.peft_internals import BaseTuner, BaseTunerLayer, device_of, replace_module
from undrift.tuner.targets import check_targets, is_linear, settle_targets, widths

_HELD = (nn.ParameterDict, Frozen)  # what holds the tensors of a layer by adapter


class KnownFields:
    """A configuration that refuses what it has no field for: nobody would ever read it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; names that begin with an underscore are PEFT's own business."""
        known = type(self).__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
        if not name.startswith("_") and name not in known:
            raise unknown(f"setting of {type(self).__name__}", name, known)
        super().__setattr__(name, value)

    def check_positive(self, *names: str) -> None:
        """Refuse numbers below 1; None is let through.

        Args:
            *names: The fields.

        Raises:
            ConfigError: If one is; the message names it.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def check_among(self, name: str, known: tuple[str, ...]) -> None:
        """Refuse a word that is not known.

        Args:
            name: The field.
            known: The words.

        Raises:
            ConfigError: If it is none of them.
        """
        if getattr(self, name) not in known:
            given = getattr(self, name)
            raise ConfigError(f"{name} must be one of {', '.join(known)}, not {given!r}")


@dataclass
class LinearConfig(KnownFields, PeftConfig):
    """LoRA experts on every chosen linear.

    Args:
        r: The rank of EACH expert; a plain LoRA as large as N of them has rank N r.
        lora_alpha: The experts' part is scaled by lora_alpha / r.
        target_modules: "ffn" (the feed-forward linears of the language model), "attention", "all"
            (both), a list of module names inside the language model, or a regular expression over
            full module names; see `tuner.targets`. What they stand for is looked up in the model
            and stored as a regular expression.
        exclude_modules: Names or a regular expression of modules to leave out.
        layers_to_transform: Indices of the layers to adapt; all where not given.
        modules_to_save: Modules to train in full and save with the adapter, such as
            "multi_modal_projector".
    """

    r: int = field(default=8)
    lora_alpha: float = field(default=16)
    target_modules: list[str] | str | None = field(default="ffn")
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.target_modules is None:
            self.target_modules = "ffn"
        check_targets(self.target_modules)
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        self.check_positive("r")

    @property
    def scale(self) -> float:
        """What the experts' part is multiplied by, alpha / r."""
        return self.lora_alpha / self.r


class Remade(dict[Any, Any]):
    """What is made anew where it is missing; a copy begins empty, since no view can be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()


class AdaptedLinear(nn.Module, BaseTunerLayer):
    """Wraps a linear layer of any kind and adds the experts' part to its output.

    The masters are float32 and no cast of the model touches them or what lies beside them. The
    base layer is only ever called, so quantised and hooked linears work. The first of
    `adapter_layer_names` is A, by adapter.

    Args:
        base_layer: What is wrapped, see `tuner.targets.is_linear`.
        name: The layer's name in the model, for messages, seeds and gates of its own.
        context: Where the tokens and the gates of the current forward pass are looked up.

    Attributes:
        not_mergeable: Why there is no merged weight.
    """

    not_mergeable: ClassVar[str]

    def __init__(self, base_layer: nn.Module, name: str, context: ForwardContext) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.context = context
        self.in_features, self.out_features = widths(base_layer)
        self.merged_adapters = []
        self._packed: dict[Any, Any] = Remade()

    def update_layer(self, adapter_name: str, config: Any, **more: Any) -> None:
        """Add an adapter."""
        raise NotImplementedError

    def routes(self, x: Tensor) -> Tensor:
        """Say how much of each token goes to which expert, as in the next forward pass.

        Args:
            x: The linear's input, (B, L, d_in) or (T, d_in).

        Returns:
            (tokens, N) float32; a row's sum is 1.
        """
        raise NotImplementedError

    def _look(self, name: str, x: Tensor) -> Any:
        """What an adapter needs of x (B, L, d_in) before it is folded into two dimensions."""
        raise NotImplementedError

    def _add(self, name: str, y: Tensor, x: Tensor, looked: Any, *, in_place: bool) -> Tensor:
        """Add an adapter's part to y, the base layer's output; `looked` is what `_look` gave."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W0 x plus the part of every active adapter.

        Args:
            x: Tokens, (..., d_in), sample after sample.
            *args: Passed on to the base layer.
            **kwargs: Passed on to the base layer.

        Returns:
            (..., d_out), in the base layer's dtype.
        """
        names = self._active()
        if self.disable_adapters or not names:
            return self.base_layer(x, *args, **kwargs)
        looked = [self._look(name, x) for name in names]
        plain, shape = self.base_is_plain(), x.shape[:-1]
        if plain:  # in two dimensions the output is a fresh matrix, which may be written into
            x = x.reshape(-1, x.shape[-1])
        y = self.base_layer(x, *args, **kwargs)
        for name, seen in zip(names, looked, strict=True):
            y = self._add(name, y, x, seen, in_place=plain)
        return y.view(*shape, y.shape[-1]) if plain else y

    def trained_size(self) -> int:
        """Count the numbers in A and B of the experts that are trained, of all adapters."""
        held = (getattr(self, name) for name in self.adapter_layer_names[:2])
        return sum(p.numel() for masters in held for p in masters.values())

    def _active(self) -> list[str]:
        """The active adapters that this linear has."""
        own = getattr(self, self.adapter_layer_names[0])
        return [name for name in self.active_adapters if name in own]

    def base_is_plain(self) -> bool:
        """Whether the base's output in two dimensions is a fresh matrix of nobody else's."""
        base = self.base_layer
        return (
            type(base) is nn.Linear
            and "forward" not in base.__dict__
            and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks)
        )

    def forget_packed(self) -> None:
        """Forget what was made of the masters for the products."""
        self._packed.clear()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, and forget the packed experts."""
        self.forget_packed()
        return super().train(mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse: a mixture that depends on the input has no merged weight."""
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
            if isinstance(held, _HELD) and held[adapter_name].device.type != "meta":
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

    def __repr__(self) -> str:
        return f"{self.adapter_layer_names[0].removesuffix('_A')}.{super().__repr__()}"


def restore_float32(model: nn.Module) -> None:
    """Make the masters float32 again, where a trainer cast them (TRL does for 4-bit models)."""
    for layer in (module for module in model.modules() if isinstance(module, AdaptedLinear)):
        for name in (*layer.adapter_layer_names, *layer.other_param_names):
            held = getattr(layer, name)
            for _, master in held.items() if isinstance(held, _HELD) else ():
                if master.dtype.itemsize < 4:
                    master.data = master.data.float()


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the products of an input are computed in: autocast's dtype, or the input's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def versions(masters: Iterable[Tensor]) -> list[tuple[int, int, int]]:
    """What tells whether masters are the same objects with the same values as before."""
    return [(id(p), p.data_ptr(), p._version) for p in masters]


# ---------------------------------------------------------------- tuners


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
        """Refuse: what depends on the input has no weighted sum."""
        raise ConfigError(
            "adapters whose share depends on the input cannot be added up to one; train method "
            "steadylora, whose adapter is a plain LoRA"
        )


class LinearTuner(OneAdapter, BaseTuner):
    """Puts a `tuner_layer_cls` around every target of a configuration.

    While no step has been taken B is zero, and so is what the experts add; the model's output is
    the base model's up to rounding, for the base's own products are then folded into two
    dimensions.

    Attributes:
        config_cls: The class of the configurations whose targets are looked up.
        context: The context of the whole model.
    """

    config_cls: ClassVar[type[PeftConfig]]
    tuner_layer_cls: type[AdaptedLinear]  # pyright: ignore[reportIncompatibleVariableOverride]
    context: ForwardContext

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if isinstance(peft_config, self.config_cls):
            settle_targets(self.model, peft_config)
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        self.context = ForwardContext.attach(model)

    def _more(
        self, config: Any, adapter_name: str, parent: nn.Module, target_name: str
    ) -> dict[str, Any]:
        """What `update_layer` is given besides the configuration."""
        return {}

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        more = self._more(peft_config, adapter_name, parent, target_name)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, **more)
            return
        if not is_linear(target):
            raise ConfigError(
                f"target {current_key} is a {type(target).__name__}; experts can be added to "
                "linear layers (with in_features and out_features, or Conv1D) only"
            )
        layer = self.tuner_layer_cls(target, current_key, self.context)
        layer.update_layer(adapter_name, peft_config, **more)
        layer.train(target.training)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        replace_module(self, parent, target_name, layer, target)

    def _check_merge_allowed(self) -> NoReturn:
        raise UndriftError(self.tuner_layer_cls.not_mergeable)
