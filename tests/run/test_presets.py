"""The presets that ship: each is a run over its benchmark that needs nothing but the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from undrift.run import load_model
from undrift.run.config import load_yaml, presets, resolve, run_file
from undrift.run.task_loop import Run
from undrift.run.trainer import training_settings
from undrift.rundir import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
FIXTURES = Path(__file__).parents[1] / "fixtures"


def preset(name: str, tmp_path: Path, **layer):
    content = load_yaml(run_file(name))
    data = FIXTURES / content["benchmark"]
    return resolve(content, {"data": data, "out": tmp_path / "run"}, layer)


def test_they_are_the_ones_promised():
    names = {name.removeprefix("llava-1.5-7b/") for name in presets()}
    assert names == {
        *(f"{benchmark}{kind}.yaml" for benchmark in ("coin", "ucit", "trigap")
          for kind in ("", "-paper")),
        "coin-24gb.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("name", presets())
def test_a_preset_does_everything_up_to_the_weights(name, tmp_path, monkeypatch):
    monkeypatch.setattr(load_model, "check_hub", lambda *_: None)  # its weights need not be here
    monkeypatch.setattr(Run, "_load", lambda _: None)
    config = preset(name, tmp_path)
    run = Run(config)
    count = {"coin": 8, "ucit": 6, "trigap": 10}[config.benchmark]
    assert len(run.stages) == len(run.tasks) == count
    total = {"coin": 64, "ucit": 48, "trigap": 80}[config.benchmark]
    method = run.method.config
    assert method.experts * method.rank == total and method.alpha_over_rank == 2
    settings = training_settings(config, run.method, run.stages[0], count)
    assert settings.batch_size * settings.accumulation == 48
    assert settings.learning_rate == 2e-4 and settings.scheduler == "cosine"
    assert (method.space == "gradient") == ("paper" in name)
    assert settings.train_projector == ("paper" in name)
    assert (config.quantize == "4bit") == ("24gb" in name)
    assert run.files.config_file.is_file()


@pytest.mark.slow
def test_a_preset_of_the_paper_learns_on_a_tiny_relative_of_its_model(backbone, tmp_path):
    small = {"train": {"max_steps": 1, "learning_rate": 0.01}, "order": ("ArxivQA", "VizWiz")}
    config = preset("llava-1.5-7b/ucit-paper.yaml", tmp_path, **small)
    result = Run(config, backbone=backbone).go()
    assert result["metrics"]["last"] is not None
    saved = load_file(tmp_path / "run/tasks/02-VizWiz/adapter/adapter_model.safetensors")
    assert any("multi_modal_projector" in name for name in saved)
    protocol = read_json(tmp_path / "run/manifest.json")["protocol"]
    assert protocol["training"]["global_batch"] == 48
    assert protocol["image_features"] == "pixels"
