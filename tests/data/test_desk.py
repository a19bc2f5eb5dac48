"""The desk: leak rules, sizes, balance, and that nothing of it is in general ability."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter

import pytest

from undrift.data.benchmarks import desk
from undrift.data.desk import general
from undrift.data.desk.tasks import SIZES, SYSTEM
from undrift.errors import MissingExtra

loaded = functools.cache(lambda: desk.benchmark())
pools = functools.cache(lambda name: desk.TASKS[name].pools())
FORMS = {
    "languages": r"[A-Z][a-z]+",
    "orders": r"[a-z]+( [a-z]+)*",
    "goods": "[ABC]",
    "atoms": r"\d",
    "births": "Yes|No",
}


@pytest.mark.parametrize("name", desk.TASKS)
def test_leak_rule_holds_between_all_splits(name):
    groups = {
        s: {desk.TASKS[name].group(item) for item in items} for s, items in pools(name).items()
    }
    assert set(groups) == {"train", "validation", "test"}
    for one, other in itertools.combinations(groups, 2):
        assert groups[one] and groups[other]
        assert not groups[one] & groups[other], (one, other)


@pytest.mark.parametrize("name", desk.TASKS)
def test_every_example_is_of_its_own_split_and_asked_once(name):
    (task,) = loaded().in_order((name,))
    asked = {split: {e.question for e in getattr(task, split)} for split in SIZES}
    assert {split: len(questions) for split, questions in asked.items()} == SIZES
    for split, questions in asked.items():
        assert questions <= {desk.TASKS[name].ask(item)[0] for item in pools(name)[split]}
    for one, other in itertools.combinations(asked.values(), 2):
        assert not one & other


@pytest.mark.parametrize("name", desk.TASKS)
def test_answers_have_the_form_of_their_task(name):
    (task,) = loaded().in_order((name,))
    answers = [e.answers[0] for split in SIZES for e in getattr(task, split)]
    if name == "records":
        assert all(list(json.loads(answer)) == ["minutes"] for answer in answers)
    else:
        assert all(re.fullmatch(FORMS[name], answer) for answer in answers)
    assert max(Counter(e.answers[0] for e in task.test).values()) <= 60  # of 100: chance is far


def test_it_is_the_same_each_time_and_its_orders_hold_all_tasks():
    assert desk.benchmark().fingerprint == loaded().fingerprint
    assert all(sorted(order) == sorted(desk.TASKS) for order in desk.ORDERS.values())
    assert {e.system for task in loaded().tasks for e in task.test} == {SYSTEM}


def test_general_ability_is_no_part_of_the_tasks():
    texts, prompts = general.texts(), general.prompts()
    assert len(prompts) == len({p.question for p in prompts}) == 50
    assert {len(pieces) for pieces in texts.values()} == {general.PIECES}
    assert all(1000 <= len(piece) < 1500 for pieces in texts.values() for piece in pieces)
    taught = [e.question for t in loaded().tasks for split in SIZES for e in getattr(t, split)]
    assert not {p.question for p in prompts} & set(taught)
    whole = "\n".join(piece for pieces in texts.values() for piece in pieces)
    assert not any(question in whole for question in taught)


def test_text_is_cut_at_the_ends_of_lines():
    text = "a line of twenty letters\n" * 500
    made = general.pieces(text)
    assert len(made) == general.PIECES and text.startswith("".join(made))
    assert all(piece.endswith("\n") for piece in made)


def test_a_missing_package_names_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(desk, "find_spec", lambda name: None if name == "rdkit" else name)
    with pytest.raises(MissingExtra, match=r"needs rdkit.*pip install 'undrift\[desk\]'"):
        desk.benchmark()
