"""Lengths in tokens: the same numbers as the collator's batches, found without weights."""

from __future__ import annotations

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from undrift.data.collate import PixelCollator
from undrift.data.doctor_checks import RowQuestion, Split
from undrift.data.types import Example
from undrift.errors import ConfigError, UnknownName
from undrift.run import lengths as module
from undrift.run.lengths import Ruler, lengths, sample


def split_of(*examples, name="train", room=8):
    asked = tuple(RowQuestion(row, example) for row, example in enumerate(examples, 1))
    return Split("t", name, None, len(examples), asked, max_new_tokens=room)


def picture(folder, size):
    path = folder / "{}x{}.png".format(*size)
    Image.new("RGB", size).save(path)
    return path


def test_counts_are_those_of_a_batch_and_no_weights_are_loaded(
    backbone_folder, tmp_path, monkeypatch
):
    refuse = classmethod(lambda *_, **__: pytest.fail("weights"))
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)
    ruler = Ruler.load(str(backbone_folder))
    assert ruler.limit == 256
    sizes = {picture(tmp_path, size): size for size in ((40, 30), (50, 300))}
    one, other = sizes
    examples = [
        Example("a", "which colour is the picture?", ("red",), (one,)),
        Example("b", "which?", ("a somewhat longer answer",), (one, other)),
        Example("c", "no picture at all", ("x",)),
    ]
    measured = module._measured(
        ruler, split_of(*examples), {path: ruler.picture(size) for path, size in sizes.items()}
    )
    collator = PixelCollator(ruler.renderer)
    for one in measured:
        batch = collator.collate(collator.encode([one.asked.example], answered=True))
        assert batch["input_ids"].shape[1] == one.whole
        assert (batch["labels"] != -100).sum() == one.answer + 1


def test_what_is_too_long_is_listed(backbone_folder, tmp_path):
    ruler = Ruler.load(str(backbone_folder))
    path = picture(tmp_path, (40, 30))
    long = Example("long", "z" * 248, ("!",), (path,))  # no merges: a token a letter
    fits = Example("fits", "z" * 200, ("!",), (path,))
    wordy = Example("wordy", "?", ("q" * 9,), (path,))
    just = Example("just", "?", ("q" * 8,), (path,))
    seen = []
    found = lengths(
        ruler,
        [split_of(long, fits, wordy, just), split_of(fits, just, name="test"), split_of()],
        {path: (40, 30)},
        lambda *now: seen.append(now),
    )
    assert [(f.check, f.severity, f.split, [i.what for i in f.items]) for f in found] == [
        ("prompt too long", "error", "train", ["long"]),
        ("answer too long", "warning", "train", ["wordy"]),
        ("token lengths", "note", "", []),
    ]
    assert "than the 256 positions" in found[0].message
    assert "4 of them of pictures" not in found[0].items[0].reason  # one is the placeholder's
    assert "3 of them of pictures" in found[0].items[0].reason
    assert found[1].items[0].reason == "9 tokens: 'qqqqqqqqq'"
    assert seen[-1] == ("counting tokens", 3, 3)


def test_only_what_could_be_too_long_is_tokenised(backbone_folder, monkeypatch):
    ruler = Ruler.load(str(backbone_folder))
    monkeypatch.setattr(module, "LONGEST", 2)
    examples = [Example(str(n), "z" * n, ("!",)) for n in range(1, 250)]
    measured = module._measured(ruler, split_of(*examples), {})
    assert len(measured) < 60
    whole = ruler.texts(examples)
    over = {
        example.id
        for example, (prompt, answer) in zip(examples, whole, strict=True)
        if prompt + answer + 1 > 256
    }
    assert over and over == {one.asked.example.id for one in measured if one.whole > 256}


def test_a_sample_of_sizes():
    few = [(30, 20), (20, 30), (30, 20)]
    assert sample(few) == [(20, 30), (30, 20)]
    many = [(100 + n, 700 - n) for n in range(500)]
    chosen = sample([*many, (9, 900), (900, 9), (1, 1), (2000, 2000)])
    assert len(chosen) <= module.SAMPLE == 48
    assert {(9, 900), (900, 9), (1, 1), (2000, 2000)} <= set(chosen)


def test_more_sizes_than_the_sample_are_told(backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 4)
    ruler = Ruler.load(str(backbone_folder))
    sizes = {tmp_path / str(n): (20 + n, 30) for n in range(9)}
    found = lengths(ruler, [split_of(Example("a", "?", ("x",)))], sizes)
    assert "measured on 2 of 9 sizes" in found[-1].message  # the narrowest is the smallest, too


def test_pocket_and_what_is_no_backbone(tmp_path):
    ruler = Ruler.load("pocket")
    assert ruler.limit == 512
    assert ruler.picture((10, 500)) == ruler.picture((96, 96)) == 8  # 9, one is the placeholder
    with pytest.raises(UnknownName, match="did you mean 'pocket'"):
        Ruler.load("pokcet")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load the processor of the backbone"):
        Ruler.load(str(tmp_path))
