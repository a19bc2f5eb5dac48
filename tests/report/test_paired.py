"""Runs compared question by question, and the noise of questions, seeds and orders."""

from __future__ import annotations

import math
from random import Random

import pytest

from undrift.report import grouped, load
from undrift.report.comparison import PAIRED, margin_section, paired_section, sections
from undrift.report.paired import (
    NORMAL,
    POWER,
    Answers,
    Pairing,
    difference,
    paired_line,
    spread_of,
)
from undrift.rundir import RunDir, write_json


def answers(**tasks):
    """Scores by task: a list, each about a picture of its own; or (score, picture)."""
    strict, picture = {}, {}
    for task, scores in tasks.items():
        for number, score in enumerate(scores):
            key = (task, str(number))
            strict[key], picture[key] = score if isinstance(score, tuple) else (score, key)
    return Answers(strict, picture)


def test_without_clusters_it_is_the_paired_test_of_the_textbook():
    found = difference([(answers(a=[1, 1, 1, 0, 1]), answers(a=[1, 0, 0, 0, 1]))])
    # differences 0, 100, 100, 0, 0: mean 40, s^2 = 3000
    assert found.mean == pytest.approx(40.0) and (found.questions, found.pictures) == (5, 5)
    assert found.error == pytest.approx(math.sqrt(3000 / 5))
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * math.sqrt(600))


def test_tasks_weigh_the_same_whatever_their_size():
    ours, theirs = answers(a=[1] * 6, b=[0, 1]), answers(a=[0] * 6, b=[0, 1])
    found = difference([(ours, theirs)])
    assert found.mean == pytest.approx(50.0) and found.error == 0.0


def test_questions_about_one_picture_are_no_questions_of_their_own():
    alone = [(1, 0), (1, 1), (0, 2), (0, 3)]
    doubled = [each for each in alone for _ in (0, 1)]
    zero = [(0, p) for _, p in alone], [(0, p) for _, p in doubled]
    one = difference([(answers(a=alone), answers(a=zero[0]))])
    two = difference([(answers(a=doubled), answers(a=zero[1]))])
    assert two.error == pytest.approx(one.error) and two.pictures == one.pictures == 4
    assert two.questions == 8
    blind = difference([(answers(a=[s for s, _ in doubled]), answers(a=[0] * 8))])
    assert blind.error < 0.7 * two.error


def test_only_what_both_were_asked_is_compared():
    found = difference([(answers(a=[1, 1, 1], c=[0]), answers(a=[0, 0], b=[1]))])
    assert (found.mean, found.questions) == (100.0, 2)
    assert difference([(answers(a=[1]), answers(b=[1]))]) is None


def test_a_difference_as_large_as_said_is_found_in_four_of_five_tests():
    draw, found, said = Random(3), 0, 0.0
    for _ in range(600):
        theirs = [float(draw.random() < 0.5) for _ in range(110)]
        ours = [t if draw.random() < 0.7 else float(draw.random() < 0.5 + 1 / 3) for t in theirs]
        one = difference([(answers(a=ours), answers(a=theirs))])
        found += abs(one.mean) > one.noise
        said += one.detectable / 600
    # the true difference is 30 % * 33.3 = 10 points
    assert said == pytest.approx(10.0, abs=1.5)
    assert found / 600 == pytest.approx(0.8, abs=0.12)


def test_orders_and_seeds_are_separate_sources():
    draw, inside = Random(5), 0
    for _ in range(400):
        by_order = [draw.gauss(0, 3) for _ in range(8)]
        by_seed = [draw.gauss(0, 2) for _ in range(6)]
        cells = {
            (str(o), s): by_order[o] + by_seed[s] + draw.gauss(0, 1)
            for o in range(8)
            for s in range(6)
        }
        found = spread_of(cells)
        inside += abs(found.mean) < 2.1 * found.error  # the t of about 12 degrees: 2.18
    assert inside / 400 == pytest.approx(0.94, abs=0.03)
    # as 48 cells of their own the interval would be far too narrow
    values = list(cells.values())
    mean = sum(values) / 48
    naive = math.sqrt(sum((v - mean) ** 2 for v in values) / 47 / 48)
    assert found.error > 1.5 * naive


