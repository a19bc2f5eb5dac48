"""Answers lengthen whatever the processor says of tokens, and none is seen while it is learned."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
import transformers as hf
from PIL import Image

from tests.run.causality import check_answers_unseen
from tests.run.families import (
    FRAME,
    READING,
    SEEING,
    SIDE,
    TOWER,
    Made,
    template,
    text,
    tokenizer,
)
from tests.run.tiny import PATCH
from undrift.data.processor import IGNORED, lengthened
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.run.backbone import Backbone


def paligemma() -> Made:
    words = tokenizer(image_token="<image>")
    picture = hf.SiglipImageProcessorPil(size=FRAME)
    picture.image_seq_length = (SIDE // PATCH) ** 2
    processor = hf.PaliGemmaProcessor(picture, words, template("<image>"))
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.GemmaConfig(**text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=16,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def mllama() -> Made:
    words = tokenizer("<|image|>")
    picture = hf.MllamaImageProcessorPil(size=FRAME, max_image_tiles=2)
    processor = hf.MllamaProcessor(picture, words, template("<|image|>"))
    sizes = text(words, num_hidden_layers=3, cross_attention_layers=[1])
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_global_layers": 1, "attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
            "max_num_tiles": 2, "vision_output_dim": 48, "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={**sizes, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    return hf.MllamaForConditionalGeneration(config), processor


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ALWAYS = ("llava", "gemma3", "qwen2_5_vl", "llama", "paligemma", "mllama")
MORE = {"paligemma": paligemma, "mllama": mllama}


@pytest.fixture(scope="module")
def backbone_of():
    made: dict[str, Backbone] = {}

    def build(name: str) -> Backbone:
        if name not in made:
            torch.manual_seed(0)
            model, processor = (SEEING | READING | MORE)[name]()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.mul_(3.0)
                    elif not parameter.any():  # gates of cross-attention begin shut
                        parameter.add_(0.5)
            made[name] = Backbone.of(name, model, processor)
        return made[name]

    return build


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[Example]:
    root, random, examples = tmp_path_factory.mktemp("pictures"), Random(0), []
    for number, answer in enumerate(("yes", "red and white", "no")):
        path = root / f"{number}.png"
        size = (SIDE, SIDE) if number else (2 * SIDE, SIDE)
        Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1])).save(path)
        examples.append(Example(f"e{number}", "which?" + "!" * number, (answer,), (path,)))
    return examples


def of_family(family: str, asked: list[Example]) -> list[Example]:
    if family not in READING:
        return asked
    return [Example(e.id, e.question, e.answers) for e in asked]


@pytest.mark.foreign("6.1")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name in (*SEEING, *READING, *MORE)
    ],
)
def test_no_logit_depends_on_a_later_answer_token(family, backbone_of, asked):
    backbone, examples = backbone_of(family), of_family(family, asked)
    check_answers_unseen(backbone, backbone.collator(), examples)
    check_answers_unseen(backbone, backbone.collator(), examples[:1])


@pytest.mark.foreign("6.1")
def test_equal_prompts_with_different_answers_cannot_be_told_apart(backbone_of, asked):
    backbone = backbone_of("paligemma")
    answers = ("yes", "red", "no", "user")
    alike = [Example(word, "which?", (word,), asked[0].images) for word in answers]
    collator = backbone.collator()
    with torch.no_grad():
        batch = collator.collate(collator.encode(alike, answered=True))
        logits = backbone.model(**backbone.inputs(batch)).logits
    first = (batch["labels"] != IGNORED).int().argmax(1)  # in the shape of the kept logits
    at_first = logits[torch.arange(4), first - 1]
    torch.testing.assert_close(at_first, at_first[:1].expand(4, -1))


@pytest.mark.foreign("6.1")
@pytest.mark.parametrize(("family", "suffix"), [("paligemma", 1), ("gemma3", 0)])
def test_what_a_token_type_of_an_answer_is_depends_on_the_family(
    family, suffix, backbone_of, asked
):
    backbone = backbone_of(family)
    collator = backbone.collator()
    batch = collator.collate(collator.encode(asked, answered=True))
    room = max(len(e.answer) for e in collator.encode(asked, answered=True))
    assert (batch["token_type_ids"][:, -room:] == suffix).all()
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


@pytest.mark.foreign("6.3")
@pytest.mark.parametrize("family", ["mllama", "paligemma", "gemma3", "qwen3_vl"])
def test_what_is_taught_is_what_generation_would_do(family, backbone_of, asked):
    """The logits of each answer token, taught at once, are those of `generate` step by step."""
    backbone, new = backbone_of(family), 5
    collator = backbone.collator()
    prompts = collator.encode(asked[:1], answered=False)
    inputs = backbone.inputs(collator.collate(prompts))
    known = inputs["input_ids"].shape[1]
    made = backbone.model.generate(
        **inputs, max_new_tokens=new, do_sample=False, output_logits=True, eos_token_id=-1,
        return_dict_in_generate=True,
    )  # fmt: skip
    (taught,) = collator.encode(asked[:1], answered=True)
    batch = collator.collate([replace(taught, answer=made.sequences[0, known:].tolist())])
    with torch.no_grad():
        logits = backbone.model(**backbone.inputs(batch)).logits[0]
    one_by_one = torch.cat(made.logits)
    torch.testing.assert_close(logits[-new - 1 : -1], one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.foreign("6.3")
def test_mllama_reads_its_pictures_in_the_answer_too_and_whatever_the_batch(backbone_of, asked):
    backbone = backbone_of("mllama")
    collator = backbone.collator()
    encoded = collator.encode(asked, answered=True)
    batch = collator.collate(encoded)
    assert batch["cross_attention_mask"].shape[:2] == batch["input_ids"].shape
    assert batch["cross_attention_mask"][:, -1].any()
    with torch.no_grad():
        together = backbone.model(**backbone.inputs(batch)).loss
        alone = [backbone.model(**backbone.inputs(collator.collate([e]))).loss for e in encoded]
    weights = torch.tensor([float(len(e.answer)) for e in encoded])
    torch.testing.assert_close(together, (torch.stack(alone) * weights).sum() / weights.sum())


class Unheard:
    """A processor, as far as it is asked."""

    def __call__(self, text): ...


@pytest.mark.foreign("6.3")
def test_whatever_has_the_prompts_length_is_lengthened_or_refused():
    ids = torch.tensor([[0, 5, 6], [4, 5, 6]])
    made = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "mm_token_type_ids": torch.tensor([[0, 1, 0], [1, 1, 0]]),
        "cross_attention_mask": torch.ones(2, 3, 1, 2).long(),
        "image_attention_mask": torch.tensor([[[0], [1], [1]], [[0], [0], [1]]]),
        "position_ids": torch.tensor([[[0, 0, 1], [0, 1, 2]]]).expand(3, 2, 3),
        "image_grid_thw": torch.ones(2, 3),
        "pixel_values": torch.ones(2, 3, 4, 4),
        "names": ["a", "b"],
    }
    out = lengthened(made, [[7, 8], [9]], 0, Unheard())
    assert out["input_ids"].tolist() == [[0, 5, 6, 7, 8], [4, 5, 6, 9, 0]]
    assert out["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert out["labels"].tolist() == [[-100] * 3 + [7, 8], [-100] * 3 + [9, -100]]
    assert out["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert out["cross_attention_mask"].shape == (2, 5, 1, 2) and out["cross_attention_mask"].all()
    assert out["image_attention_mask"][:, :, 0].tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert out["position_ids"].tolist() == [[[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]] * 3
    for name in ("image_grid_thw", "pixel_values", "names"):
        assert out[name] is made[name]
    with pytest.raises(ConfigError, match="Unheard gives 'seen_by' for each token"):
        lengthened({**made, "seen_by": ids}, [[7], [8]], 0, Unheard())
    with pytest.raises(ConfigError, match="token_type_ids other than 0"):
        lengthened({**made, "token_type_ids": ids}, [[7], [8]], 0, Unheard())


# ---------------------------------------------------------------- the last logits, as indices


@pytest.mark.parametrize(
    "family", ["llama", "llava", "gemma3", "qwen2_5_vl", "paligemma", "mllama"]
)
def test_logits_of_the_last_places_alone_give_the_same_loss(family, backbone_of, asked):
    backbone, examples = backbone_of(family), of_family(family, asked)
    collator = backbone.collator()
    encoded = collator.encode(examples, answered=True)
    batch = collator.collate(encoded)
    places = batch.pop("logits_to_keep")
    length = batch["input_ids"].shape[1]
    assert isinstance(places, torch.Tensor)
    assert places.tolist() == list(range(length - batch["labels"].shape[1], length))
    whole = batch | {"labels": torch.full((len(encoded), length), IGNORED)}
    whole["labels"][:, places] = batch["labels"]
    with torch.no_grad():
        full = backbone.model(**backbone.inputs(whole))
        last = backbone.model(**backbone.inputs(batch | {"logits_to_keep": places}))
    assert last.logits.shape[1] == len(places) < length
    torch.testing.assert_close(last.loss, full.loss)
    for row, example in zip(batch["labels"], encoded, strict=True):
        assert row[row != IGNORED].tolist() == example.answer


def test_a_model_without_it_is_given_all_labels(backbone_of, asked, monkeypatch):
    backbone, forward = backbone_of("llama"), backbone_of("llama").model.forward
    monkeypatch.setattr(
        backbone.model, "forward", lambda input_ids, attention_mask, labels=None: forward(input_ids)
    )
    collator = backbone.collator()
    batch = collator.collate(collator.encode(of_family("llama", asked), answered=True))
    assert "logits_to_keep" not in batch and batch["labels"].shape == batch["input_ids"].shape
