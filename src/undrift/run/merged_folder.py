"""A plain LoRA added to the weights of its base: a model folder with exactly the base's keys.

The base's own files are read, shard by shard, not the model in memory: what was quantised when it
was loaded is whole there, and names that engines know stay as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from undrift.errors import ConfigError, DataError
from undrift.methods.shared.plain_lora import PlainLora
from undrift.rundir import read_json
from undrift.rundir.files import writing
from undrift.tuner.peft_internals import ModulesToSaveWrapper, loaded_names

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_READER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json",
    "sentencepiece.bpe.model", "chat_template.json", "chat_template.jinja", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "additional_chat_templates",
)  # fmt: skip
_MODEL_FILES = ("config.json", "generation_config.json")
_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_HUB_FILES = ["*.safetensors", _INDEX, *_READER_FILES, "additional_chat_templates/*", *_MODEL_FILES]


def base_folder(origin: str) -> Path:
    """Find the folder with a base's files.

    Args:
        origin: A folder, or a Hub name, which is then in the Hub's cache or fetched into it.

    Returns:
        The folder.
    """
    folder = Path(origin)
    if folder.is_dir():
        return folder
    return Path(snapshot_download(origin, allow_patterns=[*_HUB_FILES, *_TERMS]))


def copy_readers(base: Path, folder: Path, *, model: bool) -> None:
    """Copy what a base's texts and pictures are read with, and its terms.

    Only files of known names: whatever else lies beside a base stays where it is.

    Args:
        base: The base's folder.
        folder: Where they go.
        model: Also its configuration.
    """
    terms = [path.name for pattern in _TERMS for path in base.glob(pattern)]
    with writing(folder):
        for name in (*_READER_FILES, *(_MODEL_FILES if model else ()), *terms):
            if (base / name).is_dir():
                shutil.copytree(base / name, folder / name)
            elif (base / name).is_file():
                shutil.copyfile(base / name, folder / name)


def write_merged(lora: PlainLora, base: Path, folder: Path, model: Any) -> torch.dtype:
    """Write a base with a LoRA in its weights.

    Args:
        lora: What is added.
        base: The base's folder.
        folder: A folder that is there.
        model: The base in memory, with or without adapters, whose names and weights are compared.

    Returns:
        The dtype that the changed weights have, and had; of several the coarsest.

    Raises:
        ConfigError: If the base's files hold no whole weights, or something that is to be changed
            is not among them.
    """
    if "quantization_config" in read_json(base / "config.json"):
        raise ConfigError(
            f"the weights in {base} are quantised already, and nothing can be added to them: name "
            "the full-precision model that they were made from with --backbone"
        )
    shards = _shards(base)
    keys = {key: shard for shard in shards for key in _keys(shard)}
    changes = {f"{name}.weight": name for name in lora.factors} | {n: n for n in lora.modules}
    held = bare_state(model)
    names = loaded_names(model, held, keys)
    places = {name: key for key, name in names.items() if name in changes}
    lost = sorted(set(changes) - set(places))
    if lost:
        raise ConfigError(
            f"no tensor of {base} is {lost[0]} of the model ({len(lost)} are not found): it stores "
            "these weights joined or in another layout, and they cannot be merged; export with "
            "--to peft"
        )
    copy_readers(base, folder, model=True)
    with writing(folder):
        if (base / _INDEX).is_file():
            shutil.copyfile(base / _INDEX, folder / _INDEX)
    dtypes: set[torch.dtype] = set()
    for shard in shards:
        dtypes |= _write_shard(shard, folder / shard.name, lora, names, held)
    return min(dtypes, key=lambda dtype: dtype.itemsize)


def _write_shard(
    shard: Path, file: Path, lora: PlainLora, names: Mapping[str, str], held: Mapping[str, Tensor]
) -> set[torch.dtype]:
    """Write a shard anew, and name the dtypes of what was changed in it."""
    tensors: dict[str, Tensor] = {}
    dtypes: set[torch.dtype] = set()
    with safe_open(shard, "pt") as opened:
        metadata = opened.metadata()
        for key in opened.keys():  # noqa: SIM118 (it is no mapping)
            value = opened.get_tensor(key)
            tensors[key] = _changed(value, names.get(key, ""), lora, held)
            if tensors[key] is not value:
                dtypes.add(value.dtype)
    with writing(file):
        save_file(tensors, file, metadata)
    return dtypes


def _changed(value: Tensor, name: str, lora: PlainLora, held: Mapping[str, Tensor]) -> Tensor:
    """The tensor of that name in the model as it is to be."""
    factors = lora.factors.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
    if factors is not None:
        delta = factors.delta().cpu()
        delta = delta.mT if lora.transposed else delta
        _check_same(value, held.get(name), delta, name)
        made = (value.float() + delta).to(value.dtype)
    elif name in lora.modules:
        made = lora.modules[name].cpu().to(value.dtype)
    else:
        return value
    if made.shape != value.shape or not bool(made.isfinite().all()):
        raise ConfigError(
            f"{name} with the adapter in it is not finite in {value.dtype}, or of another shape "
            f"than the base's {tuple(value.shape)}; export with --to peft"
        )
    return made.contiguous()


def _check_same(value: Tensor, held: Tensor | None, delta: Tensor, name: str) -> None:
    """Make sure that a file's tensor is what the adapter is on; quantised ones are not seen."""
    whole = held is not None and held.is_floating_point() and held.shape == value.shape
    same = held is None or not whole or torch.equal(value.to(held.dtype), held.cpu())
    if value.shape != delta.shape or not same:
        raise DataError(
            f"{name} in the base's files is not what the adapter is on in memory; get the base's "
            "files anew from where they come from"
        )


def bare_state(model: nn.Module) -> dict[str, Tensor]:
    """Name the tensors of a model as they are without adapters."""
    inner = {id(m): m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)}
    copies = {f"{name}.modules_to_save." for name, m in model.named_modules() if id(m) in inner}
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in model.state_dict().items()
        if not any(name.startswith(each) for each in copies)
    }


def _shards(base: Path) -> list[Path]:
    if (base / _INDEX).is_file():
        index: Any = read_json(base / _INDEX)
        return [base / name for name in sorted(set(index["weight_map"].values()))]
    if (base / _SINGLE).is_file():
        return [base / _SINGLE]
    raise ConfigError(
        f"{base} holds neither {_SINGLE} nor {_INDEX}; save the base again with save_pretrained"
    )


def _keys(shard: Path) -> Iterable[str]:
    with safe_open(shard, "pt") as opened:
        return list(opened.keys())