def test_seeds_that_lack_an_order():
    cells = {("x", 0): 1.0, ("y", 0): 3.0, ("x", 1): 9.0}
    found = spread_of(cells)
    assert (found.mean, found.orders, found.seeds) == (pytest.approx(13 / 3), 2, 1)
    assert found.error == pytest.approx(1.0)  # of 1 and 3
    none = spread_of({("x", 0): 1.0, ("y", 1): 3.0})
    assert (none.seeds, none.error) == (1, pytest.approx(1.0))
    assert spread_of({("x", 0): 1.0}).error is None


def test_of_one_order_or_one_seed_it_is_the_error_of_a_mean():
    for cells in (
        {("x", s): float(s) for s in range(3)},
        {(o, 0): float("xyz".find(o)) for o in "xyz"},
    ):
        found = spread_of(cells)
        assert (found.mean, found.error, found.freedom) == (1.0, pytest.approx(1 / 3**0.5), 2)


def test_a_line_holds_every_cell_and_all_three_sources():
    base = answers(a=[0, 0, 1, 1])
    cells = {
        (order, seed): (answers(a=[1, int(seed), 1, int(order == "x")]), base)
        for order in "xy"
        for seed in (0, 1)
    }
    line = paired_line(cells)
    assert [c["difference"] for c in line["cells"]] == [25.0, 50.0, 0.0, 25.0]
    assert line["difference"] == 25.0
    # MS of orders 625, of seeds 625, of the rest 0
    assert line["error_seeds_orders"] == pytest.approx(math.sqrt(1250 / 4), abs=1e-3)
    both = math.hypot(line["error_questions"], line["error_seeds_orders"])
    assert line["detectable"] == pytest.approx((NORMAL + POWER) * both, abs=1e-3)


HOLDS = [[90.0], [80.0, 90.0]]


@pytest.fixture
def two(write_run):
    """Two runs of each of two seeds; every second question of one is wrong in the other."""
    made = {}
    for seed in (0, 1):
        for method, scores in (("same", [(1, 1)] * 8), ("moelora", [(1, 1), (0, 1)] * 4)):
            made[method, seed] = write_run(
                f"{method}-{seed}",
                method,
                HOLDS,
                tasks=["a", "b"],
                zero_shot=[1.0, 2.0],
                scores=scores,
                seed=seed,
            )
    return made


def test_compare_and_report_show_it_seed_by_seed(two):
    runs = [load(folder) for folder in two.values()]
    found = paired_section(grouped(runs))
    assert [row[1:4] for row in found.rows] == [
        ["default", seed, found.rows[0][3]] for seed in "01"
    ]
    assert found.rows[0][3].startswith("-50.0 ± ") and found.rows[0][5] == "16 over 16"
    assert found.rows[0][6] == "above the noise" and "clustered by picture" in found.notes[0]
    assert PAIRED in [section.title for section in sections(runs)]
    assert paired_section(grouped(runs[:1])).rows == []
    assert margin_section(grouped(runs), ["last"]).rows


def test_pictures_are_those_that_the_run_was_begun_with(two):
    folder = two["same", 0]
    rows = {f"{task}, test": {str(i): ["q", f"p{i // 2}"] for i in range(8)} for task in "ab"}
    write_json(RunDir(folder).root / "data.json", {"rows": rows, "files": {}, "base": {}})
    runs = [load(folder), load(two["moelora", 0])]
    assert paired_section(grouped(runs)).rows[0][5] == "16 over 4"


def test_a_study_pairs_every_row_with_one(two):
    cells = [
        ({"label": m, "learning_rate": 0.1, "order": "default", "seed": s}, folder)
        for (m, s), folder in two.items()
    ]
    zero = ({"label": "zero", "learning_rate": None, "order": "default", "seed": 0}, cells[1][1])
    lines = Pairing()([*cells, zero], "same")
    assert [line["label"] for line in lines] == ["moelora", "zero"]
    assert [cell["seed"] for cell in lines[0]["cells"]] == [0, 1]
    assert lines[0]["difference"] == lines[1]["difference"] == -50.0
    assert [cell["seed"] for cell in lines[1]["cells"]] == [0, 1]  # one seed stands for all
