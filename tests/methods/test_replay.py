"""replay: what is remembered, how much of it is trained on, and what public code does instead."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.methods.training import SMALL, attached, learn
from undrift.data.types import Example
from undrift.errors import ConfigError, RunDirError
from undrift.methods.replay import Replay, ReplayMemory, first_come, quotas, reservoir
from undrift.rundir import read_json

STATE_FILE = "replay.json"
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def task(number: int, size: int) -> list[Example]:
    return [
        Example(f"{number}-{i}", f"what is {i}?", ("it", "that"), (Path(f"/{number}/{i}.png"),))
        for i in range(size)
    ]


def learned(method: Replay, *sizes: int) -> Replay:
    for size in sizes:
        method.examples(task(method.task_index, size), method.task_index)
        method.task_end(None)
        method.task_index += 1
    return method


def test_every_item_has_the_same_chance_in_a_reservoir():
    drawn = Counter(i for seed in range(2000) for i in reservoir(range(10), 3, Random(seed)))
    assert sum(drawn.values()) == 6000
    assert all(abs(drawn[i] - 600) < 100 for i in range(10))  # five standard deviations
    assert sorted(reservoir(iter(range(2)), 3, Random(0))) == [0, 1]


def test_public_code_remembers_the_beginning_of_the_epoch():
    drawn = [i for seed in range(200) for i in first_come(range(1000), 10, Random(seed))]
    assert max(drawn) < 40
    assert max(reservoir(range(1000), 10, Random(0))) > 500


def test_quotas_are_equal_and_never_grow():
    assert quotas(10, 3) == [4, 3, 3]
    for capacity in (5, 10, 17):
        for tasks in range(1, 9):
            before, after = quotas(capacity, tasks), quotas(capacity, tasks + 1)
            assert sum(before) == capacity and max(before) - min(before) <= 1
            assert all(b >= a for b, a in zip(before, after, strict=False))


def test_old_tasks_are_thinned_to_equal_quotas_without_knowing_how_many_come():
    method = Replay(memory=9)
    for number in (1, 2, 3, 4):
        kept = [list(map(repr, own)) for own in method.memory.tasks]
        learned(method, 100)
        assert [len(own) for own in method.memory.tasks] == quotas(9, number)
        for old, now in zip(kept, method.memory.tasks, strict=False):
            assert set(map(repr, now)) <= set(old)
    assert [e.id.split("-")[0] for own in method.memory.tasks for e in own] == [*"111223344"]


def test_a_share_of_what_was_seen_is_remembered_and_of_a_small_task_one_example():
    assert [len(own) for own in learned(Replay(), 400, 200).memory.tasks] == [3, 3]
    assert [len(own) for own in learned(Replay(), 5, 5, 5).memory.tasks] == [1, 1, 1]


def test_a_tenth_of_what_is_trained_on_comes_from_the_memory():
    method = learned(Replay(memory=10), 300)
    own = task(2, 900)
    given = method.examples(own, 2)
    past = [example for example in given if example not in own]
    assert given[:900] == own and len(past) == 100
    assert set(Counter(e.id for e in past).values()) == {10}
    assert given == method.examples(own, 2)
    assert Replay().examples(own, 1) is own


def test_the_rest_of_a_round_is_drawn_at_random_from_every_task():
    memory = learned(Replay(memory=20), 100, 100).memory
    places = {example.id: n for n, example in enumerate(e for own in memory.tasks for e in own)}
    drawn = Counter(places[e.id] for seed in range(2000) for e in memory.draw(4, Random(seed)))
    assert sum(drawn.values()) == 8000 and len(places) == 20
    assert all(abs(drawn[place] - 400) < 100 for place in range(20))  # five standard deviations
    more = Counter(places[e.id] for e in memory.draw(44, Random(0)))
    assert set(more.values()) == {2, 3} and sum(more.values()) == 44


def test_public_code_appends_its_memory_once():
    method = learned(Replay("public", tasks=4), 300, 300)
    assert [len(own) for own in method.memory.tasks] == [60, 60]
    own = task(3, 5000)
    assert len(method.examples(own, 3)) == 5000 + 120
    assert len(learned(Replay(memory=120), 300, 300).examples(own, 3)) == round(5000 / 0.9)


def test_the_memory_is_on_disk_as_text_and_paths(tmp_path):
    method = learned(Replay(**SMALL, memory=4), 30, 30)
    model = attached(method)
    method.save_state(model, tmp_path)
    other = Replay(**SMALL)
    other.load_state(attached(other), tmp_path)
    assert other.memory.tasks == method.memory.tasks and other.memory.seen == 60
    row = read_json(tmp_path / STATE_FILE)["tasks"][0][0]
    assert set(row) == {"id", "question", "answers", "images"}
    assert row["images"] == [str(method.memory.tasks[0][0].images[0])]
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(RunDirError, match=r"replay\.json is missing"):
        other.load_state(attached(other), tmp_path)
    foreign = ReplayMemory()
    foreign.add([{"input_ids": [1]}], 1)
    with pytest.raises(ConfigError, match="a dict cannot be written"):
        foreign.values()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"method\.examples\(train, 1\)"):
        Replay().task_start(None, 1, 10)
    with pytest.raises(ConfigError, match="ratio is 1"):
        Replay(ratio=1.0)
    with pytest.raises(ConfigError, match="memory is 0"):
        Replay(memory=0)
    with pytest.raises(ConfigError, match="divides its memory in advance"):
        Replay(sampling="first", memory=5)


def test_every_task_has_to_be_asked_for():
    method = Replay(**SMALL)
    model = attached(method)
    learn(method, model, steps=1)
    assert len(method.memory) == 1
    with pytest.raises(ConfigError, match=r"method\.examples\(train, 2\)"):
        method.task_start(model, 2, 10)
