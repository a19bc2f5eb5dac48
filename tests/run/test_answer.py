"""Greedy answers: the same whatever the batch, and the same as transformers' own generate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.run import asking
from undrift.data.collate import Encoded, FeatureCollator, PixelCollator
from undrift.errors import DataError
from undrift.run.answer import _parts, decode, greedy
from undrift.run.session import Session, make_method

NEW = 6
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def questions(tiny):
    return [*tiny.tasks[0].test, *tiny.tasks[2].test]


@pytest.fixture
def learned(backbone):
    """The backbone with adapters that change what it says."""
    model = make_method("moelora", {"experts": 2, "rank": 2}).attach(backbone.model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "moe_lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def said(backbone, model, examples, batch_size):
    return asking.said(backbone, model, examples, batch_size, NEW)


def prepare(backbone, examples):
    backbone.prepare([path for example in examples for path in example.images])


def test_same_answers_whatever_the_batch(backbone, learned, questions):
    prepare(backbone, questions)
    alone = said(backbone, learned, questions, 1)
    assert len(set(alone.values())) > 3  # a model that always says the same would prove nothing
    for size in (2, 5, len(questions)):
        assert said(backbone, learned, questions, size) == alone


def test_short_loop_equals_generate_with_padding_and_without(backbone, learned, questions):
    pixels = {size: said(backbone, learned, questions, size) for size in (1, 4)}
    prepare(backbone, questions)
    assert backbone.store is not None
    kept = said(backbone, learned, questions, 4)
    assert pixels[1] == pixels[4] == kept


def test_stops_as_soon_as_every_row_has_ended(backbone, questions):
    prepare(backbone, questions)
    collator = backbone.collator()
    batch = collator.collate(collator.encode(questions[:4], answered=False))
    full = greedy(backbone, backbone.model, batch, NEW)
    assert full.shape == (4, NEW)
    backbone.stop_ids = tuple(full[:, 1].tolist())  # every row ends at its second token, or before
    assert greedy(backbone, backbone.model, batch, NEW).shape[1] <= 2


def test_text_ends_before_the_first_stop_token(backbone):
    tokenizer = backbone.processor.tokenizer
    yes = tokenizer(" yes", add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    rows = torch.tensor([[*yes, eos, *yes], [eos, *yes, *yes]])
    assert decode(backbone, rows) == ["yes", ""]


def test_greedy_leaves_the_model_and_its_batch_alone(backbone, questions):
    prepare(backbone, questions)
    collator = backbone.collator()
    batch = collator.collate(collator.encode(questions[:3], answered=False))
    before = {key: value.clone() for key, value in batch.items()}
    first = greedy(backbone, backbone.model, batch, NEW)
    assert torch.equal(first, greedy(backbone, backbone.model, batch, NEW))
    assert all(torch.equal(before[key], batch[key]) for key in batch)


@pytest.mark.parametrize("pixels", [False, True])
def test_a_prompt_beyond_the_positions_is_named(backbone, learned, questions, pixels):
    limit = backbone.model.config.get_text_config().max_position_embeddings
    long = replace(questions[1], id="long", question="word " * limit)
    if not pixels:
        prepare(backbone, questions)
    collator = backbone.collator()
    assert isinstance(collator, PixelCollator if pixels else FeatureCollator)
    with pytest.raises(DataError, match=rf"example 'long' takes \d+ tokens.* {limit} positions"):
        asking.said(backbone, learned, [questions[0], long], 2, 4)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [([5] * 7, [3, 3, 1]), ([20, 9, 9, 9, 2, 2, 2, 2, 2], [3, 5, 1]), ([], [])],
)
def test_batches_of_short_prompts_have_more_rows(backbone, lengths, rows):
    session = Session(backbone, backbone.model, make_method("zeroshot", {}), batch_size=3)
    prompts = [Encoded(str(n), "", [0] * k, [], (), [], "") for n, k in enumerate(lengths)]
    parts = _parts(session, prompts, 4)
    most = 3 * (max(lengths, default=0) + 4)
    assert all(len(part) * (len(part[0].prompt) + 4) <= most for part in parts)
    assert [len(part) for part in parts] == rows
    assert sorted(e.id for part in parts for e in part) == [str(n) for n in range(len(lengths))]


def test_no_batch_has_more_pictures_than_as_many_prompts_with_the_most(backbone):
    session = Session(backbone, backbone.model, make_method("zeroshot", {}), batch_size=2)
    shown = [(Path("a"), Path("b"))] * 3 + [(Path("a"),)] * 7
    prompts = [
        Encoded(str(n), "", [0] * (9 if n == 0 else 1), [], each, [], "")
        for n, each in enumerate(shown)
    ]
    assert [[len(e.images) for e in part] for part in _parts(session, prompts)] == [
        [2, 2], [2, 1, 1], [1] * 4, [1],
    ]  # fmt: skip
