"""A PEFT adapter to disk and back, with every key accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import nn

from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.tuner.upstream import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME


def save_adapter(model: nn.Module, directory: Path) -> None:
    """Save a model's active adapter as adapter_config.json and adapter_model.safetensors.

    Args:
        model: A PeftModel.
        directory: A folder; it is made.
    """
    model = peft_model(model)
    model.save_pretrained(
        str(directory), selected_adapters=[active_adapter(model)], save_embedding_layers=False
    )


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
    check_safetensors(directory)
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
        RunDirError: If there is no adapter in the folder, or only a pickled one.
        AdapterMismatch: If a tensor is missing, left over or of another shape.
    """
    model = peft_model(model)
    check_safetensors(directory)
    name = active_adapter(model)
    saved = str(PeftConfig.from_pretrained(str(directory)).peft_type)
    own = str(model.peft_config[name].peft_type)
    if saved != own:
        raise AdapterMismatch(
            f"the adapter in {directory} is of the type {saved}, and the method uses {own}; "
            "load it with the method that made it"
        )
    weights = load_peft_weights(str(directory), device="cpu")
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
    except RuntimeError as error:
        raise AdapterMismatch(
            f"the adapter in {directory} does not fit: {str(error).splitlines()[-1].strip()}; "
            "it was made for another backbone or with other options"
        ) from error


def check_safetensors(directory: Path) -> None:
    """Make sure that an adapter's weights are there and need no pickle reader.

    Args:
        directory: The adapter's folder.

    Raises:
        RunDirError: If they are missing, or only pickled.
    """
    if (directory / SAFETENSORS_WEIGHTS_NAME).is_file():
        return
    if (directory / WEIGHTS_NAME).is_file():
        raise RunDirError(
            f"{directory} holds its adapter pickled ({WEIGHTS_NAME}), which is never loaded, since "
            f"opening it runs code; save it again as {SAFETENSORS_WEIGHTS_NAME} with a version of "
            "PEFT that you trust it to"
        )
    raise RunDirError(f"{directory} holds no {SAFETENSORS_WEIGHTS_NAME}; name an adapter folder")


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
        getattr(inner, "module", None), nn.Module
    ):
        inner = inner.module
    if not isinstance(inner, PeftModel):
        raise ConfigError(
            f"{type(model).__name__} carries no adapter; use the model that Method.attach returns, "
            "or give your trainer a peft_config"
        )
    return inner  # pyright: ignore[reportReturnType]
