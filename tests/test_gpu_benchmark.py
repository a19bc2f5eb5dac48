"""What measures on a GPU runs on a CPU in tiny shapes, and does not pass that off for a GPU's."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks import gpu


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_path_runs_on_a_cpu_and_says_so(dtype, capsys):
    gpu.main(["--tiny", dtype])
    shown = capsys.readouterr().out
    assert shown.count("NOT GPU NUMBERS") == 3
    assert "<=" not in shown  # no bar is held against them
    for name in ("PEFT LoRA 64", "packed", "loop over experts", "same", "steadylora"):
        assert shown.count(f"\n{name} ") >= 2


def test_numbers_of_a_cpu_are_not_written(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "float32", "--json", str(tmp_path)])
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_gpu_shapes_are_those_of_llava():
    shapes = gpu.llava()
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(gpu.config_of(shapes))
    assert sum(p.numel() for p in model.parameters()) == 7_063_427_072
    assert shapes.batch == 6 and shapes.length == 700
