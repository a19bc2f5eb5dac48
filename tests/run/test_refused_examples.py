"""What processor or model refuse of one example: its name and its picture, in every command."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tests.run import asking
from tests.run.families import SEEING
from tests.run.tiny import SIDE
from undrift.data.benchmarks.folder import OwnTask
from undrift.data.doctor_checks import RowQuestion, Split
from undrift.data.types import Example
from undrift.errors import DataError
from undrift.run.backbone import Backbone
from undrift.run.config import TrainConfig
from undrift.run.learn import Learn, start_from
from undrift.run.lengths import Ruler, lengths
from undrift.run.session import make_method

pytestmark = pytest.mark.foreign("5.10")
SIZES = {"good": (SIDE, SIDE), "flat": (1000, 4), "tall": (4, 1000), "wide": (40, 20)}


@pytest.fixture
def shown(tmp_path) -> list[Example]:
    made = []
    for name, size in SIZES.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        made.append(Example(name, "which?", ("red",), (tmp_path / f"{name}.png",)))
    return made


def taught(backbone, examples, folder):
    method = make_method("finetune", {"experts": 1, "rank": 2})
    model = method.attach(backbone.model)
    settings = TrainConfig(batch_size=4, max_steps=1, learning_rate=0.01, log_steps=1)
    asking.taught(backbone, model, method, examples, settings, folder / "snapshots")


def said(backbone, examples):
    return asking.said(backbone, backbone.model, examples, len(examples), 2)


def asked_of(*examples):
    asked = tuple(RowQuestion(row, example) for row, example in enumerate(examples, 1))
    return Split("t", "train", None, len(asked), asked)


def test_a_picture_that_the_processor_refuses_is_named(folder_of, shown, tmp_path):
    told = r"refuses example '(flat|tall)' \(.*(flat|tall)\.png, \d+ x \d+\): ValueError: .*--skip"
    for do in (said, lambda *given: taught(*given, tmp_path)):
        backbone = Backbone.load(str(folder_of("qwen2_5_vl")))
        with pytest.raises(DataError, match=told):
            do(backbone, shown)
    assert set(said(backbone, [shown[0], shown[3]])) == {"good", "wide"}


def test_the_doctor_lists_it_and_measures_the_others(folder_of, shown):
    sizes = {example.images[0]: SIZES[example.id] for example in shown}
    ruler = Ruler.load(str(folder_of("qwen2_5_vl")))
    found = lengths(ruler, [asked_of(*shown)], sizes)
    assert [(f.check, [i.what for i in f.items]) for f in found] == [
        ("refused", ["flat", "tall"]), ("token lengths", []),
    ]  # fmt: skip
    assert "1000 x 4" in found[0].items[0].reason


@pytest.mark.parametrize("skip_bad", [False, True])
def test_learn_leaves_it_out_before_it_starts(skip_bad, folder_of, shown, tmp_path):
    rows = [
        {
            "question_id": number,
            "image": f"{name}.png",
            "text": "what </s>?" if number == 9 else "which colour?",
            "answer": "<|vision_start|>" if number == 8 else "red",
        }
        for number, name in enumerate(["good", "wide", "flat", "good", "tall", *["good"] * 5])
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "test.json").write_text(json.dumps(rows[:4]))
    layer = {
        "skip_bad": skip_bad,
        "method": {"name": "finetune", "experts": 1, "rank": 2},
        "train": {"batch_size": 4, "max_steps": 1, "learning_rate": 0.01},
    }
    start = start_from(str(folder_of("qwen2_5_vl")), layer)
    file = tmp_path / "rows.json"
    own = OwnTask("t", file, tmp_path, test=tmp_path / "test.json", max_new_tokens=2)
    learn = Learn(start, own, tmp_path / "out")
    if skip_bad:
        assert [e.id for e in learn.task.train] == ["0", "1", "3", "5", "6", "7"]
        assert [e.id for e in learn.task.test] == ["0", "1", "3"]
        reasons = [row.reason for row in learn.skipped]
        assert len(reasons) == 5 and "1000 x 4" in reasons[0] and "vision_start" in reasons[2]
        assert [change.examples for change in learn.go()] == [3]
    else:
        with pytest.raises(DataError, match=r"example '\d'"):
            learn.go()


def test_a_processor_without_patch_size_is_told_as_a_setting(shown, tmp_path):
    model, processor = SEEING["llava_next"]()
    processor.patch_size = None
    backbone = Backbone.of("x", model, processor)
    told = r"example 'good' \(.*good\.png, 12 x 12\): TypeError: .* a setting of the backbone's pro"
    with pytest.raises(DataError, match=told):
        said(backbone, shown[:1])
    with pytest.raises(DataError, match=told):
        taught(backbone, shown[:1], tmp_path)
    processor.save_pretrained(tmp_path / "m")
    model.config.save_pretrained(tmp_path / "m")
    ruler = Ruler.load(str(tmp_path / "m"))
    (found,) = lengths(ruler, [asked_of(*shown[:1])], {shown[0].images[0]: SIZES["good"]})
    assert (found.check, found.severity) == ("refused", "error")
    assert "refuses every picture: TypeError" in found.message and "a setting" in found.message


def test_places_that_do_not_match_the_models_features_are_told_as_a_setting(shown, tmp_path):
    torch.manual_seed(0)
    model, processor = SEEING["llava_next"]()
    processor.num_additional_image_tokens = 0
    told = r"refuses example 'good' \(.*good\.png.* a setting of the backbone's processor"
    backbone = Backbone.of("x", model, processor)
    with pytest.raises(DataError, match=told):
        said(backbone, [shown[0], shown[3]])
    with pytest.raises(DataError, match=told):
        taught(backbone, [shown[0], shown[3]], tmp_path)


def test_another_fault_goes_through_as_it_is(folder_of, shown, monkeypatch):
    backbone = Backbone.load(str(folder_of("qwen2_5_vl")))

    def broken(*_, **__):
        raise ValueError("no such head")

    monkeypatch.setattr(backbone.model, "generate", broken)
    with pytest.raises(ValueError, match=r"^no such head$"):
        said(backbone, shown[:1])
