from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.run.studying import STUDY, tiny_plan
from undrift.errors import ConfigError
from undrift.methods.moelora import MoeLora
from undrift.run import study_plan
from undrift.run.config import overrides, resolve
from undrift.run.study_plan import best_rate, next_rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": "sedes"}, "unknown key 'sedes'; did you mean 'seeds'"),
        ({"label:": "lable:"}, "unknown key 'rows.2.lable'; did you mean 'rows.2.label'"),
        ({"set:": "sett:"}, "did you mean 'rows.2.set'"),
        ({"[0, 1]": "[0, 0]"}, "seeds: a value stands twice"),
        ({"[0, 1]": "[]"}, "seeds: "),
        ({"no router": "moelora"}, "'moelora' stands twice"),
        ({"results": "against: moelroa\nresults"}, "label in against 'moelroa'; did you mean"),
        ({"results": "rates: {noruter: [1]}\nresults"}, "did you mean 'no router'"),
        ({"results": "rates: {moelora: []}\nresults"}, "rates.moelora: expected different rates"),
        ({"results": "rates: {zeroshot: [1]}\nresults"}, "'zeroshot' learns nothing"),
        (
            {"results": "against: moelora\nrates: {moelora: [1, 2]}\nresults"},
            "'moelora' has several rates",
        ),
        ({"results": "widen: true\nresults"}, "no `rates` to widen"),
        ({"results": "drop: 3\nresults"}, "no `rates` to drop"),
        ({"results": "run: {seed: 3}\nresults"}, "run.seed: give it as `seeds:`"),
        ({"results": "run: {out: x}\nresults"}, "run.out: a study decides that itself"),
        ({"results": "run: {method: same}\nresults"}, "run.method: options only"),
        ({"results": "run: {reading: 5}\nresults"}, "run.reading: expected options"),
        ({"results": "run: {trian: {epochs: 2}}\nresults"}, "did you mean 'train'"),
        ({"results": "run: {profile: ligt}\nresults"}, "did you mean 'lite'"),
        ({"results": "orders: [revresed]\nresults"}, "did you mean 'reversed'"),
        ({"method.router": "method.ruoter"}, "did you mean 'method.router'"),
        ({"method.router": "seed"}, "set.seed of 'no router': a row cannot change this"),
        (
            {"method.router": "reading.questions"},
            "set.reading.questions of 'no router': a row cannot change this",
        ),
        ({"zeroshot": "zeroshto"}, "did you mean 'zeroshot'"),
        ({"set:": "seeds: [7], set:"}, "seeds of 'no router': expected some of the study's own"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, change, message):
    ((old, new),) = change.items()
    assert old in STUDY
    with pytest.raises(ConfigError) as caught:
        tiny_plan(tmp_path, STUDY.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_row_can_be_a_name(tmp_path):
    rows = tiny_plan(tmp_path).study.rows
    assert [(row.label, row.method) for row in rows] == [
        ("zeroshot", "zeroshot"),
        ("moelora", "moelora"),
        ("no router", "same"),
    ]
    assert rows[2].options == {"method.router": False}


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")))
def test_the_studies_of_the_repository_can_be_read(path):
    assert study_plan.load_study(path).results.parent == Path("docs/results")


def test_cells(tmp_path):
    plan = tiny_plan(tmp_path, STUDY + "orders: [default, reversed, [upper]]\n")
    cells = plan.cells(plan.study.first_rates)
    assert len(cells) == 3 + 6 + 6  # what learns nothing has one seed
    assert len({cell.name for cell in cells}) == 15
    last = cells[-1]
    assert (last.row.label, last.seed, last.order, last.setting) == (
        "no router",
        1,
        ("upper",),
        "undrift",
    )
    assert cells[3].setting is None
    assert last.name.startswith("same-own-order-s1-")


def test_a_cell_of_a_stream_is_what_the_run_makes_of_it(tmp_path):
    text = STUDY.replace("rows:", "run: {boundaries: none}\nrows:").replace("zeroshot, ", "")
    plan = tiny_plan(tmp_path, text)
    found = {cell.row.method: cell for cell in plan.cells(plan.study.first_rates)}
    assert found["same"].settings["merge_share"] == 0.05
    assert "merge_share: 0.05" in found["same"].config.text()
    assert "boundaries=none" in found["moelora"].words
    with pytest.raises(ConfigError, match="joint cannot learn with boundaries=none"):
        tiny_plan(tmp_path, text.replace("moelora", "joint"))


def test_a_row_may_take_some_of_the_seeds(tmp_path):
    plan = tiny_plan(tmp_path, STUDY.replace("set:", "seeds: [1], set:"))
    cells = plan.cells(plan.study.first_rates)
    assert {cell.seed for cell in cells if cell.row.label == "no router"} == {1}
    assert {cell.seed for cell in cells if cell.row.label == "moelora"} == {0, 1}


def test_a_command_asks_for_what_the_cell_is(tmp_path):
    plan = tiny_plan(
        tmp_path,
        STUDY + "orders: [[upper, lower]]\nrates: {moelora: [3.75e-4, 1e-5]}\n"
        "run: {profile: {name: lite, cells: seen}, eval: {split: validation}, train: {epochs: 2},"
        " method: {experts: 4}, backbone: '1e3', data: some where}\n",
    )
    for cell in plan.cells(plan.study.first_rates):
        words = shlex.split(shlex.join(cell.words))
        flags = {k[2:]: v for k, v in pairwise(words) if k[:2] == "--"}
        sets = [v for k, v in pairwise(words) if k == "--set"]
        del flags["set"]
        flags["seed"] = int(flags["seed"])
        assert resolve({"benchmark": words[1]}, flags, overrides(sets)) == cell.config
        assert cell.config.profile.name == "lite" and cell.config.profile.cells == "seen"
        assert cell.config.backbone == "1e3" and cell.config.data == Path("some where")
        assert (
            cell.config.order == ("upper", "lower") and cell.config.method.options["experts"] == 4
        )
        assert cell.config.train.learning_rate == cell.rate


def test_a_folder_is_named_by_what_decides_the_numbers(tmp_path, monkeypatch):
    def names(text=STUDY):
        plan = tiny_plan(tmp_path, text)
        return [cell.name for cell in plan.cells(plan.study.first_rates)]

    before = names()
    assert names() == before
    assert names(STUDY.replace("no router", "other label")) == before
    assert names(STUDY.replace("results/small", "results/other") + "run: {data: here}\n") == before
    changed = names(STUDY + "run: {train: {epochs: 2}}\n")
    assert not set(changed) & set(before)
    monkeypatch.setattr(MoeLora, "learning_rate", 0.5)  # a default changes: so does the run
    assert names()[1] != before[1]
    assert names()[0] == before[0]


@pytest.mark.parametrize(
    ("means", "rate"),
    [
        ({1.0: 10.0, 2.0: 30.0, 4.0: 20.0}, None),
        ({1.0: 10.0, 2.0: 20.0, 4.0: 30.0}, 8.0),
        ({1.0: 30.0, 2.0: 20.0, 4.0: 10.0}, 0.5),
        ({3.75e-4: 3.0, 7.5e-4: 2.0}, 1.875e-4),
        ({1.0: 5.0}, 0.5),
        ({1.0: 5.0, 2.0: 5.0, 4.0: 5.0}, 0.5),
        ({1.0: 5.0, 2.0: 9.0, 4.0: -float("inf")}, None),
        ({1.0: -float("inf"), 2.0: -float("inf")}, None),
    ],
)
def test_next_rate(means, rate):
    assert next_rate(means, [min(means), max(means)]) == rate


def test_no_more_than_three_rates_are_added_on_a_side():
    means = {float(2**power): float(power) for power in range(5)}
    assert next_rate(means, [1.0, 2.0, 4.0]) == 32.0
    assert next_rate({**means, 32.0: 9.0}, [1.0, 2.0, 4.0]) is None
    assert best_rate({}) is None
