"""A PEFT adapter to disk and back, with every key accounted for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.shared.adapter_config import read_config
from undrift.methods.shared.tensor_files import check_finite, load_tensors, save_tensors
from undrift.rundir.files import writing
from undrift.tuner.distributed import full_parameters, full_tensor
from undrift.tuner.peft_internals import SAFETENSORS_WEIGHTS_NAME, BaseTunerLayer


def save_adapter(model: nn.Module, directory: Path) -> None:
    """Save a model's active adapter as adapter_config.json and adapter_model.safetensors.

    Args:
        model: A PeftModel.
        directory: A folder; it is made.

    Raises:
        TrainingDiverged: If a tensor is not finite; nothing was written.
        RunDirError: If it cannot be written.
    """
    model, file = peft_model(model), directory / SAFETENSORS_WEIGHTS_NAME
    name = active_adapter(model)
    held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    check_finite({key: full_tensor(value) for key, value in held.items()}, file)
    with writing(directory):
        model.save_pretrained(str(directory), selected_adapters=[name], save_embedding_layers=False)
    save_tensors(load_file(file), file)  # once more, with the format of what is in it


def put_on(model: nn.Module, directory: Path) -> PeftModel:
    """Put a saved adapter of any type of PEFT's on a model, through PEFT itself.

    The model's own `load_adapter` asks for a release of PEFT that need not be there.

    Args:
        model: A model without adapters.
        directory: Where PEFT, or `save_adapter`, saved it.

    Returns:
        The model with the adapter.

    Raises:
        RunDirError: If there is no adapter in the folder, or only a pickled one.
        AdapterMismatch: If a tensor is missing, left over or of another shape.
    """
    read_config(directory)  # refuses what PEFT would take at its word
    config = PeftConfig.from_pretrained(str(directory))
    config.inference_mode = True
    config.base_model_name_or_path = None  # the base may lie elsewhere; its tensors are compared
    made: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    load_adapter(made, directory)
    return made


def load_adapter(model: nn.Module, directory: Path) -> None:
    """Load a saved adapter into the active adapter of a model.

    Args:
        model: A PeftModel with an adapter of the same shape.
        directory: Where `save_adapter` saved it.

    Raises:
        RunDirError: If there is no adapter in the folder, only a pickled or a damaged one.
        AdapterMismatch: If a tensor is missing, left over or of another shape.
    """
    model = peft_model(model)
    name = active_adapter(model)
    saved = read_config(directory)
    config: Any = model.peft_config[name]
    own = str(config.peft_type).removeprefix("PeftType.")
    if saved["peft_type"] != own:
        raise AdapterMismatch(
            f"the adapter in {directory} is of the type {saved['peft_type']}, and the method uses "
            f"{own}; load it with the method that made it"
        )
    weights = load_tensors(directory / SAFETENSORS_WEIGHTS_NAME)
    with full_parameters(model, [name]):
        _put_in(model, name, weights, directory)
    if hasattr(config, "tasks"):  # how many it has learned, of which the tensors alone do not tell
        config.tasks = saved.get("tasks", 0)


def _put_in(model: PeftModel, name: str, weights: dict[str, Tensor], directory: Path) -> None:
    """Load the weights of a folder into an adapter; an AdapterMismatch if they do not fit."""
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    astray = sorted(expected.keys() ^ weights.keys())
    if astray:
        side = "lacks" if astray[0] in expected else "has an unknown"
        raise AdapterMismatch(
            f"the adapter in {directory} does not fit: it {side} {astray[0]} ({len(astray)} keys "
            "differ); it was made for another backbone or with other options"
        )
    try:
        set_peft_model_state_dict(model, weights, adapter_name=name)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise AdapterMismatch(
            f"the adapter in {directory} does not fit: {said}; it was made for another backbone or "
            "with other options"
        ) from error


def settle(model: nn.Module) -> None:
    """Make float32 what adapters train, and row-major whatever is trained.

    A trainer may have cast it (TRL does for 4-bit models), and what methods take out of a step is
    less than bfloat16 rounds it by. A file brings every tensor back row-major, and products of
    other layouts round otherwise on some CPUs: a task that is resumed would not be the one that
    went on. What optimisers and methods make is like it.

    Args:
        model: A model; most are so already, and then nothing happens.
    """
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        for p in layer.parameters():
            if p.requires_grad and p.dtype.itemsize < 4:
                p.data = p.data.float()
    for p in model.parameters():
        if p.requires_grad and not p.is_contiguous():
            p.data = p.data.contiguous()


def has_learned(model: PeftModel, name: str, *, loaded: bool = False) -> bool:
    """Tell whether an adapter has been trained, or loaded from one that has.

    Args:
        model: A PeftModel.
        name: The adapter's name.
        loaded: Whether it was loaded.

    Returns:
        Whether it changes the model's answers. Where it does so from the start, whether it was
        loaded: nobody saves an adapter to train it from the start.
    """
    if getattr(model.peft_config[name], "init_lora_weights", True) not in (True, "gaussian"):
        return loaded
    last = ("lora_B", "lora_embedding_B", "moe_lora_B", "pool_lora_B", "pool_lora_past_B")
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        parts = key.split(".")
        if name in parts and any(part in last for part in parts) and bool(full_tensor(value).any()):
            return True
    return bool(getattr(model.peft_config[name], "tasks", 0))


def check_trained(model: nn.Module) -> None:
    """Make sure that a trainer's model has something to train.

    Args:
        model: With a PeftModel in it.

    Raises:
        ConfigError: If nothing in the active adapter requires gradients, or it is merged.
    """
    wrapped = peft_model(model)
    name = active_adapter(wrapped)
    own = [p for key, p in wrapped.named_parameters() if name in key.split(".")]
    if own and not any(p.requires_grad for p in own):
        raise ConfigError(
            f"nothing in the adapter {name!r} is to be trained: load it to go on learning with "
            "PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )
    if any(getattr(m, "merged_adapters", ()) for m in wrapped.modules()):
        raise ConfigError(
            "an adapter is merged into the model, where a step of its own weights changes nothing: "
            "call model.unmerge_adapter() before training"
        )


def check_own(model: nn.Module, held: Iterable[Parameter], method: str) -> None:
    """Make sure that what is to be held is the model's: wrapping may replace parameters.

    Args:
        model: A trainer's.
        held: The parameters whose steps or gradients are transformed.
        method: Whose they are.

    Raises:
        ConfigError: If one is not the model's.
    """
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for p in held):
        raise ConfigError(
            f"{method} holds parameters that are no longer the model's: something has replaced "
            "them since the task began, and the past would not be protected"
        )


def check_packing(args: Any, config: Any) -> None:
    """Refuse rows of TRL's that do not say where their examples begin.

    Args:
        args: A trainer's.
        config: The method's.

    Raises:
        ConfigError: If they are asked for, and the history counts by example.
    """
    wrapped = getattr(args, "packing", False) and args.packing_strategy == "wrapped"
    if wrapped and getattr(config, "token_weights", None) in ("share", "answer"):
        raise ConfigError(
            'packing_strategy "wrapped" does not say where examples begin, and token_weights '
            'counts by example: take packing_strategy "bfd", or token_weights="same"'
        )


def check_buffers_stay(model: nn.Module, method: str) -> None:
    """Refuse a way of sharding under which accelerate cannot bring buffers along.

    Args:
        model: A trainer's.
        method: Whose they are.

    Raises:
        ConfigError: If there are some, and FSDP is to load them so.
    """
    asked = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")  # accelerate's own words
    kept = model.state_dict().keys() - dict(model.named_parameters()).keys()
    if kept and all(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in asked):
        raise ConfigError(
            f"{method} keeps what it knows in buffers, which accelerate cannot shard with "
            "cpu_ram_efficient_loading: set it to false in fsdp_config"
        )


def active_adapter(model: PeftModel) -> str:
    """Name the adapter that is trained.

    Args:
        model: A PeftModel.

    Returns:
        The name of its one active adapter.

    Raises:
        ConfigError: If several are active.
    """
    if len(model.active_adapters) != 1:
        raise ConfigError(
            f"one adapter can be trained at a time, and {model.active_adapters} are active; "
            "choose one with set_adapter"
        )
    return model.active_adapters[0]


def peft_model(model: nn.Module) -> PeftModel:
    """Take off what a trainer put around a PeftModel.

    Args:
        model: A PeftModel, or one that DistributedDataParallel and the like hold in `.module`.

    Returns:
        The PeftModel.

    Raises:
        ConfigError: If there is none.
    """
    inner = model
    while not isinstance(inner, PeftModel) and isinstance(
        held := getattr(inner, "module", getattr(inner, "_orig_mod", None)), nn.Module
    ):
        inner = held
    if isinstance(inner, PeftModel):
        return inner
    if any(isinstance(module, BaseTunerLayer) for module in inner.modules()):
        raise ConfigError(
            f"the adapter on this {type(inner).__name__} was put there by the model's own "
            "add_adapter or load_adapter, which cannot say what it has learned: use "
            "peft.get_peft_model(model, config) or peft.PeftModel.from_pretrained(model, folder)"
        )
    raise ConfigError(
        f"{type(model).__name__} carries no adapter; use the model that Method.attach returns, or "
        "give your trainer peft_config=method.peft_config()"
    )


def transformer(model: nn.Module) -> PreTrainedModel:
    """Check that PEFT can be put on a model.

    Args:
        model: The backbone.

    Returns:
        The same.

    Raises:
        ConfigError: If it is not a transformers model.
    """
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(f"expected a transformers model to adapt, not a {type(model).__name__}")
    return model
