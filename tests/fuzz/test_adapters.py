"""The files of an adapter, spoilt: they are refused in a line, or are an adapter still."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import example, given
from safetensors.torch import load_file, save

from tests.fuzz.mutation import as_text, mutated, seeds, spoilt
from tests.fuzz.within import held, many
from tests.run.tiny import tiny_llava
from undrift.methods.shared.adapter_config import endless, read_config
from undrift.methods.shared.tensor_files import load_tensors
from undrift.run.session import make_method

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KINDS = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
METHODS = {"moelora": 2, "finetune": 2, "olora": 2, "modalprompt": 2, "same": 2}
PIECES = ["a", "b", ".", "\\d", "(", ")", "(?:", "|", "*", "+", "?", "{2,}", "{50}", "[ab]", "(?=",
          "\\1", "$", "^", "layers", "(?i)", "*?"]  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Any:
    """An adapter of each kind: its method, its model, the folder that it is saved in, its files."""
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in METHODS:
            method = make_method(name, {"experts": 2, "rank": 2})
            model = method.attach(tiny_llava(layers=1)[0])
            place = Path(folder) / name / "adapter"
            method.save_state(model, place)
            files = {file.name: file.read_bytes() for file in place.iterdir()}
            found.append((method, model, place, files))
        yield lambda: found


def tensors_of(content: bytes, folder: Path, random: Random) -> bytes:
    """Change one tensor, or leave it out, or give it another name."""
    (folder / "whole").write_bytes(content)
    tensors = load_file(folder / "whole")
    (folder / "whole").unlink()
    name = random.choice(sorted(tensors))
    old, how = tensors.pop(name), random.randrange(6)
    if how == 0:
        tensors[name] = torch.full(old.shape, random.choice([torch.nan, torch.inf, -torch.inf]))
    elif how == 1:
        tensors[name] = old.to(random.choice(KINDS))
    elif how == 2:
        tensors[name] = old.new_zeros([random.randrange(4) for _ in range(random.randrange(4))])
    elif how == 3:
        tensors[random.choice(["", "../x", name + "x", "a.b"])] = old
    elif how == 4:
        tensors[name] = old.clone()
    return save(tensors, {"format": "pt", "undrift_format": random.choice(["1", "2", "x", "-1"])})


@many(2)
@given(seed=seeds)
@example(seed=429509)  # a tensor without dimensions in the place of a pool's factors
def test_spoilt_files_are_refused_or_still_an_adapter(made, seed):
    random = Random(seed)
    method, model, place, files = random.choice(made())
    for name, content in files.items():
        (place / name).write_bytes(content)
    name = random.choice([CONFIG, CONFIG, WEIGHTS, *(n for n in files if n.endswith("tensors"))])
    if name == CONFIG:
        changed = as_text(json.loads(files[CONFIG]), random)
    elif random.random() < 0.5:
        changed = tensors_of(files[name], place, random)
    else:
        changed = spoilt(files[name], random)
    (place / name).write_bytes(changed)
    beside = sorted(os.listdir(place.parent))
    with held():
        read_config(place)
        load_tensors(place / "adapter_model.safetensors")
    with held():
        method.load_state(model, place)
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sorted(os.listdir(place.parent)) == beside
    assert sorted(os.listdir(place)) == sorted(files)


@many(2)
@given(seed=seeds)
def test_a_pattern_that_is_let_through_ends(seed):
    random = Random(seed)
    import re

    pattern = "".join(random.choice(PIECES) for _ in range(random.randint(1, 14)))
    with held():
        if not endless(pattern):
            for name in ("a" * 60, "ab" * 30, "layers.11.mlp.a" * 4):
                re.compile(pattern).fullmatch(name)


def test_a_pattern_of_ours_is_let_through():
    for pattern in (
        r"model\.language_model\.(?:layers\.\d+\.mlp\.down_proj|layers\.\d+\.mlp\.up_proj)",
        r"^(?!.*vision).*(?:q_proj|k_proj|v_proj)$",
        r".*\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o)_proj",
    ):
        assert not endless(pattern)
    for pattern in ("(a+)+b", "(a|a)*b", "(a|aa){30}", "(" * 50, "(.*)*", "a?" * 40 + "a" * 40):
        assert endless(pattern)


def test_mutations_change_something():
    value = {"a": [1, {"b": 2}], "c": "text"}
    assert sum(mutated(value, Random(seed)) != value for seed in range(100)) > 80
