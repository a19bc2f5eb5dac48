from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.data import Example
from undrift.data.subset import place, subset
from undrift.errors import ConfigError


def examples(count):
    return [Example(str(n), f"Question {n}?", ("yes",)) for n in range(count)]


def ids(chosen):
    return [example.id for example in chosen]


def test_the_same_part_on_every_machine():
    """Golden: these ids must never change, or numbers of two machines cannot be compared."""
    assert ids(subset(examples(100), limit=5)) == ["3", "37", "52", "62", "74"]
    assert ids(subset(examples(100), limit=5, seed=1)) != ids(subset(examples(100), limit=5))
    assert place("17") == pytest.approx(0.7212069090098404, abs=1e-15)


def test_not_by_position():
    shuffled = Random(0).sample(examples(200), 200)
    chosen = subset(shuffled, limit=20)
    assert set(ids(chosen)) == set(ids(subset(examples(200), limit=20)))
    assert ids(chosen) == [e.id for e in shuffled if e in chosen], "the order given is kept"
    assert ids(subset(examples(200), limit=20)) != [str(n) for n in range(20)]


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 3))
def test_a_smaller_part_lies_inside_a_larger_one(count, limit, seed):
    some = subset(examples(count), limit=limit, seed=seed)
    assert len(some) == min(count, limit)
    assert set(some) <= set(subset(examples(count), limit=limit + 7, seed=seed))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 50),
        ({"fraction": 1.0}, 50),
        ({"fraction": 0.1}, 5),
        ({"fraction": 0.001}, 1),
        ({"limit": 1000}, 50),
        ({"limit": 3, "fraction": 0.5}, 3),
        ({"limit": 30, "fraction": 0.5}, 25),
    ],
)
def test_how_many(options, count):
    assert len(subset(examples(50), **options)) == count


def test_places_are_spread_evenly():
    places = [place(str(n)) for n in range(4000)]
    assert all(0 <= one < 1 for one in places)
    for tenth in range(10):
        assert 320 < sum(tenth <= 10 * one < tenth + 1 for one in places) < 480


@pytest.mark.parametrize("options", [{"limit": 0}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is .*expected"):
        subset(examples(3), **options)
