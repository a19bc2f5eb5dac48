"""Loads an export as anybody would, without undrift, and answers one batch: run as a script."""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file


def main(kind: str, folder: str, batch: str, answer: str) -> None:
    read = getattr(transformers, kind)
    reader = "AutoTokenizer" if kind == "AutoModelForCausalLM" else "AutoProcessor"
    getattr(transformers, reader).from_pretrained(folder)
    config = Path(folder, "adapter_config.json")
    if config.is_file():
        import json

        base = json.loads(config.read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(read.from_pretrained(base, dtype="float32"), folder)
    else:
        model, info = read.from_pretrained(folder, dtype="float32", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
    logits = model.eval()(**load_file(batch)).logits
    save_file({"logits": logits.detach().contiguous()}, answer)
    assert "undrift" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
