"""Models of many families, from a folder to answers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from torch.nn import Linear

from tests.run import asking
from tests.run.families import SEEING
from tests.run.tiny import SIDE
from tests.sweeps import mostly_slow
from undrift.data.types import Example
from undrift.errors import DataError, MissingExtra
from undrift.run.backbone import Backbone
from undrift.run.config import TrainConfig
from undrift.run.session import make_method
from undrift.tuner import layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = {"experts": 2, "rank": 2}
ALL = {**SMALL, "targets": "all"}
NEW = 5


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[Example]:
    """Pictures of several shapes: one, two or three of them in an example, or none."""
    root, random = tmp_path_factory.mktemp("pictures"), Random(0)
    paths = []
    for number, size in enumerate([(SIDE, SIDE), (2 * SIDE, SIDE), (SIDE, 2 * SIDE), (17, 13)] * 2):
        picture = Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1]))
        paths.append(root / f"{number}.png")
        picture.save(paths[-1])
    shown = (paths[:1], paths[1:3], [], paths[3:4], paths[5:8], paths[4:5])
    return [_example(number, tuple(pictures)) for number, pictures in enumerate(shown)]


def _example(number: int, pictures: tuple[Path, ...] = ()) -> Example:
    question = ("which colour?", "what? say yes or no", "which colour is it?")[number % 3]
    answer = ("yes", "no", "red and white")[number % 3]
    return Example(f"e{number}", question + "!" * number, (answer,), pictures)


def said(backbone, model, examples: Sequence[Example], size: int) -> dict[str, str]:
    return asking.said(backbone, model, examples, size, NEW)


@torch.no_grad()
def next_logits(backbone, model, examples: Sequence[Example]) -> torch.Tensor:
    collator = backbone.collator()
    batch = collator.collate(collator.encode(examples, answered=False))
    return model(**backbone.inputs(batch)).logits[:, -1]


def learn(backbone, model, method, examples, folder) -> None:
    settings = TrainConfig(batch_size=3, max_steps=2, learning_rate=0.05, log_steps=1)
    log = asking.taught(backbone, model, method, examples, settings, folder / "snapshots")
    assert len(log) == 2


def learned_and_read_again(
    folder, examples, place, name="same", options=SMALL, **loaded
) -> Backbone:
    backbone, method = Backbone.load(str(folder), **loaded), make_method(name, options)
    before = said(backbone, backbone.model, examples, 3)
    model = method.attach(backbone.model)
    assert said(backbone, model, examples, 3) == before
    learn(backbone, model, method, examples, place)
    after = said(backbone, model, examples, 1)
    assert after != before
    method.save_state(model, place)
    again, method = Backbone.load(str(folder), **loaded), make_method(name, options)
    model = method.attach(again.model)
    method.load_state(model, place)
    assert again.fingerprint == backbone.fingerprint
    size = 1 if loaded else 3  # in 8 bits an answer depends on its batch, see docs/models.md
    assert said(again, model.eval(), examples, size) == after
    return again


@pytest.mark.parametrize("family", mostly_slow(SEEING, ["llava", "qwen2_5_vl"]))
def test_learns_and_is_read_again(family, folder_of, asked, tmp_path):
    backbone = learned_and_read_again(folder_of(family), asked, tmp_path)
    decoder = backbone.model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    wrapped = layers(backbone.model).values()
    assert wrapped and all(id(layer) in inside for layer in wrapped)
    outside = [m for m in backbone.model.modules() if id(m) not in inside and type(m) is Linear]
    assert outside  # there are linears that a bare suffix could have hit


def test_a_plain_lora_that_watches_its_inputs(folder_of, asked, tmp_path):
    learned_and_read_again(folder_of("qwen2_5_vl"), asked[:3], tmp_path, "steadylora")


@pytest.mark.parametrize(("family", "options"), [("llama", SMALL), ("bloom", ALL)])
def test_text_only(family, options, folder_of, tmp_path):
    examples = [_example(number) for number in range(5)]
    learned_and_read_again(folder_of(family), examples, tmp_path, options=options)


@pytest.mark.parametrize(
    ("quantize", "name"),
    mostly_slow(
        [(bits, name) for bits in ("8bit", "4bit") for name in ("same", "finetune")],
        [("4bit", "same")],
    ),
)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_a_quantised_language_model(quantize, name, folder_of, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")
    examples, folder = [_example(number) for number in range(3)], folder_of("llama_wide")
    backbone = learned_and_read_again(folder, examples, tmp_path, name, quantize=quantize)
    assert backbone.fingerprint != Backbone.load(str(folder)).fingerprint
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_only_the_language_model_is_quantised(quantize, folder_of):
    pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")
    model = Backbone.load(str(folder_of("gemma3")), quantize=quantize).model
    inside = {id(module) for module in model.get_decoder().modules()}
    kinds = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            expected = kinds[quantize] if id(module) in inside else "Linear"
            assert type(module).__name__ == expected, name


def test_quantising_without_the_extra_tells_the_command(folder_of, monkeypatch):
    monkeypatch.setattr("undrift.run.load_model.is_bitsandbytes_available", lambda: False)
    with pytest.raises(MissingExtra, match=r"quantize: 4bit needs .* 'undrift\[quant\]'"):
        Backbone.load(str(folder_of("llama")), quantize="4bit")


@pytest.mark.parametrize(
    "family", mostly_slow(["llava", "idefics3", "gemma3", "qwen3_vl", "llama"], ["idefics3"])
)
def test_same_answers_whatever_the_batch(family, folder_of, asked):
    backbone = Backbone.load(str(folder_of(family)))
    model = make_method("same", SMALL).attach(backbone.model).eval()
    torch.manual_seed(3)
    with torch.no_grad():  # as if trained for long: the routes and the experts matter
        for layer in layers(model).values():
            for masters in (layer.moe_lora_A, layer.moe_lora_B, layer.moe_lora_G):
                masters["default"].normal_(std=0.2)
    mixed = asked if family in SEEING else [_example(number) for number in range(6)]
    one = mixed[0]
    alike = [Example(word, f"is it {word}?", ("no",), one.images) for word in "789"]
    lengths = {len(e.prompt) for e in backbone.collator().encode(alike, answered=False)}
    assert len(lengths) == 1  # these need no padding
    assert len(set(said(backbone, model, mixed, 1).values())) > 1
    for examples in (mixed, alike):
        alone = said(backbone, model, examples, 1)
        for size in (2, len(examples)):
            assert said(backbone, model, examples, size) == alone
        rows = torch.cat([next_logits(backbone, model, [example]) for example in examples])
        torch.testing.assert_close(
            next_logits(backbone, model, examples), rows, rtol=1e-4, atol=1e-4
        )
        assert torch.pdist(rows).min() > 0.1  # the examples do differ


def test_greedy_whatever_the_model_brings_along(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llama"), tmp_path / "penalised")
    file = folder / "generation_config.json"
    brought = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 50.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | brought))
    examples = [_example(number) for number in range(3)]
    plain, brings = (Backbone.load(str(place)) for place in (folder_of("llama"), folder))
    assert said(brings, brings.model, examples, 3) == said(plain, plain.model, examples, 3)


def test_text_only_batches_hold_the_answers_and_positions_without_padding(folder_of):
    backbone = Backbone.load(str(folder_of("llama")))
    collator = backbone.collator()
    encoded = collator.encode([_example(0), _example(4)], answered=True)
    batch = collator.collate(encoded)
    assert batch["attention_mask"].sum(1).tolist() == [len(e) for e in encoded]
    for row, example in enumerate(encoded):
        labels = batch["labels"][row]
        assert labels[labels != -100].tolist() == example.answer
        assert batch["position_ids"][row, -1] == len(example) - 1
    assert "position_ids" not in Backbone.load(str(folder_of("bloom"))).collator().collate(encoded)


# ---------------------------------------------------------------- what is refused


def test_pictures_for_a_text_only_backbone(folder_of, asked):
    backbone = Backbone.load(str(folder_of("llama")))
    with pytest.raises(DataError, match=r"reads text only, .* such as .*0\.png"):
        backbone.prepare(asked[0].images)
    with pytest.raises(DataError, match=r"example 'e0' has a picture .* reads text only"):
        backbone.collator().encode(asked, answered=False)


def test_the_image_token_as_plain_text(folder_of, asked):
    backbone = Backbone.load(str(folder_of("idefics3")))
    bad = Example("bad", "what is <image>?", ("no",), asked[0].images)
    with pytest.raises(
        DataError, match=r"example 'bad' holds '<image>', .* 2 times, .* 1 pictures"
    ):
        backbone.collator().encode([bad], answered=False)
