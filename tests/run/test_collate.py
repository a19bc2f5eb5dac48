"""Prompts, labels and padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from undrift.data.processor import IGNORED
from undrift.data.prompts import Renderer
from undrift.data.types import Benchmark, Example
from undrift.errors import ConfigError, DataError
from undrift.run.backbone import Backbone


def prepared(backbone: Backbone, benchmark: Benchmark) -> Backbone:
    backbone.prepare([p for task in benchmark.tasks for e in task.train for p in e.images])
    return backbone


@pytest.fixture(params=["features", "pixels"])
def collator(request, backbone, tiny):
    return (prepared(backbone, tiny) if request.param == "features" else backbone).collator()


def test_prompt_ends_where_the_answer_begins(collator, backbone, tiny):
    example = tiny.tasks[1].train[0]
    (encoded,) = collator.encode([example], answered=True)
    decode = backbone.processor.tokenizer.decode
    text = f"{example.question}assistant: "
    assert decode(encoded.prompt).replace("<image>", "") == f"<s>user: {text}"
    assert decode(encoded.answer) == f"{example.answers[0]}</s>"


def test_only_the_answer_is_labelled(collator, backbone, tiny):
    examples = [tiny.tasks[0].train[0], tiny.tasks[2].train[1], tiny.tasks[2].train[0]]
    encoded = collator.encode(examples, answered=True)
    batch = collator.collate(encoded)
    assert len({len(e.prompt) for e in encoded}) > 1 and len({len(e.answer) for e in encoded}) > 1
    for row, example in enumerate(encoded):
        labels = batch["labels"][row]
        assert labels[labels != IGNORED].tolist() == example.answer
        seen = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        assert seen[-len(example.answer) :] == example.answer
        # the label of a position is the token at that position, in the shape of the kept logits
        width = batch["labels"].shape[1]
        places = (labels != IGNORED).nonzero().flatten() + batch["input_ids"].shape[1] - width
        assert batch["input_ids"][row][places].tolist() == example.answer


def test_generation_has_no_labels(collator, tiny):
    batch = collator.collate(collator.encode(tiny.tasks[0].train[:2], answered=False))
    assert "labels" not in batch and "logits_to_keep" not in batch


def test_padding_is_left_of_the_prompt(collator, tiny):
    examples = [tiny.tasks[0].train[0], tiny.tasks[2].train[0]]
    mask = collator.collate(collator.encode(examples, answered=False))["attention_mask"]
    assert mask[:, -1].all() and not mask[:, 0].all()
    assert (mask.diff(dim=1) >= 0).all()


def test_loss_ignores_padding_and_batch_mates(collator, backbone, tiny):
    examples = [tiny.tasks[0].train[1], tiny.tasks[2].train[0]]
    encoded = collator.encode(examples, answered=True)

    def logits(part):
        inputs = backbone.inputs(collator.collate(part))
        with torch.no_grad():
            out = backbone.model(**inputs)
        return [out.logits[i][:-1][inputs["labels"][i][1:] != IGNORED] for i in range(len(part))]

    together, alone = logits(encoded), [logits([e])[0] for e in encoded]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_kept_features_give_the_logits_of_the_pixels(backbone, tiny):
    examples = [tiny.tasks[0].train[0], tiny.tasks[2].train[3]]
    pixels = backbone.collator()
    made = pixels.collate(pixels.encode(examples, answered=True))
    with torch.no_grad():
        expected = backbone.model(**backbone.inputs(made))
        kept = prepared(backbone, tiny).collator()
        batch = kept.collate(kept.encode(examples, answered=True))
        found = backbone.model(**backbone.inputs(batch))
    assert "pixel_values" in made and "pixel_values" not in batch
    torch.testing.assert_close(found.loss, expected.loss, rtol=2e-3, atol=2e-3)


def test_text_only_examples(collator, backbone, tiny):
    examples = [Example("t", "say yes please", ("yes",)), tiny.tasks[0].train[0]]
    batch = collator.collate(collator.encode(examples, answered=True))
    assert torch.isfinite(backbone.model(**backbone.inputs(batch)).loss)
    alone = collator.collate(collator.encode(examples[:1], answered=True))
    assert torch.isfinite(backbone.model(**backbone.inputs(alone)).loss)


def test_image_token_in_the_text_is_refused(backbone, tiny):
    collator = prepared(backbone, tiny).collator()
    bad = replace(tiny.tasks[0].train[0], question="what is <image> about?")
    with pytest.raises(DataError, match="'lower-0' holds '<image>'"):
        collator.encode([bad], answered=False)


def test_missing_picture_is_named(backbone, tiny, tmp_path):
    lost = replace(tiny.tasks[0].train[0], images=(tmp_path / "lost.png",))
    pixels = backbone.collator()
    with pytest.raises(DataError, match=r"lost\.png"):
        pixels.collate(pixels.encode([lost], answered=False))
    with pytest.raises(DataError, match=r"lost\.png"):
        backbone.prepare(lost.images)


def test_a_template_that_ends_turns_itself_is_not_ended_twice(backbone):
    renderer = Renderer(backbone.processor, backbone.stop_ids)
    examples = [Example("a", "say yes", ("yes",))]
    (answer,) = renderer.answers(examples, renderer.prompts(examples))
    assert answer.count(backbone.processor.tokenizer.eos_token_id) == 1


def test_a_template_that_never_ends_turns_gets_an_end(backbone):
    processor = backbone.processor
    processor.chat_template = processor.chat_template.replace("{{ eos_token }}", " ")
    renderer = Renderer(processor, backbone.stop_ids)
    examples = [Example("a", "say yes", ("yes",))]
    (answer,) = renderer.answers(examples, renderer.prompts(examples))
    assert processor.tokenizer.decode(answer) == "yes</s>"


def test_prompt_and_answer_are_the_tokens_of_the_whole_conversation(backbone, tiny):
    renderer = Renderer(backbone.processor, backbone.stop_ids)
    examples = [e for task in tiny.tasks for e in task.train]
    examples.append(Example("x", "say\nassistant: hello", ("two words",)))
    prompts = renderer.prompts(examples)
    found = zip(renderer.ids(prompts), renderer.answers(examples, prompts), strict=True)
    for example, (prompt, answer) in zip(examples, found, strict=True):
        whole = renderer.template.conversation(example)
        expected = backbone.processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert prompt + answer == expected[: len(prompt + answer)]


def test_no_chat_template(backbone):
    backbone.processor.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Renderer(backbone.processor, backbone.stop_ids)


def test_a_template_that_thinks_is_told_not_to(backbone):
    processor = backbone.processor
    processor.chat_template = processor.chat_template.replace(
        "assistant: ",
        "assistant: {% if not enable_thinking | default(true) %}<think></think>{% endif %}",
    )
    renderer = Renderer(processor, backbone.stop_ids)
    (prompt,) = renderer.prompts([Example("a", "say yes", ("yes",))])
    assert prompt.endswith("assistant: <think></think>")
