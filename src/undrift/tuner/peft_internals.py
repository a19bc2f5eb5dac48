"""What undrift uses of PEFT and transformers that they do not promise.

What can be imported from `peft` or `transformers` itself is theirs to keep; all else may move in
any release and stands here, each with why it is needed. The rest of the source imports it from
here; a test tries each by itself and so names the one that has moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
from peft.tuners._buffer_dict import BufferDict  # frozen tensors, kept apart by adapter
from peft.tuners.lora import LoraLayer  # plain LoRA: whose factors are watched
from peft.tuners.osf.layer import OSFLayer  # what it adds is two products, kept out of sight
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer  # what our tuners and layers are
from peft.utils import (
    CONFIG_NAME,  # the file that says what an adapter is
    SAFETENSORS_WEIGHTS_NAME,  # the file that an adapter's weights must lie in
    WEIGHTS_NAME,  # the pickled one, which is refused by name
    ModulesToSaveWrapper,  # finds the copies of modules that are trained in full
    register_peft_method,  # makes PEFT load our types from adapter_config.json
    set_additional_trainable_modules,  # trains a projector beside any type of adapter
)
from peft.utils.constants import DUMMY_TARGET_MODULES  # a tuner that replaces no module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping  # how keys are renamed
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_outputs import BaseModelOutputWithPooling  # what a vision tower answers
from transformers.pytorch_utils import Conv1D  # GPT-2's linear, its weight the other way round
from transformers.utils.peft_utils import find_adapter_config_file  # so that none comes unasked

# The file in a checkpoint that the Trainer resumes from; its constant would import the Trainer.
TRAINER_STATE_NAME: Final = "trainer_state.json"


def add_type(name: str) -> PeftType:
    """Add a type to PEFT's closed list of them; PEFT offers no public way (peft#2273)."""
    key = name.upper()
    if key not in PeftType.__members__:
        member = str.__new__(PeftType, key)
        member._name_, member._value_ = key, key
        type.__setattr__(PeftType, key, member)
        PeftType._member_names_.append(key)
        PeftType._member_map_[key] = member
        PeftType._value2member_map_[key] = member
    return PeftType[key]


def register_type(kind: PeftType, config: type, tuner: type[BaseTuner]) -> None:
    """Make PEFT know a type that `add_type` has added; a second call does nothing."""
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        classes: dict[str, Any] = {"config_cls": config, "model_cls": tuner}
        register_peft_method(name=str(kind.value).lower(), prefix=tuner.prefix, **classes)


def replace_module(
    tuner: BaseTuner, parent: nn.Module, name: str, layer: nn.Module, old: nn.Module
) -> None:
    """Put a layer of a tuner where a module was, on its device and with its hooks."""
    tuner._replace_module(parent, name, layer, old)


def switch_layers(layers: Iterable[BaseTunerLayer], *, off: bool) -> None:
    """Switch adapters off or on; PEFT's `enable_adapters` also changes what requires gradients."""
    for layer in layers:
        layer._disable_adapters = off


def choose_adapter(layers: Iterable[BaseTunerLayer], name: str) -> None:
    """Let layers use one adapter; PEFT's own `set_adapter` also changes what requires gradients."""
    for layer in layers:
        layer._active_adapter = [name]


def device_of(layer: BaseTunerLayer) -> torch.device | None:
    """Find where a layer's base is, whatever holds its weights; None where that is nowhere."""
    return layer._get_base_layer_device_and_dtype(layer.get_base_layer())[0]


def reporters() -> dict[str, Any]:
    """Find the classes of the Trainer's reporters, by the name that `report_to` gives them."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return INTEGRATION_TO_CALLBACK


def one_device(arguments: Any) -> None:
    """Keep the Trainer with these TrainingArguments from DataParallel: one process, one device."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def osf_factors(layer: OSFLayer, adapter: str) -> tuple[Tensor, Tensor]:
    """Return A (2r, d_in) and B (d_out, 2r) of what an OSF adapter adds to its linear's weight."""
    now: Any = layer.osf_svd_params[adapter]
    before = [getattr(layer, f"_osf_{part}_low_init")[adapter] for part in "USV"]
    A = torch.cat([now["V_low"], before[2]])
    return A, torch.cat([now["U_low"] * now["S_low"], -before[0] * before[1]], dim=1)


def loaded_names(
    model: PreTrainedModel, names: Iterable[str], keys: Iterable[str]
) -> dict[str, str]:
    """Say which tensor of a model each key of its checkpoint becomes; PEFT asks the same way.

    Args:
        model: The model.
        names: Those of its tensors, without adapters.
        keys: Of the checkpoint.

    Returns:
        By key; a key that becomes part of a tensor, or a tensor of another layout, is left out.
    """
    steps = get_model_conversion_mapping(model)
    renamed = [step for step in steps if isinstance(step, WeightRenaming)]
    converted = [step for step in steps if isinstance(step, WeightConverter)]
    known: dict[str, Any] = dict.fromkeys(names, True)
    found: dict[str, str] = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamed, converted, model.base_model_prefix, known)
        if pattern is None:
            found[key] = name
    return found
