"""What is shown of a prompt, and when: once, without padding, without answers."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.tuner.llava import IMAGE_TOKEN, tiny_batch, tiny_llava
from tests.tuner.pools import tiny_pool
from undrift.errors import ConfigError
from undrift.tuner import ForwardContext, Prompt
from undrift.tuner.forward import cache_of
from undrift.tuner.pool_lora import gate_context

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
GREEDY = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def watched(model):
    """The model's context, and the list that its prompts go into."""
    context, seen = ForwardContext.attach(model), []
    context.on_prompt = seen.append
    return context, seen


def questions(**kwargs):
    batch = tiny_batch(**kwargs)
    del batch["labels"]
    return batch


def answered(batch, tail=3):
    """The batch of prompts with `tail` answer tokens behind each, padded on the left."""
    more = torch.full((len(batch["input_ids"]), tail), 50)
    ids = torch.cat([batch["input_ids"], more], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    labels = torch.cat([torch.full_like(batch["input_ids"], -100), more], 1)
    return batch | {"input_ids": ids, "attention_mask": mask, "labels": labels}


def rows(prompt: Prompt):
    """What is shown of each sample, without the rest: embeddings, and where the image is."""
    kept = zip(prompt.embeds, prompt.mask, prompt.image_mask, strict=True)
    return [(embeds[mask], image[mask]) for embeds, mask, image in kept]


def same(one, other, exactly=True):
    for (a, image), (b, other_image) in zip(one, other, strict=True):
        assert torch.equal(image, other_image)
        assert torch.equal(a, b) if exactly else torch.allclose(a, b, atol=1e-6)


def test_image_features_lie_in_their_places_and_text_in_its_own():
    model, batch = tiny_llava(), questions()
    _, seen = watched(model)
    model(**batch)
    (prompt,) = seen
    text = batch["attention_mask"].bool() & (batch["input_ids"] != IMAGE_TOKEN)
    assert torch.equal(prompt.text_mask, text)
    assert torch.equal(prompt.image_mask, batch["input_ids"] == IMAGE_TOKEN)
    words = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(prompt.embeds[text], words[text])
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    assert torch.equal(prompt.embeds[prompt.image_mask], torch.cat(list(features)))
    assert not prompt.embeds.requires_grad


def test_padding_and_batch_mates_change_nothing():
    model = tiny_llava()
    _, seen = watched(model)
    right, left = questions(side="right"), questions(side="left")
    wide = {k: torch.cat([v.new_zeros(3, 5), v], 1) if v.dim() == 2 else v for k, v in left.items()}
    for batch in (right, left, wide):
        model(**batch)
    same(rows(seen[0]), rows(seen[1]))
    same(rows(seen[0]), rows(seen[2]))
    for row, length in enumerate(right["attention_mask"].sum(1).tolist()):
        alone = {k: v[row : row + 1, :length] if v.dim() == 2 else v[row : row + 1]
                 for k, v in right.items()}  # fmt: skip
        model(**alone)
        same(rows(seen[-1]), rows(seen[0])[row : row + 1], exactly=False)


def test_answers_are_left_out_and_what_follows_them_too():
    model, batch = tiny_llava(), questions(side="left")
    _, seen = watched(model)
    model(**batch)
    taught = answered(batch)
    model(**taught)
    taught["labels"][:, -1] = -100  # a template's last token has no label, and is no prompt
    model(**taught)
    last = taught | {"labels": taught["labels"][:, -4:], "logits_to_keep": 4}
    model(**last)  # labels of the last positions only, as undrift's own collator makes them
    assert len(seen) == 4
    for prompt in seen[1:]:
        same(rows(seen[0]), rows(prompt))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_is_shown_once_and_its_gates_serve_every_decoding_step(beams):
    model, batch = tiny_pool(gates="given"), questions(side="left")
    context, seen = ForwardContext.attach(model), []
    gates, used = gate_context(model), []

    def decide(prompt: Prompt) -> None:
        seen.append(prompt)
        sums = (prompt.embeds * prompt.mask[..., None]).sum((1, 2))
        gates.set_gates(torch.stack([sums.sin(), sums.cos(), sums * 0 + 1], 1))

    context.on_prompt = decide
    model.get_base_model().register_forward_hook(lambda *_: used.append(gates.gates_of("")))
    together = model.generate(**batch, num_beams=beams, **GREEDY)
    assert len(seen) == 1 and len(seen[0].embeds) == 3 * beams
    assert len(used) == 3 and all(each is used[0] for each in used)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = {k: v[row : row + 1, -length:] if v.dim() == 2 else v[row : row + 1]
                 for k, v in batch.items()}  # fmt: skip
        one = model.generate(**alone, num_beams=beams, **GREEDY)
        torch.testing.assert_close(used[-1][0], used[0][row * beams])
        assert torch.equal(one[0, -3:], together[row, -3:])


def test_embeddings_are_told_apart_by_the_ids_that_are_handed_over():
    model, batch = tiny_llava(), questions()
    context, seen = watched(model)
    model(**batch)
    embeds, mask = seen[0].embeds, batch["attention_mask"]
    with pytest.raises(ConfigError, match="do not show where the pictures are"):
        model(inputs_embeds=embeds, attention_mask=mask)
    with context.given(input_ids=batch["input_ids"]):
        out = model(inputs_embeds=embeds, attention_mask=mask, use_cache=True)
    same(rows(seen[0]), rows(seen[1]))
    with pytest.raises(ConfigError, match="do not show where the pictures are"):
        model(inputs_embeds=embeds, attention_mask=mask)
    model(  # one decoding step needs none
        inputs_embeds=embeds[:, -1:],
        attention_mask=torch.cat([mask, mask[:, :1]], 1),
        **cache_of(out),
    )
    assert len(seen) == 2
    with (
        context.given(input_ids=batch["input_ids"][:, :-1]),
        pytest.raises(ConfigError, match="not those of the embeddings"),
    ):
        model(inputs_embeds=embeds, attention_mask=mask)


def test_a_language_model_alone_has_text_only():
    model, batch = tiny_llava(), questions()
    text_only = copy.deepcopy(model.model.language_model)
    _, seen = watched(text_only)
    text_only(batch["input_ids"], batch["attention_mask"])
    assert not seen[0].image_mask.any()
    assert torch.equal(seen[0].text_mask, batch["attention_mask"].bool())


def test_what_cannot_be_told_is_refused():
    model, batch = tiny_llava(), tiny_batch()
    watched(model)
    batch["labels"] = batch["input_ids"]
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN, 5)
    del batch["pixel_values"]
    with pytest.raises(ConfigError, match="a sample has no prompt"):
        model(**batch)
    with pytest.raises(ConfigError, match="call the whole model"):
        model.model.language_model(input_ids=batch["input_ids"])
    with pytest.raises(ConfigError, match="mask of shape"):
        model(input_ids=batch["input_ids"], attention_mask=torch.ones(3, 1, 12, 12))
    with pytest.raises(ConfigError, match="no get_decoder"):
        ForwardContext.attach(torch.nn.Linear(2, 2), on_prompt=print)


def test_one_context_a_model_found_through_whatever_stands_around_it():
    assert ForwardContext.of(tiny_llava()) is None
    model = tiny_pool()
    context, seen = watched(model)
    assert gate_context(model) is context
    assert ForwardContext.attach(model.get_base_model()) is context
    around = torch.nn.Module()
    around.module = model
    assert ForwardContext.of(around) is context
    twin = copy.deepcopy(model)
    assert ForwardContext.of(twin) is not context
    with context.paused():
        model(**tiny_batch())
    assert not seen
    model(**tiny_batch())
    assert len(seen) == 1


def test_a_callback_may_ask_the_model_itself():
    model, depth = tiny_llava(), []
    context = ForwardContext.attach(model)

    def look(prompt: Prompt) -> None:
        depth.append(1)
        with context.paused(), torch.no_grad():
            model(**questions())

    context.on_prompt = look
    model(**questions())
    assert depth == [1]
