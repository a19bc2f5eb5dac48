"""A merged folder as GGUF, made by llama.cpp's own converter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from undrift.errors import ConfigError
from undrift.rundir.files import remove

MODEL, PICTURES = "model.gguf", "mmproj.gguf"
_SCRIPT = "convert_hf_to_gguf.py"
_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_KEPT = ("README.md", MODEL, PICTURES)
_GET = (
    "give llama.cpp's folder with --converters DIR: a checkout, or vendor/llama.cpp of "
    "`pip download --no-deps --no-binary :all: llama-cpp-python`, unpacked; it needs sentencepiece"
)


def check_converters(folder: Path | None) -> None:
    """Refuse to begin without llama.cpp's converter; a ConfigError that says where to get it."""
    if folder is None or not (folder / _SCRIPT).is_file():
        lost = (
            "--to gguf needs llama.cpp's converters"
            if folder is None
            else f"no {_SCRIPT} in {folder}"
        )
        raise ConfigError(f"{lost}; {_GET}")


def write_gguf(folder: Path, converters: Path, dtype: torch.dtype, notes: list[str]) -> None:
    """Convert a merged folder, and leave the GGUF files alone in it.

    Args:
        folder: The merged folder.
        converters: llama.cpp's folder.
        dtype: Of the weights in the merged folder, which they keep.
        notes: Receives what has to be known to use them.

    Raises:
        ConfigError: If the converter refuses the model.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = _TYPES.get(dtype, "auto")
    _convert(folder, converters, MODEL, kind)
    notes.append(f"llama.cpp: llama-server -m {MODEL}")
    if "vision_config" in config:
        _convert(folder, converters, PICTURES, kind, "--mmproj")
        notes[-1] += f" --mmproj {PICTURES}"
    for path in folder.iterdir():
        if path.name not in _KEPT:
            remove(path)


def _convert(folder: Path, converters: Path, name: str, kind: str, *more: str) -> None:
    paths = [str(converters / "gguf-py"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, str(converters / _SCRIPT), str(folder)]
    command += ["--outfile", str(folder / name), "--outtype", kind, *more]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / name).is_file():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(
            f"llama.cpp's converter refuses the model: {said[-1] if said else 'it says nothing'}; "
            "export with --to merged, which other engines load"
        )
