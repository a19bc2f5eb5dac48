"""What transformers has saved: which class reads a model, from safetensors only, and its processor.

Which class it is follows from the configuration alone, never from trying: a vision-language model
goes through `AutoModelForImageTextToText`, a text-only one through `AutoModelForCausalLM`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    is_bitsandbytes_available,
    is_torchvision_available,
)

from undrift.errors import ConfigError, missing_extra
from undrift.tuner.peft_internals import find_adapter_config_file

Quantize = Literal["none", "8bit", "4bit"]
_OURS: dict[str, Any] = {"trust_remote_code": False}  # code comes with transformers, or not at all
_ASKS_FOR_VIDEO = ("SmolVLMProcessor",)  # its chat template asks the video processor, always
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_READS = (
    "expected a vision-language model that AutoModelForImageTextToText loads, or a causal language "
    "model that AutoModelForCausalLM loads"
)


def read_model(
    origin: str, dtype: torch.dtype | str, device: torch.device, quantize: Quantize = "none"
) -> Any:
    """Load a model's weights, from safetensors only.

    Args:
        origin: A folder or a Hub name.
        dtype: "auto" (as saved), or a dtype.
        device: Where the model goes.
        quantize: "8bit" or "4bit" (NF4) for the language model's linears, kept by bitsandbytes;
            vision tower, projector, embedding and head stay as they are.

    Returns:
        The model.

    Raises:
        ConfigError: If the model has no decoder that could answer, if its weights are pickled, or
            if an adapter lies in their place.
        MissingExtra: If bitsandbytes is needed and not installed.
    """
    config = AutoConfig.from_pretrained(origin, **_OURS)
    kind = _reader(origin, config)
    _check_files(origin)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True, **_OURS}
    if quantize == "none":
        return kind.from_pretrained(origin, **options).to(device)
    compute: Any = (config.dtype or torch.bfloat16) if dtype == "auto" else dtype
    quantization = _quantization(quantize, compute, _outside_decoder(kind, config))
    options |= {"quantization_config": quantization, "device_map": {"": device}}
    model = kind.from_pretrained(origin, **options)
    for module in model.modules() if device.type == "cpu" else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # its fast product has no gradient, and
            module.support_avx512bf16_for_cpu = False  # once used it would be used in training
    return model


def read_processor(origin: str) -> Any:
    """Load what turns texts and pictures into a model's inputs.

    Args:
        origin: A folder or a Hub name.

    Returns:
        The processor; of a text-only model its tokenizer.
    """
    config = AutoConfig.from_pretrained(origin, **_OURS)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoTokenizer.from_pretrained(origin, **_OURS)
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is not None and not is_torchvision_available() and _can_do_without_video(kind):
        kind = pictures_only(kind)
        return kind.from_pretrained(origin, **_OURS)
    return AutoProcessor.from_pretrained(origin, **_OURS)


def pictures_only(kind: Any) -> Any:
    """Make a processor class that does without its video processor, which needs torchvision.

    Args:
        kind: A processor class of transformers.

    Returns:
        A class of the same name; pictures and texts are processed exactly as before.
    """

    def attributes(cls: type) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    return type(kind.__name__, (kind,), {"get_attributes": classmethod(attributes)})


def _can_do_without_video(kind: Any) -> bool:
    return "video_processor" in kind.get_attributes() and kind.__name__ not in _ASKS_FOR_VIDEO


def _reader(origin: str, config: Any) -> Any:
    """The class that loads a model, decided from its configuration."""
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise ConfigError(
            f"the backbone {origin} ({config.model_type}) is an encoder-decoder, whose answers do "
            f"not go on where the prompt ends; {_READS}"
        )
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    named = config.architectures or []
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        kinds: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        known = {kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))}
        if known.intersection(named):
            return AutoModelForCausalLM
    raise ConfigError(
        f"the backbone {origin} has no decoder that answers: its config.json says "
        f"{', '.join(named) or config.model_type}; {_READS}"
    )


def _check_files(origin: str) -> None:
    """Refuse weights that only a pickle reader could open, and adapters that would come along."""
    if find_adapter_config_file(origin) is not None:
        raise ConfigError(
            f"the backbone {origin} holds an adapter (adapter_config.json); name the model that it "
            "was made for, without an adapter in its folder"
        )
    folder = Path(origin)
    if not folder.is_dir() or list(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    found = f"only pickled files ({', '.join(pickled)}), which" if pickled else "none; pickled ones"
    raise ConfigError(
        f"the backbone {origin} needs weights in *.safetensors and has {found} are never loaded, "
        "since opening them runs code; convert them with the model's save_pretrained"
    )


def _outside_decoder(kind: Any, config: Any) -> list[str]:
    """The linears that are not the language model's, by name."""
    with torch.device("meta"):
        model = kind.from_config(config)
    inside = {id(module) for module in model.get_decoder().modules()}
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return [name for name, module in linears.items() if id(module) not in inside]


def _quantization(
    quantize: Quantize, compute: torch.dtype, skipped: list[str]
) -> BitsAndBytesConfig:
    if not is_bitsandbytes_available():
        raise missing_extra("bitsandbytes", "quant", f"quantize: {quantize}")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
