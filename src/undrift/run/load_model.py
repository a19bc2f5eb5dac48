"""Where a model comes from (built-in, a folder, the Hub), its device, its weights and processor.

A name that looks like a path is one: if nothing is there, that is said, and the Hub is not asked.
A name of the Hub's that is neither in its cache nor within reach is refused after one short look.
Which class reads a model follows from its configuration alone, never from trying: a vision-language
model goes through `AutoModelForImageTextToText`, a text-only one through `AutoModelForCausalLM`.
Weights are read from safetensors only.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import nn
from transformers import is_bitsandbytes_available, is_torchvision_available

from undrift.errors import ConfigError, missing_extra, unknown
from undrift.run import smollm2
from undrift.run.config import RunConfig, load_yaml
from undrift.rundir import RunDir, missing
from undrift.tuner.peft_internals import find_adapter_config_file

Quantize = Literal["none", "8bit", "4bit"]
_OURS: dict[str, Any] = {"trust_remote_code": False}  # code comes with transformers, or not at all
_ASKS_FOR_VIDEO = ("SmolVLMProcessor",)  # its chat template asks the video processor, always
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_READS = (
    "expected a vision-language model that AutoModelForImageTextToText loads, or a causal language "
    "model that AutoModelForCausalLM loads"
)
_POCKET = Path(__file__).parent / "pocket" / "weights"
BUILT_IN = ("pocket", smollm2.NAME)
"""Backbones with a name of ours: the one that ships, and the one of the extra `desk`."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_ELSEWHERE = {"backbone": "; if it has moved, give its folder with --backbone DIR", "encoder": ""}
_PATIENCE = 5.0  # seconds in which the Hub has to answer at all


def check_named(config: RunConfig) -> None:
    """Refuse a device, an encoder or a backbone that cannot be, before anything is read."""
    find_device(config.device)
    if (encoder := config.method.options.get("encoder")) is not None:
        encoder_source(encoder)
    source(config.base)


def source(name: str) -> str:
    """Find a backbone without loading it.

    Args:
        name: "pocket", "smollm2", a folder, or a Hub name such as "llava-hf/llava-1.5-7b-hf".

    Returns:
        The folder, from anywhere, or the Hub name behind it.

    Raises:
        ConfigError: If it can be none.
        MissingExtra: If the package that holds it is not installed.
        UnknownName: If there is no such name; the nearest is offered.
    """
    if name == "pocket":
        return str(_POCKET)
    if name == smollm2.NAME:
        return str(smollm2.smollm2_folder())
    folder = local_folder(name, "backbone")
    if folder is not None:
        return str(folder.resolve())  # PEFT writes it beside an adapter
    if not _HUB_NAME.fullmatch(name):
        raise unknown("backbone", name, [*BUILT_IN, "a folder", "a Hub name such as org/model"])
    check_hub(name, "backbone")
    return name


def with_base_folder(config: RunConfig, files: RunDir | None) -> RunConfig:
    """Note where the backbone of a run lies, so that it is found from any other folder.

    A run that is gone on with keeps the name that its base was begun with, wherever that lies now:
    `--backbone DIR` names another place, and whether the same base is there its fingerprint tells.

    Args:
        config: What is asked for.
        files: The folder of the run, which may hold one that was begun; None to begin anew.

    Returns:
        The configuration with `backbone_folder`, if the backbone is a folder.
    """
    place = config.base
    folder = expanded(place).resolve()
    if place in BUILT_IN or not folder.is_dir():
        return config
    name = config.backbone
    if files is not None and files.config_file.is_file():
        there = load_yaml(files.config_file)
        run = there.get("run", there)  # of `learn`, and of `run`
        begun = run.get("backbone") if isinstance(run, Mapping) else None
        if isinstance(begun, str) and (
            files.manifest_file.is_file() or str(folder) in (begun, run.get("backbone_folder"))
        ):
            name = begun
    kept = None if str(folder) == name else folder
    return config.model_copy(update={"backbone": name, "backbone_folder": kept})


def encoder_source(name: str) -> str:
    """Find an encoder without loading it: its folder, or its Hub name such as "gpt2"."""
    folder = local_folder(name, "encoder")
    if folder is not None:
        return str(folder)
    check_hub(name, "encoder")
    return name


