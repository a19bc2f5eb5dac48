"""Many examples: what one costs in memory, and when it is encoded."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import replace

import pytest

from undrift.data.benchmarks.folder import OwnTask
from undrift.data.types import Example
from undrift.errors import DataError
from undrift.run import batches
from undrift.run.backbone import Backbone
from undrift.run.batches import Batches, Dealer, Encodings, share_of
from undrift.run.input_changes import digests, splits_of
from undrift.run.learned_tasks import examples_digest

ROWS, PICTURES = 2000, 400


@pytest.fixture
def collator(backbone, tiny):
    backbone.prepare([p for task in tiny.tasks for e in task.train for p in e.images])
    return backbone.collator()


@pytest.fixture
def examples(tiny) -> list[Example]:
    """Some with one picture, one without, with answers of several lengths."""
    made = [example for task in tiny.tasks for example in task.train]
    return [*made, replace(made[0], images=(), answers=("a long answer to a short question",))]


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(batches, "KEPT", 0)


def test_a_row_and_its_digests_take_less_than_a_kilobyte(tmp_path):
    for number in range(PICTURES):
        (tmp_path / f"COCO_train2014_{number:012}.jpg").touch()
    with (tmp_path / "train.jsonl").open("w") as file:
        for number in range(ROWS):
            row = {"question_id": 458752000 + number, "answer": f"{number % 100} birds"}
            row["image"] = f"COCO_train2014_{number % PICTURES:012}.jpg"
            text = f"How many birds sit on the roof of the house number {number} in this picture?"
            row["text"] = f"{text}\nAnswer the question using a single word or phrase."
            file.write(json.dumps(row) + "\n")
    own = OwnTask("t", tmp_path / "train.jsonl", tmp_path)
    before = own.source().read("train", None)  # what is compiled or interned once
    gc.collect()
    tracemalloc.start()
    task = own.source().task()
    examples_digest(task.train)
    _, peak = tracemalloc.get_traced_memory()
    noted, _ = digests(splits_of([task]))  # reads files into buffers of one size
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(before) == sum(map(len, noted["rows"].values())) == ROWS
    assert peak / ROWS < 850
    assert kept / ROWS < 950


def dealt(examples, collator, rank: int, epoch: int) -> list:
    share = share_of(12, 4, 2)
    dealer = Dealer(len(examples), share, rank, 2, seed=5)
    made = Batches(Encodings(examples, collator), dealer, collate_fn=list)
    made.set_epoch(epoch)
    return list(made)


def test_a_micro_batch_knows_its_mean_share_of_the_step(examples, collator):
    first = [dealt(examples, collator, rank, 0)[:2] for rank in range(2)]  # of 12, in 4 pieces
    step = [each for rank in first for piece in rank for each in piece]
    labels = sum(len(each.example.answer) for each in step)
    assert len(step) == 12
    assert {(each.labels, each.examples) for each in step} == {(labels / 4, 3.0)}


def test_many_examples_are_dealt_as_few_are(examples, collator, monkeypatch):
    where = [(rank, epoch) for rank in (0, 1) for epoch in (0, 1)]
    few = [dealt(examples, collator, *each) for each in where]
    monkeypatch.setattr(batches, "KEPT", 0)
    assert [dealt(examples, collator, *each) for each in where] == few
    assert any(example.labels == 0 for each in few for batch in each for example in batch)
    assert len({example.labels for batch in few[0] for example in batch}) > 2


def test_many_examples_are_encoded_when_their_step_comes(examples, collator, many, monkeypatch):
    encoded, encode = [], collator.encode
    monkeypatch.setattr(
        collator, "encode", lambda some, **asked: encoded.extend(some) or encode(some, **asked)
    )
    made = Encodings(examples, collator)
    assert encoded == [examples[0], examples[-1]]  # the first of each kind
    encoded.clear()
    steps = iter(Batches(made, Dealer(len(examples), share_of(8, 4, 1), 0, 1, 0), collate_fn=list))
    first, second = next(steps), next(steps)
    assert len(encoded) == 8
    assert {e.id for e in encoded} == {one.example.id for one in (*first, *second)}


def test_a_refused_text_among_many_is_named_before_the_first_step(examples, collator, many):
    examples[7] = replace(examples[7], id="odd", question="what is <image> about?")
    with pytest.raises(DataError, match="'odd' holds '<image>'"):
        Encodings(examples, collator)


def test_what_the_template_refuses_among_many_is_named_with_its_step(examples, backbone, many):
    refusing = "{% if 'roof' in messages[0].content[-1].text %}{{ raise_exception('no roofs') }}"
    backbone.processor.chat_template = f"{refusing}{{% endif %}}{backbone.processor.chat_template}"
    made = backbone.collator()
    examples[7] = replace(examples[7], id="odd", question="which roof?")
    steps = Batches(
        Encodings(examples, made),
        Dealer(len(examples), share_of(8, 8, 1), 0, 1, 0),
        collate_fn=list,
    )
    with pytest.raises(DataError, match="refuses example 'odd': no roofs"):
        list(steps)
    examples[7] = replace(examples[7], question="which wall?")
    assert len(list(steps)) == 5


def test_a_text_only_model_refuses_many_pictures_before_the_first_step(examples, folder_of, many):
    made = Backbone.load(str(folder_of("llama"))).collator()
    with pytest.raises(DataError, match="reads text only"):
        Encodings(examples, made)
