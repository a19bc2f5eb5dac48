"""Features of prompts: what they are the means of, and what cannot be seen in them."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tuner.llava import tiny_batch, tiny_llava
from undrift.methods.shared.prompt_features import (
    adapters_off,
    embedding_centre,
    features,
    hidden_features,
)
from undrift.tuner import ForwardContext, Prompt

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

LORA = peft.LoraConfig(target_modules=r".*language_model.*q_proj")


def prompt_of(model, side="right", rows=slice(None), answers=2) -> Prompt:
    given = {key: value[rows] for key, value in tiny_batch(side=side).items()}
    ids = given["input_ids"]
    given["labels"] = torch.full_like(ids, -100)
    for row, mask in enumerate(given["attention_mask"]):
        last = int(mask.nonzero().max())
        given["labels"][row, last - answers + 1 : last + 1] = 7
    seen = []
    context = ForwardContext.attach(model)
    context.on_prompt = seen.append
    with torch.no_grad():
        model(**given)
    context.on_prompt = None
    return seen[0]


def test_the_text_is_the_mean_embedding_from_the_centre_of_all_and_the_image_its_own():
    model = tiny_llava()
    prompt, table = prompt_of(model), model.get_input_embeddings().weight.detach()
    centre = embedding_centre(model)
    torch.testing.assert_close(centre, table.double().mean(0))
    found = features(prompt, centre)
    for row in range(3):
        text = prompt.embeds[row][prompt.text_mask[row]].double().mean(0) - centre
        image = prompt.embeds[row][prompt.image_mask[row]].double().mean(0)
        for name, want in (("text", text), ("image", image)):
            torch.testing.assert_close(found.of[name][row], (want / want.norm()).float())
    assert prompt.text_mask.sum(1).tolist() == [9 - 4 - 2, 12 - 4 - 2, 7 - 4 - 2]


def test_neither_padding_nor_the_rest_of_the_batch_nor_answers_are_seen():
    model = tiny_llava()
    centre = embedding_centre(model)
    together = features(prompt_of(model), centre)
    left = features(prompt_of(model, "left"), centre)
    for row in range(3):
        alone = features(prompt_of(model, rows=slice(row, row + 1)), centre)
        for name in ("image", "text"):
            torch.testing.assert_close(alone.of[name][0], together.of[name][row])
            torch.testing.assert_close(left.of[name][row], together.of[name][row])


def test_a_missing_modality_is_marked_and_zero():
    embeds = torch.randn(2, 3, 4)
    none, some = torch.zeros(2, 3, dtype=torch.bool), torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    found = features(Prompt(embeds, ~none, some), torch.zeros(4))
    assert found.present["image"].tolist() == [True, False] and found.present["text"].all()
    assert not found.of["image"][1].any() and not found.of["image"].isnan().any()


def test_the_hidden_state_is_the_base_models_at_the_last_prompt_token():
    base = tiny_llava()
    plain = prompt_of(base)
    model = peft.get_peft_model(tiny_llava(), LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    for side in ("right", "left"):
        prompt = prompt_of(model, side)
        got = hidden_features(model, prompt)
        for row in range(3):
            own = plain.embeds[row][plain.mask[row]][None]
            want = base.get_decoder()(inputs_embeds=own).last_hidden_state[0, -1]
            torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-5)


def test_switching_adapters_off_changes_no_gradient_flag():
    model = peft.get_peft_model(tiny_llava(), LORA)
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with adapters_off(model):
        assert [p.requires_grad for p in model.parameters()] == before
    assert [p.requires_grad for p in model.parameters()] == before