def local_folder(name: str, kind: str) -> Path | None:
    """Find the folder of a model.

    Args:
        name: As given by the user; `~` stands for the home.
        kind: What it should be, such as "backbone".

    Returns:
        The folder; None if the name looks like one of the Hub's.

    Raises:
        ConfigError: If the name looks like a path, and no model is there.
    """
    folder = expanded(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"the {kind} folder {folder} holds no config.json")
        return folder
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is no folder; expected that of the {kind}, or a Hub name")
    if looks_local(name):
        raise ConfigError(f"cannot load the {kind} {name!r}: {missing(folder)}{_ELSEWHERE[kind]}")
    return None


def looks_local(name: str) -> bool:
    """Tell whether a name is meant as a path: by its form, or as it begins with a folder."""
    first, slash, _ = name.partition("/")
    written = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    windows = "\\" in name or re.match(r"[A-Za-z]:", name) is not None
    return written or windows or (bool(slash) and Path(first).is_dir())


def expanded(name: str | Path) -> Path:
    """Put the home in the place of `~`, as far as there is one."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (it never raises)


def check_hub(name: str, kind: str) -> None:
    """Refuse a model of the Hub's that is neither in the cache nor can be fetched.

    Where the Hub does not answer, the libraries are told not to ask it again.

    Args:
        name: A Hub name.
        kind: What it should be, such as "backbone".

    Raises:
        ConfigError: If it cannot be had.
    """
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
            return
        except Exception as error:  # whichever HTTP library it is, and whatever it calls a failure
            constants.HF_HUB_OFFLINE = True
            why = f"{constants.ENDPOINT} cannot be reached ({error or type(error).__name__})"
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ConfigError(
            f"cannot load the {kind} {name!r}: no folder of that name is here, it is not in the "
            f"Hub's cache, and {why}; give a folder, or download it first{_ELSEWHERE[kind]}"
        )


def find_device(name: str) -> torch.device:
    """Find a device.

    Args:
        name: "auto" (an accelerator if there is one, else the CPU), or one of `devices`; "cuda"
            stands for the first of its kind.

    Returns:
        The device.

    Raises:
        ConfigError: If this machine has no such device; the message names those that it has.
    """
    there = devices()
    if name == "auto":
        return torch.device(there[-1].partition(":")[0])
    kinds = {device.partition(":")[0] for device in there}
    if name in kinds or name in there:
        return torch.device(name)
    why = ""
    if name.partition(":")[0] == "cuda" and "cuda" not in kinds:
        built = torch.version.cuda
        why = f" (this torch, {torch.__version__}, is a build without CUDA)"
        why = f" (torch for CUDA {built} finds no GPU or no driver)" if built else why
    raise ConfigError(
        f"no device is called {name!r} on this machine{why}; there are: auto, "
        f"{', '.join(sorted({*kinds, *there}))}"
    )


def devices() -> list[str]:
    """Name the devices that this machine has: "cpu", and such as "cuda:0", "cuda:1"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of drivers that it does not find
        kind = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if kind is not None else 0
    return ["cpu", *(f"{kind.type}:{index}" for index in range(count) if kind is not None)]


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
    config = transformers.AutoConfig.from_pretrained(origin, **_OURS)
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


def outline(origin: str) -> Any:
    """Make a model of its configuration alone: shapes, and no numbers.

    Args:
        origin: A folder or a Hub name, whose weights are refused as `read_model` refuses them.

    Returns:
        The model, on the device "meta".
    """
    config = transformers.AutoConfig.from_pretrained(origin, **_OURS)
    kind = _reader(origin, config)
    _check_files(origin)
    with torch.device("meta"):
        return kind.from_config(config)


def read_processor(origin: str) -> Any:
    """Load the processor in a folder or of the Hub; of a text-only model its tokenizer."""
    config = transformers.AutoConfig.from_pretrained(origin, **_OURS)
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoTokenizer.from_pretrained(origin, **_OURS)
    kind: Any = transformers.PROCESSOR_MAPPING.get(type(config), None)
    if kind is not None and not is_torchvision_available() and _can_do_without_video(kind):
        kind = pictures_only(kind)
        return kind.from_pretrained(origin, **_OURS)
    return transformers.AutoProcessor.from_pretrained(origin, **_OURS)


def pictures_only(kind: Any) -> Any:
    """Make a processor class that does without its video processor, which needs torchvision.

    The class has the same name; pictures and texts are processed exactly as before.
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
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    named = config.architectures or []
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        kinds: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        known = {kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))}
        if known.intersection(named):
            return transformers.AutoModelForCausalLM
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
) -> transformers.BitsAndBytesConfig:
    if not is_bitsandbytes_available():
        raise missing_extra("bitsandbytes", "quant", f"quantize: {quantize}")
    if quantize == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
