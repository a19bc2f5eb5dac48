"""The pocket: its leak rules, its determinism, and that nothing is clipped."""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.sweeps import mostly_slow
from undrift.data.benchmarks import pocket
from undrift.data.benchmarks.pocket import FRESH, ORDERS, REPORTED, TASKS, TUNED, draw_split
from undrift.data.pocket import raw_data
from undrift.data.pocket.general import (
    GENERAL,
    PROMPTS,
    QUESTIONS,
    general_questions,
    half,
    items_of_half,
)
from undrift.data.pocket.questions import LOWER, TITLE, UPPER, ask
from undrift.data.pocket.shared_questions import COUNTED, LETTERED, shared_question
from undrift.data.pocket.tasks import LETTER, SPLITS, WORD, canvas, text
from undrift.errors import MissingExtra, UnknownName

pools = functools.cache(lambda name: TASKS[name].pools())  # some take seconds
DRAWN = {
    "report-1": "fogrbidimocowosapoch",
    "report-2": "sacogrpodichfomowobi",
    "report-3": "mocodichbiposawogrfo",
    "report-4": "safochwobipocomodigr",
    "report-5": "foposachdibicomogrwo",
    "report-6": "wodichfosabigrcopomo",
    "report-7": "pocomofodigrbisachwo",
    "report-8": "pogrchcomosawofobidi",
    "tune-1": "focochbigrwosamopodi",
    "tune-2": "sacofodipobichgrmowo",
    "fresh-1": "cogrdibimosachpofowo",
    "fresh-2": "sagrcobidimowofochpo",
    "fresh-3": "sacochpowofodimogrbi",
    "fresh-4": "copofochwobimosadigr",
    "fresh-5": "fopobimogrdicowosach",
    "fresh-6": "fowocochgrpodimobisa",
    "fresh-7": "woposadicofochbimogr",
    "fresh-8": "safobipocodimochgrwo",
}


@pytest.mark.parametrize("name", mostly_slow(TASKS, ["charts", "digits", "biopsy"]))
def test_leak_rule_holds_between_all_splits(name: str) -> None:
    task = TASKS[name]
    groups: dict[str, set[object]] = {}
    for split, items in pools(name).items():
        found = {task.group(item) for item in items}
        # A set (four countries, four icons) must not even share a member.
        groups[split] = {m for g in found for m in (g if isinstance(g, frozenset) else [g])}
    assert set(groups) == set(SPLITS)
    for one, other in itertools.combinations(SPLITS, 2):
        assert groups[one] and groups[other]
        assert not groups[one] & groups[other], (one, other)


@pytest.mark.parametrize("name", mostly_slow(TASKS, ["charts", "digits", "biopsy"]))
def test_nothing_touches_the_edge_of_a_picture(name: str) -> None:
    task = TASKS[name]
    items = list(pools(name)["test"])
    Random(0).shuffle(items)
    for i, item in enumerate(items[:40]):
        pixels = np.asarray(task.draw(item, Random(i)))
        assert pixels.shape == (96, 96, 3)
        if name == "satellite":
            continue  # a photograph fills its frame
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        if name == "posters":
            edge = np.concatenate([pixels[0], pixels[-1]])  # its band crosses from side to side
        assert (edge == edge[0]).all(), f"{name} item {i} is clipped"


def test_text_that_does_not_fit_is_refused_rather_than_clipped() -> None:
    _, pen = canvas(Random(0))
    with pytest.raises(ValueError, match="does not fit"):
        text(pen, (0, 0, 20, 10), "a very long line of text", "DejaVuSans", (0, 0, 0), 12)


