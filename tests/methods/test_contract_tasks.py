"""What holds for every method over three tasks, which each test finds learned."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from tests.methods.training import SMALL, attached, batch_of, learn
from tests.precision import assert_same
from tests.sweeps import METHODS_OF_EACH_MAKE, mostly_slow
from tests.tuner.llava import IMAGE_TOKEN, tiny_batch
from undrift.registry import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LEARNING = [name for name in METHODS.names() if METHODS.load(name).schedule == "sequential"]
TASKS, PROMPT = (1, 2, 3), 6  # the prompts of `batch_of` are a picture and two words
LENGTHS = (9, 12, 7, 10)


@cache
def course(name):
    """Learn three tasks, and note the loss before and after each, and what is frozen in it."""
    method = METHODS.load(name)(**SMALL)
    model = attached(method)
    config, losses, frozen = method.config, [], []
    found = {field.name for field in fields(config)}

    def loss(task):
        if "oracle" in found:  # whether it is learned, not whether it is found again
            method.config = replace(config, oracle=True)
        with torch.no_grad(), method.predicting(model.eval(), task=task):
            loss = float(model(**batch_of(task, step=0)).loss)
        method.config = config
        return loss

    def look(step):
        if step == 1:  # whatever the task begins with has begun
            frozen.append({n: p.clone() for n, p in model.named_parameters()
                           if not p.requires_grad})  # fmt: skip

    for task in TASKS:
        before = loss(task)
        learn(method, model, task=task, steps=12, on_step=look)
        losses.append((before, loss(task)))
        frozen[-1] = [
            (n, p, model.get_parameter(n).detach().clone()) for n, p in frozen[-1].items()
        ]
    method.asked = 2
    return SimpleNamespace(method=method, model=model.eval(), losses=losses, frozen=frozen)


def prompts(rows=slice(None), side="right"):
    batch = tiny_batch(LENGTHS, side, seed=3)
    batch.pop("labels")
    if isinstance(rows, int):
        whole = batch["attention_mask"][rows] != 0
        return {key: value[rows][None, whole] if value.dim() == 2 else value[rows][None]
                for key, value in batch.items()}  # fmt: skip
    return batch


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_first_middle_and_last_task_are_learned_alike_and_their_number_is_not_asked(name):
    found = course(name)
    assert found.method.task_index == 4
    for before, after in found.losses:
        assert after < before


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_what_is_frozen_in_a_task_is_bit_identical_after_it(name):
    for found in course(name).frozen:
        for key, before, after in found:
            kept = after[tuple(slice(size) for size in before.shape)]  # it may have grown
            assert torch.equal(kept, before), key


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_a_sample_has_the_same_logits_and_text_alone_and_in_any_batch(name):
    found = course(name)
    with torch.no_grad(), found.method.predicting(found.model):
        right = found.model(**prompts()).logits
        left = found.model(**prompts(side="left")).logits
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        texts = found.model.generate(**prompts(side="left"), **options)[:, max(LENGTHS) :]
        for row, length in enumerate(LENGTHS):
            alone = found.model(**prompts(row)).logits[0]
            for batch in (right[row, :length], left[row, -length:]):
                torch.testing.assert_close(batch, alone, rtol=1e-4, atol=1e-4)
            text = found.model.generate(**prompts(row), **options)[0, length:]
            assert torch.equal(text, texts[row, : len(text)])


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_every_decoding_step_has_the_gates_of_the_prompt(name):
    found, asked = course(name), prompts(1)
    with torch.no_grad(), found.method.predicting(found.model):
        said = found.model.generate(
            **asked, max_new_tokens=3, min_new_tokens=3, pad_token_id=0, do_sample=False,
            suppress_tokens=[IMAGE_TOKEN], return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        ids = said.sequences
        labels = ids.clone()
        labels[:, : LENGTHS[1]] = -100  # so that what was decoded is no prompt
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        whole = found.model(**given, pixel_values=asked["pixel_values"]).logits
    steps = torch.stack(said.logits, dim=1)
    torch.testing.assert_close(whole[:, -4:-1], steps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_answers_have_no_part_in_the_gates_of_training(name):
    found, batch = course(name), batch_of(1, step=2)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, PROMPT:] = 5
    found.model.train()
    with torch.no_grad():
        one, two = (found.model(**each).logits[:, -batch["labels"].shape[1] :][:, :PROMPT]
                    for each in (batch, other))  # fmt: skip
    found.model.eval()
    assert_same(one, two)
