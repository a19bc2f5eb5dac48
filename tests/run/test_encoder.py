from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.run.tiny import SIDE, tiny_tokenizer
from tests.sweeps import mostly_slow
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.methods.shared.prompt_features import features
from undrift.run.adapters import open_adapter
from undrift.run.backbone import Backbone
from undrift.run.encoder import Encoder
from undrift.run.evaluate import ask
from undrift.rundir import read_json, read_lines
from undrift.tuner import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
CPU = torch.device("cpu")


def save(folder, kind, width=24):
    """A tiny encoder on disk: "clip" for pictures and texts, "sentences" for texts."""
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    if kind == "sentences":
        BertModel(BertConfig(**{**text, "hidden_size": width})).save_pretrained(folder)
        return str(folder)
    vision = {**sizes, "image_size": SIDE, "patch_size": SIDE // 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=width)
    CLIPModel(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return str(folder)


def encoded(backbone, examples):
    return backbone.collator().encode(examples, answered=False)


@pytest.mark.parametrize("kind", ["clip", "sentences"])
def test_vectors_have_length_one_and_do_not_depend_on_the_batch(kind, tmp_path, backbone, two):
    encoder = Encoder.load(save(tmp_path, kind), CPU)
    task = two.tasks[0].test
    both = Example("both", "which colour?", ("red",), (*task[0].images, *task[1].images))
    examples = [*task[:3], Example("none", "a text that is longer?", ("no",)), both]
    together = encoder(encoded(backbone, examples))
    alone = [encoder(encoded(backbone, [example])) for example in examples]
    for name in ("image", "text"):
        torch.testing.assert_close(together[name], torch.cat([each[name] for each in alone]))
    lengths = together["image"].norm(dim=1)
    seen = [1.0, 1.0, 1.0, 0.0, 1.0] if kind == "clip" else [0.0] * 5
    torch.testing.assert_close(lengths, torch.tensor(seen))
    torch.testing.assert_close(together["text"].norm(dim=1), torch.ones(5))
    if kind == "clip":
        mean = together["image"][0] + together["image"][1]
        torch.testing.assert_close(together["image"][4], mean / mean.norm())


def test_of_a_long_text_the_end_is_read(tmp_path, backbone):
    encoder = Encoder.load(save(tmp_path, "sentences"), CPU)
    end = " answer with one letter that is the letter of the colour"
    texts = [begin + "?" * 40 + end for begin in ("which colour", "what")]
    texts += ["what" + "?" * 40 + end[::-1]]
    made = encoder(encoded(backbone, [Example(t, t, ("a",)) for t in texts]))["text"]
    torch.testing.assert_close(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "kind"),
    mostly_slow(
        [("disco", "clip"), ("nearlora", "clip"), ("modalprompt", "clip"),
         ("continual_llava", "sentences"), ("smolora", "sentences")],
        ["disco"],
    ),
)  # fmt: skip
def test_a_run_and_what_it_leaves_compare_by_the_encoder(name, kind, make_run, tmp_path, two):
    folder = save(tmp_path / kind, kind)
    run = make_run(method={"name": name, "encoder": folder, "experts": 2, "rank": 2})
    result = run.go()
    assert all(score is not None for score in result["matrix"][1])
    saved = sorted((tmp_path / "run").glob("tasks/*/adapter"))[-1]
    learned = open_adapter(saved)
    assert learned.backbone.encoder is not None and learned.backbone.encoder.name == folder
    example = two.tasks[0].test[0]
    said = ask(learned, example.question, example.images, 6)
    kept = read_lines(tmp_path / "run" / "eval" / "after-02" / "on-01.jsonl")
    assert said == next(line["prediction"] for line in kept if line["id"] == example.id)
    assert read_json(tmp_path / "run" / "manifest.json")["settings"]["encoder"] == folder


def test_the_prototypes_are_means_of_its_features(make_run, tmp_path, two):
    folder = save(tmp_path / "clip", "clip")
    options = {"name": "disco", "encoder": folder, "experts": 2, "rank": 2}
    run = make_run(method=options, train={"max_steps": None, "epochs": 1})
    run.go()
    encoder, backbone = Encoder.load(folder, CPU), Backbone.load(run.config.backbone)
    backbone.prepare([path for e in two.tasks[0].train for path in e.images])
    made = encoder(encoded(backbone, two.tasks[0].train))["text"]
    found = run.method._matcher.prototypes("text")[0]
    torch.testing.assert_close(found[:24].float(), made.mean(0), rtol=1e-4, atol=1e-6)
    assert not found[24:].any()


def test_what_cannot_be_used_is_told(tmp_path, make_run):
    with pytest.raises(ConfigError, match="cannot load the encoder"):
        make_run(method={"name": "disco", "encoder": str(tmp_path / "nothing")}).go()
    longer = save(tmp_path / "long", "sentences", width=64)
    with pytest.raises(ConfigError, match="have 64 numbers, and the model's embeddings 32"):
        make_run(out="other", method={"name": "disco", "encoder": longer}).go()
    mask = torch.ones(1, 2, dtype=torch.bool)
    prompt = Prompt(torch.zeros(1, 2, 4), mask, ~mask)
    with pytest.raises(ConfigError, match="ForwardContext"):
        features(prompt, torch.zeros(4), "some/clip")
