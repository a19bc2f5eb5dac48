"""A stream without boundaries: who is used how often, when, and what decides it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from undrift.data.stream import STREAM, stream_of
from undrift.data.types import Example, Task
from undrift.errors import DataError


def task(name: str, train: int) -> Task:
    made = {split: tuple(Example(f"{split}-{i}", "which?", ("it",)) for i in range(count))
            for split, count in (("train", train), ("test", 3))}  # fmt: skip
    return Task(name, made["train"], (), made["test"], "exact", 4)


THREE = [task("a", 40), task("b", 60), task("c", 80)]


@pytest.mark.parametrize("passes", [0.5, 1, 2.5])
def test_every_example_is_used_as_often_as_it_is_meant_to_and_no_question_of_a_test(passes):
    uses = [round(passes * len(each.train)) for each in THREE]
    made = stream_of(THREE, uses, seed=3, blend=1.0)
    assert made.task.name == STREAM and len(made.task.train) == 180
    assert all("/train-" in each.id for each in made.task.train)
    often = Counter(made.order)
    assert max(often.values()) - (0 if passes == 0.5 else min(often.values())) <= 1
    assert max(often.values()) == -(-passes // 1)
    owned = Counter(made.owners[place] for place in made.order)
    assert [owned[number] for number in (1, 2, 3)] == uses


def test_tasks_fade_in_blend_and_return_once():
    made = stream_of(THREE, [400, 400, 400], seed=0, blend=1.0)
    shares = [made.shares(start, start + 50) for start in range(0, 1200, 50)]
    for number in range(3):
        there = [each[number] > 0.5 for each in shares]
        assert sum(now and not before for before, now in pairwise([False, *there])) == 2
    mixed = [sum(share > 0.05 for share in each) for each in shares]
    assert sum(count == 2 for count in mixed) > len(mixed) / 2 and max(mixed) <= 3
    assert made.seen(50) == [1] and made.seen(600) == [1, 2, 3]
    assert all(sum(each) == pytest.approx(1) for each in shares)


def test_without_blending_tasks_change_sharply():
    made = stream_of(THREE, [10, 10, 10], seed=0, blend=0.0)
    owners = [made.owners[place] for place in made.order]
    assert owners[:15] == [1] * 5 + [2] * 5 + [3] * 5
    assert sum(one != other for one, other in pairwise(owners)) == 5  # six visits


@pytest.mark.parametrize("seed", range(8))
def test_the_last_task_does_not_return_at_once(seed):
    made = stream_of(THREE, [10, 10, 10], seed=seed, blend=0.0)
    assert made.owners[made.order[15]] != 3


def test_seed_and_settings_alone_decide_the_order():
    uses = [40, 60, 80]
    one, again = (stream_of(THREE, uses, seed=1, blend=1.0) for _ in range(2))
    assert one == again
    others = [stream_of(THREE, uses, seed=2, blend=1.0), stream_of(THREE, uses, seed=1, blend=2.0)]
    assert all(one.order != other.order for other in others)


def test_an_empty_stream_is_refused():
    with pytest.raises(DataError, match="zero examples"):
        stream_of(THREE, [0, 0, 0], seed=0, blend=1.0)
