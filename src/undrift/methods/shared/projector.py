"""The multimodal projector, trained beside an adapter and saved in the adapter's own file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import Parameter

from undrift.errors import ConfigError
from undrift.methods.shared.adapter import active_adapter, peft_model
from undrift.methods.shared.adapter_config import read_config
from undrift.tuner.peft_internals import (
    BaseTunerLayer,
    ModulesToSaveWrapper,
    set_additional_trainable_modules,
)

# Where transformers keeps what stands between a vision tower and a language model: LLaVA and its
# relatives, Gemma3, InternVL; Idefics3, SmolVLM; Qwen-VL, GLM-V. The last is a list of modules.
PLACES = ("multi_modal_projector", "connector", "visual.merger", "visual.deepstack_merger_list")


def projector_names(model: nn.Module) -> list[str]:
    """Find the projector of a vision-language model.

    Args:
        model: A transformers model, without a PeftModel around it.

    Returns:
        Full names of its modules, mostly one.

    Raises:
        ConfigError: If it has none in a known place.
    """
    inner: Any = model.base_model
    prefix = next((f"{name}." for name, each in model.named_modules() if each is inner), "")
    known = dict(inner.named_modules())
    found: list[str] = []
    for place in PLACES:
        if isinstance(known.get(place), nn.ModuleList):
            found += [f"{prefix}{place}.{index}" for index in range(len(known[place]))]
        elif place in known:
            found.append(f"{prefix}{place}")
    if not found:
        parts = ", ".join(name for name, _ in inner.named_children())
        raise ConfigError(
            f"{type(model).__name__} has no multimodal projector in a known place "
            f"({', '.join(PLACES)}); its parts are {parts}; leave train_projector out"
        )
    return found


def train_projector(model: nn.Module) -> None:
    """Train the projector with the active adapter from now on, as a float32 copy.

    Args:
        model: What `Method.attach` returned.
    """
    train_modules(model, projector_names(peft_model(model).get_base_model()))


def restore_modules(model: nn.Module, directory: Path) -> None:
    """Make room for the modules that a saved adapter brings, if it brings any.

    Args:
        model: What `Method.attach` returned.
        directory: The adapter's folder.
    """
    saved = read_config(directory).get("modules_to_save")
    if saved:
        train_modules(model, list(saved))


def train_modules(model: nn.Module, names: list[str]) -> None:
    """Train copies of modules with the active adapter, and save them with it.

    Args:
        model: A PeftModel.
        names: Full names of modules in the base model.
    """
    wrapped = peft_model(model)
    adapter, base = active_adapter(wrapped), wrapped.get_base_model()
    config: Any = wrapped.peft_config[adapter]
    config.modules_to_save = names
    set_additional_trainable_modules(base, config, None, adapter)
    for wrapper in _wrappers(base):
        _keep_float32(wrapper.modules_to_save[adapter])


def trained_modules(model: nn.Module) -> list[Parameter]:
    """Return the parameters of modules that are trained in full beside an adapter."""
    return [p for each in _wrappers(model) for p in each.parameters() if p.requires_grad]


def changes_pictures(model: nn.Module) -> bool:
    """Tell whether an adapter may have a part in what the language model reads of pictures.

    Args:
        model: A vision-language model, with adapters or without.

    Returns:
        Whether one brings modules of its own, such as a projector, is on linears outside of the
        language model, or has trained all biases.
    """
    if any(True for _ in _wrappers(model)):
        return True
    inside = {*cast(Any, model).get_decoder().modules()}
    outside = (module for module in model.modules() if module not in inside)
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    return any(isinstance(module, BaseTunerLayer) for module in outside) or any(
        getattr(config, "bias", "none") == "all" for config in configs.values()
    )


def _wrappers(model: nn.Module) -> Iterator[ModulesToSaveWrapper]:
    return (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))


def _keep_float32(module: nn.Module) -> None:
    """Make a module of a half-precision model a float32 master that takes and gives halves."""
    dtype = next(module.parameters()).dtype
    if dtype.itemsize >= 4:
        return
    module.float()

    def widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if isinstance(a, Tensor) and a.dtype == dtype else a for a in args)

    def narrow(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.to(dtype)

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(narrow)