def test_drawing_twice_gives_the_same_examples_and_pixels(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_split(tmp_path / folder, "biopsy", "validation")
    one, two = (
        json.loads((tmp_path / f / "biopsy" / "validation.json").read_text())
        for f in ("one", "two")
    )
    assert one == two
    assert len({row["pixels"] for row in one}) == len(one) == 40


@pytest.mark.parametrize("name", mostly_slow(TASKS, ["charts", "digits", "biopsy"]))
def test_answers_are_short_and_questions_do_not_give_them_away(name: str) -> None:
    task = TASKS[name]
    items = list(pools(name)["train"])[:200]
    answers = {answer for item in items for _, answer in task.ask(item)}
    assert len(answers) >= 2
    assert all(0 < len(answer) <= 24 for answer in answers)


def test_sizes_differ_five_to_ten_times() -> None:
    trained = [task.sizes["train"] for task in TASKS.values()]
    assert 5 <= max(trained) / min(trained) <= 10


def test_one_format_line_serves_answers_of_different_formats() -> None:
    shared = [task for task in TASKS.values() if task.form == WORD]
    firsts = {next(iter(t.ask(next(iter(pools(t.name)["test"])))))[1][0] for t in shared}
    assert any(c.islower() for c in firsts)
    assert any(c.isupper() for c in firsts)
    assert any(c.isdigit() for c in firsts)


def test_orders_are_permutations_of_all_tasks() -> None:
    for order in ORDERS.values():
        assert sorted(order) == sorted(TASKS)
    assert len({tuple(TASKS), *ORDERS.values()}) == len(ORDERS) + 1 == 21
    assert {*REPORTED, *TUNED, *FRESH, "second", "reversed"} == {*ORDERS}


def test_orders_drawn_for_reporting_and_tuning_stay_as_they_were_committed() -> None:
    drawn = (*REPORTED, *TUNED, *FRESH)
    letters = {name: "".join(task[:2] for task in ORDERS[name]) for name in drawn}
    assert letters == DRAWN


def test_pretraining_never_asks_a_question_of_the_benchmark() -> None:
    for name, task in TASKS.items():
        items, rng = list(pools(name)["pretrain"])[:20], Random(0)
        asked = {q for item in items for q, _ in task.ask(item)}
        for item in items:
            for _ in range(30):
                question, answer = ask(name, item, dict(task.attributes(item)), rng)
                assert question.split("\n")[0] not in asked
                assert answer


def test_a_missing_package_names_the_command_that_mends_it() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'undrift\[pocket\]'"):
        raw_data.package("no_such_package_of_the_pocket")


@pytest.mark.foreign("1.5")
def test_the_connection_to_the_films_is_closed(monkeypatch):
    connect, opened = sqlite3.connect, []

    def noted(*args, **kwargs):
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    assert raw_data.films.__wrapped__()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


@pytest.mark.parametrize("name", mostly_slow(TASKS, ["biopsy"]))
def test_general_questions_share_nothing_with_what_is_trained_or_remembered(name, tmp_path):
    task = TASKS[name]
    kept = {}
    for split in (*SPLITS[1:], GENERAL, PROMPTS):
        draw_split(tmp_path, name, split)
        kept[split] = json.loads((tmp_path / name / f"{split}.json").read_text())
    general, prompts = kept.pop(GENERAL), kept.pop(PROMPTS)
    assert len(general) == len(prompts) == QUESTIONS
    for key in ("id", "pixels"):  # their questions are pretraining's, as the general ones are
        asked = {row[key] for row in prompts}
        assert not asked & {row[key] for rows in (general, *kept.values()) for row in rows}, key
    for key in ("id", "pixels", "question"):
        asked = {row[key] for row in general}
        assert not asked & {row[key] for rows in kept.values() for row in rows}, key
    halves = {half: {task.group(i) for i in items_of_half(task, half)} for half in "AB"}
    assert halves["A"] and halves["B"] and not halves["A"] & halves["B"]
    assert halves["A"] | halves["B"] == {task.group(item) for item in pools(name)["pretrain"]}


def test_an_answer_is_right_in_each_form_that_its_line_leaves_open():
    for _, question, answers in general_questions(TASKS["biopsy"]):
        line = question.split("\n")[1]
        assert (len(answers) == 1) == (line in (LOWER, UPPER, TITLE))
        assert len(set(answers)) == len(answers) <= 4


def test_halves_do_not_depend_on_how_a_set_is_ordered():
    one, other = frozenset("dcba"), frozenset(["b", "a", "d", "c"])
    assert half("charts", one) == half("charts", other)
    assert {half("digits", number) for number in range(9)} == {"A", "B"}


def test_shared_questions_keep_pictures_and_answers_and_hide_the_task():
    prompts: dict[str, set[str]] = {}
    for name, task in TASKS.items():
        items = list(pools(name)["test"])[:40]
        for number, item in enumerate(items):
            for k, (question, _) in enumerate(task.ask(item)):
                asked = shared_question(name, f"{name}-test-{number:04}-{k}", question)
                assert asked == shared_question(name, f"{name}-test-{number:04}-{k}", question)
                prompts.setdefault(asked, set()).add(name)
        own = [shared_question(name, "x", question) for question, _ in task.ask(items[0])]
        assert len(set(own)) == len(task.ask(items[0])), "one prompt for several values"
    families = {frozenset(tasks) for tasks in prompts.values()}
    alike = {"words", "posters", "forms", "counties", "grounding"}
    assert families == {frozenset(alike), frozenset(COUNTED), frozenset(LETTERED)}
    assert {prompt.split("\n")[1] for prompt in prompts} == {WORD, LETTER}


def test_pretraining_never_asks_a_shared_question():
    asked = {shared_question(name, str(i), "").split("\n")[0] for name in TASKS for i in range(99)}
    assert len(asked) == 11
    for name in ("digits", "biopsy", "charts"):
        task, rng = TASKS[name], Random(0)
        item = next(iter(pools(name)["pretrain"]))
        for _ in range(99):
            question, _ = ask(name, item, dict(task.attributes(item)), rng)
            assert question.split("\n")[0] not in asked


def test_other_questions_than_those_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'shared'"):
        pocket.benchmark(tmp_path, progress=False, questions="shard")
