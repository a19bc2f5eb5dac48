"""The projector beside an adapter: found in the model, trained at its own rate, saved with it."""

from __future__ import annotations

import zlib

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.run import asking
from tests.run.families import SEEING
from tests.run.tiny import save_tiny, tiny_benchmark
from undrift.errors import ConfigError
from undrift.methods.shared.projector import projector_names, train_projector, trained_modules
from undrift.run.adapters import open_adapter
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig, TrainConfig
from undrift.run.evaluate import ask
from undrift.run.session import make_method
from undrift.run.task_loop import Run
from undrift.tuner.token_mask import Tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = {"experts": 2, "rank": 2}
FOUND = {
    "idefics3": ["model.connector"],
    "qwen2_5_vl": ["model.visual.merger"],
    "qwen3_vl": ["model.visual.merger", "model.visual.deepstack_merger_list.0"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tiny_benchmark(tmp_path_factory.mktemp("data"), tasks=1).tasks[0]


def opened(folder, name="same", dtype="float32"):
    backbone, method = Backbone.load(str(folder), dtype, "cpu"), make_method(name, SMALL)
    torch.manual_seed(0)
    return backbone, method, method.attach(backbone.model)


def projector(model):
    (wrapper,) = [m for n, m in model.named_modules() if n.endswith("multi_modal_projector")]
    own = wrapper.modules_to_save["default"] if hasattr(wrapper, "modules_to_save") else wrapper
    return {name: p.detach().clone() for name, p in own.named_parameters()}


def trained(folder, task, place, *, also_projector, rate=2e-5, name="same", dtype="float32"):
    """One step of AdamW without decay: every value moves by about the rate."""
    backbone, method, model = opened(folder, name, dtype)
    if also_projector:
        train_projector(model)
    settings = TrainConfig(
        batch_size=4, max_steps=1, learning_rate=0.01, projector_learning_rate=rate,
        scheduler="constant", warmup_ratio=0,
    )  # fmt: skip
    asking.taught(backbone, model, method, task.train, settings, place)
    return backbone, method, model


def test_a_step_on_pixels_tells_examples_apart_by_their_ids(folder, task, tmp_path, monkeypatch):
    seen, made = [], Tokens.__init__

    def noted(self, mask=None, ids=None, *rest):
        seen.append(ids)
        made(self, mask, ids, *rest)

    monkeypatch.setattr(Tokens, "__init__", noted)
    trained(folder, task, tmp_path, also_projector=True)
    known = {zlib.crc32(example.id.encode()) for example in task.train}
    given = [ids for ids in seen if ids is not None]
    assert given and all(len({*ids.tolist()} & known) == len(ids) for ids in given)


@pytest.mark.parametrize("family", SEEING)
def test_found_from_the_model(family):
    model, _ = SEEING[family]()
    assert projector_names(model) == FOUND.get(family, ["model.multi_modal_projector"])


def test_a_model_without_one(folder):
    model = Backbone.load(str(folder)).model
    model.model.multi_modal_projector = nn.Identity()
    model.model.between = model.model._modules.pop("multi_modal_projector")
    with pytest.raises(ConfigError, match=r"no multimodal projector .*; its parts are .*between"):
        projector_names(model)


@pytest.mark.parametrize("name", ["same", "finetune"])
def test_moves_at_its_own_rate_and_comes_back_bit_for_bit(name, folder, task, tmp_path):
    before = projector(opened(folder, name)[2])
    _, method, model = trained(
        folder, task, tmp_path / "a", also_projector=True, rate=1e-3, name=name
    )
    after = projector(model)
    for key, value in after.items():
        assert (value - before[key]).abs().max() == pytest.approx(1e-3, rel=0.02)
    method.save_state(model, tmp_path / "saved")
    for again in (_with_ours(folder, name, tmp_path), _with_peft(folder, tmp_path)):
        found = projector(again)
        assert all(torch.equal(found[key], after[key]) for key in after)


def _with_ours(folder, name, tmp_path):
    _, method, model = opened(folder, name)
    train_projector(model)
    method.load_state(model, tmp_path / "saved")
    return model


def _with_peft(folder, tmp_path):
    return PeftModel.from_pretrained(Backbone.load(str(folder)).model, str(tmp_path / "saved"))


def test_left_alone_by_default(folder, task, tmp_path):
    *_, model = opened(folder)
    before = projector(model)
    assert trained_modules(model) == []
    *_, model = trained(folder, task, tmp_path / "a", also_projector=False, rate=1e-3)
    *_, other = trained(folder, task, tmp_path / "b", also_projector=False, rate=0.5)
    after = projector(model)
    assert all(torch.equal(after[key], before[key]) for key in before)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_half_precision_backbone_has_a_float32_master(folder, task, tmp_path):
    before = projector(opened(folder, dtype="bfloat16")[2])
    *_, model = trained(
        folder, task, tmp_path / "a", also_projector=True, rate=1e-5, dtype="bfloat16"
    )
    after = projector(model)
    assert {value.dtype for value in after.values()} == {torch.float32}
    weight = "linear_1.weight"
    assert 0 < (after[weight] - before[weight].float()).abs().max() < 2e-5


def test_a_run_shows_pixels_and_its_adapter_is_opened_with_the_projector(folder, tmp_path):
    benchmark = tiny_benchmark(tmp_path / "data", train=4, test=2, tasks=1)
    config = RunConfig.model_validate(
        {
            "benchmark": "tiny",
            "method": {"name": "finetune", **SMALL},
            "backbone": str(folder),
            "out": tmp_path / "run",
            "train": {"max_steps": 2, "learning_rate": 0.01, "train_projector": True},
        }
    )
    run = Run(config, benchmark=benchmark)
    run.go()
    assert "train_projector: true" in (tmp_path / "run/run.yaml").read_text()
    learned = open_adapter(tmp_path / "run")
    assert trained_modules(learned.model) and not learned.backbone.keeps_features
    example = benchmark.tasks[0].test[0]
    ask(learned, example.question, example.images)
    before, after = projector(opened(folder)[2]), projector(learned.model)
    assert not any(torch.equal(after[key], before[key]) for key in before)
