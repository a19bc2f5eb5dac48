from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from undrift.data import Benchmark, Example, Task
from undrift.errors import DataError, UnknownName


def example(identity="1", **fields):
    return Example(identity, "Which digit?", ("Seven",), **fields)


def task(name="digits", **fields):
    fields = {"train": (example(),), "validation": (), "test": (example(),), **fields}
    return Task(name, scorer="exact", max_new_tokens=4, **fields)


def benchmark(*names, orders=None):
    tasks = tuple(task(name) for name in names)
    return Benchmark("pocket", "1", tasks, "CC0", orders or {}, "abc")


def test_all_are_frozen():
    for thing, field in ((example(), "question"), (task(), "name"), (benchmark("a"), "tasks")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, "other")
    with pytest.raises(TypeError):
        example().extra["new"] = 1


def test_an_example_can_be_a_key():
    assert {example(extra={"box": [1]}): 1}[example(extra={"box": [1]})] == 1


@pytest.mark.parametrize("answers", [(), ("",), ("Seven", "  ")])
def test_an_answer_is_needed(answers):
    with pytest.raises(DataError, match="example '1' has no answer"):
        Example("1", "Which digit?", answers)


@pytest.mark.parametrize("split", ["train", "test"])
def test_zero_examples(split):
    with pytest.raises(DataError, match=f"task 'digits' has zero {split} examples"):
        task(**{split: ()})


def test_ids_are_unique_within_a_split():
    with pytest.raises(DataError, match="two test examples with the id '1'"):
        task(test=(example(), example()))
    task(train=(example(),), test=(example(),))


def test_the_scorer_must_exist_and_an_answer_must_fit():
    with pytest.raises(UnknownName, match="did you mean 'exact'"):
        Task("digits", (example(),), (), (example(),), "exakt", 4)
    with pytest.raises(DataError, match="0 tokens"):
        Task("digits", (example(),), (), (example(),), "exact", 0)


def test_orders():
    pocket = benchmark("a", "b", "c", orders={"reversed": ("c", "b", "a")})
    names = [[t.name for t in pocket.in_order(o)] for o in ("default", "reversed", ["b", "a"])]
    assert names == [["a", "b", "c"], ["c", "b", "a"], ["b", "a"]]
    with pytest.raises(UnknownName, match="unknown order 'reverse'; did you mean 'reversed'"):
        pocket.in_order("reverse")
    with pytest.raises(UnknownName, match="unknown task 'd'"):
        pocket.in_order(["d"])


def test_a_benchmark_is_consistent():
    with pytest.raises(DataError, match="two tasks of one name"):
        benchmark("a", "a")
    with pytest.raises(UnknownName, match="unknown task 'x'"):
        benchmark("a", orders={"second": ("x",)})
