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

from tests.run.families import SEEING, save_family
from tests.run.tiny import SIDE
from undrift.data.types import Example
from undrift.errors import AdapterMismatch, ConfigError, DataError, MissingExtra, RunDirError
from undrift.run.backbone import Backbone
from undrift.run.config import TrainConfig
from undrift.run.generate import answers
from undrift.run.saved import make_method, open_adapter
from undrift.run.trainer import train
from undrift.tuner import layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = {"experts": 2, "rank": 2}
ALL = {**SMALL, "targets": "all"}
NEW = 5


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_family(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


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
    collator = backbone.collator()
    encoded = collator.encode(examples, answered=False)
    return dict(answers(backbone, model, collator, encoded, NEW, size))


@torch.no_grad()
def next_logits(backbone, model, examples: Sequence[Example]) -> torch.Tensor:
    collator = backbone.collator()
    batch = collator.collate(collator.encode(examples, answered=False))
    return model(**backbone.inputs(batch)).logits[:, -1]


def learn(backbone, model, method, examples, folder) -> None:
    collator = backbone.collator()
    settings = TrainConfig(batch_size=3, max_steps=2, learning_rate=0.05, log_steps=1)
    encoded = collator.encode(examples, answered=True)
    log = train(backbone, model, method, collator, encoded, settings, folder / "snapshots", 0)
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


@pytest.mark.parametrize("family", SEEING)
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


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("name", ["same", "finetune"])
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
    monkeypatch.setattr("undrift.run.pretrained.is_bitsandbytes_available", lambda: False)
    with pytest.raises(MissingExtra, match=r"quantize: 4bit needs .* 'undrift\[quant\]'"):
        Backbone.load(str(folder_of("llama")), quantize="4bit")


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3", "qwen3_vl", "llama"])
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
    with pytest.raises(AdapterMismatch, match=r"does not fit|find no place"):
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
