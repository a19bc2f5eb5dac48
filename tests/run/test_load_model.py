"""What is never loaded, and what is said instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.run.adapters import open_adapter
from undrift.run.backbone import Backbone
from undrift.run.session import make_method

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = {"experts": 2, "rank": 2}


class Planted:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickled_weights_are_never_loaded(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llama"), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"planted": Planted(tmp_path / "trace")}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pickled files \(pytorch_model\.bin\)"):
        Backbone.load(str(folder))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["same", "finetune"])
def test_a_pickled_adapter_is_never_loaded(name, folder_of, tmp_path):
    backbone, method = Backbone.load(str(folder_of("llama"))), make_method(name, SMALL)
    model = method.attach(backbone.model)
    method.save_state(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"planted": Planted(tmp_path / "trace")}, tmp_path / "adapter_model.bin")
    with pytest.raises(RunDirError, match=r"pickled \(adapter_model\.bin\), which is never loaded"):
        method.load_state(model, tmp_path)
    fresh = Backbone.load(str(folder_of("llama")))
    with pytest.raises(RunDirError, match="never loaded"):
        open_adapter(tmp_path, fresh)
    assert not (tmp_path / "trace").exists()


def test_the_planted_file_would_leave_its_trace(tmp_path):
    torch.save(Planted(tmp_path / "trace"), tmp_path / "file.bin")
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_an_adapter_of_another_base(folder_of, tmp_path):
    method = make_method("same", SMALL)
    method.save_state(method.attach(Backbone.load(str(folder_of("gemma3"))).model), tmp_path)
    other = Backbone.load(str(folder_of("idefics3")))
    method = make_method("same", SMALL)
    model = method.attach(other.model)
    with pytest.raises(AdapterMismatch, match=r"unknown .*\.language_model\.layers\.0"):
        method.load_state(model, tmp_path)
    with pytest.raises(AdapterMismatch, match="does not fit"):
        open_adapter(tmp_path, Backbone.load(str(folder_of("idefics3"))))


def test_an_adapter_in_the_place_of_a_backbone(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llama"), tmp_path / "both")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter"):
        Backbone.load(str(folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "says BertForMaskedLM"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "no decoder that answers"),
        ({"model_type": "t5"}, "is an encoder-decoder"),
    ],
)
def test_a_model_without_a_decoder(content, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said):
        Backbone.load(str(tmp_path))


def test_a_model_whose_decoder_is_all_of_it(folder_of, monkeypatch):
    backbone = Backbone.load(str(folder_of("llava")))
    monkeypatch.setattr(type(backbone.model), "get_decoder", lambda self: self.model)
    with pytest.raises(ConfigError, match="no decoder of its own"):
        Backbone.of("whole", backbone.model, backbone.processor)


def test_code_that_comes_with_a_model_is_never_run(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llama"), tmp_path / "remote")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="cannot load the backbone"):
        Backbone.load(str(folder))
    assert not (tmp_path / "trace").exists()


def test_no_chat_template(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llama"), tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        Backbone.load(str(folder)).collator()
