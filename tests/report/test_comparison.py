"""Which margins the noise of the seeds hides, and who taught whom, by hand."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from undrift.errors import RunDirError
from undrift.report import grouped, load
from undrift.report.comparison import (
    ABOVE,
    BELOW,
    ONE_SEED,
    between,
    half_width,
    margin,
    pairs,
)
from undrift.report.page_content import page_content
from undrift.rundir import RunDir, write_json

from .conftest import FORGETS, HOLDS


def test_student_by_hand():
    assert half_width([10.0, 12.0]) == pytest.approx(12.706 * 1.0, abs=1e-3)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert half_width([5.0]) is None


def test_the_interval_holds_the_true_mean_nineteen_times_in_twenty():
    draw, held = random.Random(0), 0
    for _ in range(4000):
        values = [draw.gauss(50, 3) for _ in range(3)]
        width = half_width(values)
        held += width is not None and abs(fmean(values) - 50) <= width
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


def test_shared_seeds_are_paired():
    theirs = {0: 60.0, 1: 70.0, 2: 80.0}
    ours = {seed: value + 2 + 0.1 * seed for seed, value in theirs.items()}
    found = margin(ours, theirs)
    assert found.paired and found.seeds == 3
    assert found.mean == pytest.approx(2.1)
    assert found.noise == pytest.approx(4.303 * 0.1 / 3**0.5, abs=1e-3)
    assert found.verdict == ABOVE
    apart = margin({seed + 5: value for seed, value in ours.items()}, theirs)
    assert not apart.paired and apart.mean == pytest.approx(2.1)
    # the degrees of freedom, 3.9997, are rounded down
    assert apart.noise == pytest.approx(3.182 * (101 / 3 + 100 / 3) ** 0.5, rel=0.01)
    assert apart.verdict == BELOW


def test_one_seed_says_nothing_about_noise():
    for ours, theirs in (({0: 9.0}, {0: 1.0}), ({0: 9.0, 1: 9.1}, {0: 1.0}), ({3: 9.0}, {0: 1.0})):
        found = margin(ours, theirs)
        assert found.noise is None and found.verdict == ONE_SEED
    assert margin({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).verdict == BELOW


def test_equal_values_on_other_seeds_have_no_noise():
    assert margin({0: 2.0, 1: 2.0}, {2: 1.0, 3: 1.0}).noise == 0.0


@pytest.fixture
def seeds(write_run):
    """Write runs of one method, a seed each, `last` on the first task as given."""

    def make(method, values, **protocol):
        runs = []
        for seed, value in enumerate(values):
            matrix = [*HOLDS[:2], [value, *HOLDS[2][1:]]]
            name = f"{method}{protocol.get('order', '')}-s{seed}"
            runs.append(load(write_run(name, method, matrix, seed=seed, **protocol)))
        return runs

    return make


def test_runs_that_differ_in_the_seed_only_are_one_group(seeds):
    same, moelora = seeds("same", [80.0, 86.0, 83.0]), seeds("moelora", [70.0])
    found = grouped([*same, *moelora])
    assert [group.label for group in found] == ["same (3 seeds)", "moelora"]
    assert found[0].by_seed("last")[1] == same[1].metrics["last"]
    second = seeds("same", [81.0, 82.0], order="second")
    labels = [group.label for group in grouped([*same, *second])]
    assert labels == ["same (3 seeds, order default)", "same (2 seeds, order second)"]


def test_groups_that_differ_in_more_than_one_setting_are_named_by_a_folder(seeds):
    runs = [
        *seeds("same", [80.0, 86.0]),
        *seeds("same", [81.0, 82.0], order="second", profile="lite"),
    ]
    labels = [group.label for group in grouped(runs)]
    assert labels == ["same (2 seeds, same-s0 ...)", "same (2 seeds, samesecond-s0 ...)"]


def test_a_repetition_with_one_seed_is_no_group(seeds, write_run):
    again = load(write_run("again", "same", HOLDS, seed=0))
    found = grouped([*seeds("same", [80.0, 81.0]), again])
    assert [group.label for group in found] == ["same (same-s0)", "same (same-s1)", "same (again)"]


def test_groups_are_compared_in_pairs_of_the_same_tasks(seeds, write_run):
    same, other = seeds("same", [80.0, 86.0]), seeds("moelora", [50.0, 55.0])
    boxes = load(write_run("boxes", "joint", [[9.0]], tasks=["boxes"], zero_shot=[]))
    found = pairs(grouped([*other, *same, boxes]))
    assert [(a.label, b.label) for a, b in found] == [("same (2 seeds)", "moelora (2 seeds)")]
    margin = between(*found[0], "last")
    assert margin is not None and margin.mean == pytest.approx((30 + 31) / 2 / 3)


def test_what_is_not_trained_stands_for_every_seed(seeds, write_run):
    zero = load(write_run("zero", "zeroshot", [[10.0, 25.0, 0.0]], trained=False))
    assert not zero.trained
    ours, theirs = grouped([*seeds("same", [80.0, 86.0]), zero])
    found = between(ours, theirs, "last")
    assert found is not None and found.paired and found.seeds == 2 and found.verdict == ABOVE
    assert between(ours, theirs, "bwt") is None


def test_transfer_by_hand(write_run):
    found = load(write_run("run", "moelora", FORGETS))
    assert found.effects == [[None, None, None], [-30, None, None], [-20, -50, None]]
    assert found.forward == [None, 20 - 25, 5 - 0]
    assert found.identified == [None] * 3


def test_transfer_that_was_not_measured_is_none(write_run):
    matrix = [[90.0], [None, 80.0], [40.0, 30.0, 100.0]]
    found = load(write_run("run", "moelora", matrix, zero_shot=None))
    assert found.effects == [[None, None, None], [None, None, None], [None, -50, None]]
    assert found.forward == [None, None, None]


@pytest.mark.parametrize("trained", [True, False])
def test_one_row_has_no_transfer(write_run, trained):
    found = load(write_run("run", "joint", [[90.0, 80.0, 70.0]], trained=trained))
    assert found.effects == [[None] * 3] * 3
    assert found.forward == [None] * 3


def test_identification_is_read_where_a_method_tells_it(write_run):
    folder = write_run("run", "hide", FORGETS)
    files = RunDir(folder)
    write_json(files.predictions(1, 1).with_suffix(".json"), {"identified": 100.0, "prompts": 4})
    write_json(files.predictions(3, 2).with_suffix(".json"), {"identified": 25.0, "prompts": 4})
    write_json(files.predictions(3, 3).with_suffix(".json"), {"something else": 1})
    assert load(folder).identified == [None, 25.0, None]
    assert load(folder).left_to_the_base == [None] * 3
    told = {"identified": 25.0, "base": 50.0, "prompts": 4}
    write_json(files.predictions(3, 2).with_suffix(".json"), told)
    assert load(folder).left_to_the_base == [None, 50.0, None]
    (table,) = [t for t in page_content([load(folder)]).transfers if "near no task" in t.title]
    assert table.header == ["task", "hide", "hide, base"] and table.rows == [
        ["icons", "25.0", "50.0"]
    ]


def test_facts_that_are_no_object_are_refused(write_run):
    folder = write_run("run", "hide", FORGETS)
    RunDir(folder).predictions(3, 1).with_suffix(".json").write_text("[1]")
    with pytest.raises(RunDirError, match=r"on-01\.json is damaged"):
        _ = load(folder).identified
