"""The published rows that ship with undrift: as printed, recomputed, told from ours."""

from __future__ import annotations

import pytest

from undrift.data.benchmarks import coin, trigap, ucit
from undrift.errors import UnknownName
from undrift.report import grouped, load, published, published_benchmarks, published_sections
from undrift.report.published_numbers import RECORDED, WARNING

from .conftest import FORGETS, HOLDS

TASKS = {"coin": coin.TASKS, "ucit": ucit.TASKS, "trigap": trigap.TASKS}


def rows_of(name, table=0):
    return {row.method: row for row in published(name).tables[table].rows}


def test_every_file_is_read_and_says_where_it_is_from():
    assert published_benchmarks() == ["coin", "cvit", "mllm_dcl", "trigap", "ucit", "vqav2_ten"]
    for name in published_benchmarks():
        articles = published(name)
        assert articles.benchmark == name and articles.tables
        for table in articles.tables:
            assert table.protocol and set(table.protocol) <= set(RECORDED)
            for row in table.rows:
                assert row.source and (row.printed or any(row.values.values()))
    with pytest.raises(UnknownName, match="did you mean 'coin'"):
        published("coni")


@pytest.mark.parametrize("name", TASKS)
def test_columns_have_the_names_of_the_benchmarks_tasks(name):
    known = {task.name for task in TASKS[name]}
    for table in published(name).tables:
        assert set(table.tasks) <= known


def test_means_are_recomputed_beside_what_is_printed():
    rows = rows_of("coin")
    assert len(rows) == 8
    for method, row in rows.items():
        close = abs(row.mean - row.printed["last"]) < 0.006
        assert close == (method != "HiDe-LLaVA")
    assert rows["HiDe-LLaVA"].printed["last"] == 63.95
    assert round(rows["HiDe-LLaVA"].mean, 2) == 62.82
    ablation = rows_of("coin", 1)
    assert round(ablation["+ activation (SAME)"].mean, 2) == 66.87
    assert ablation["+ activation (SAME)"].values["VizWiz"] == 54.53
    assert rows["SAME"].values["VizWiz"] == 54.13
    assert rows_of("coin", 2)["MoELoRA"].printed["last"] == 37.13


def test_a_mean_over_a_part_of_the_tasks_is_none():
    assert all(row.mean is None for row in rows_of("trigap").values())
    uci = rows_of("ucit")
    assert uci["HiDe-LLaVA"].mean is None
    for method in ("DISCO", "Octopus", "individual"):
        assert uci[method].mean == pytest.approx(uci[method].printed["last"], abs=0.006)


def test_what_is_second_hand_or_unverified_is_marked():
    assert rows_of("ucit")["DISCO"].marks == "†" and rows_of("ucit")["SAME"].marks == ""
    assert rows_of("trigap")["zero-shot"].marks == "†?"


NAMES = ["ImageNet-R", "ArxivQA", "IconQA"]


@pytest.fixture
def runs(write_run):
    kept = {"tasks": NAMES, "benchmark": "ucit", "protocol": {"scoring": "hide"}}
    return [
        load(write_run("moelora", "moelora", FORGETS, **kept)),
        load(write_run("same", "same", HOLDS, **kept)),
    ]


def test_runs_stand_under_published_rows_matched_by_name(runs):
    section = published_sections(grouped(runs), published("ucit"))[0]
    assert section.header[:5] == ["method", "ImageNet-R", "ArxivQA", "VizWiz", "IconQA"]
    rows = {row[0]: row for row in section.rows}
    assert rows["DISCO†"][1:5] == ["87.43", "93.07", "46.96", "68.13"]
    assert rows["DISCO†"][7] == "69.66; MFT 75.87; MAA 81.60; BWT -7.45"
    assert rows["same"][1:5] == ["85.5", "76.0", "", "94.0"]
    assert rows["same"][8].startswith("85.2 (3 tasks); MFT 86.7; BWT -2.2; MAA")
    assert rows["zero-shot"][1:5] == ["10.0", "25.0", "", "0.0"]
    assert section.lead[0] == WARNING
    scorer = next(line for line in section.lead if line.startswith("scorer: "))
    assert "METEOR" in scorer and scorer.endswith("| these runs: scoring hide")
    weights = next(line for line in section.lead if line.startswith("start weights: "))
    assert weights.endswith("| these runs: backbone pocket")
    assert any(
        "MCITlib#7" in note
        for note in published_sections(grouped(runs), published("ucit"))[-1].notes
    )


def test_each_start_has_a_zero_shot_row_of_its_own(runs, write_run):
    other = {"tasks": NAMES, "benchmark": "ucit", "zero_shot": [1.0, 2.0, 3.0]}
    third = load(write_run("joint", "joint", [[95.0, 90.0, 99.0]], **other))
    rows = published_sections(grouped([*runs, third]), published("ucit"))[0].rows
    names = [row[0] for row in rows]
    assert names[-5:] == [
        "zero-shot of moelora, same",
        "zero-shot of joint",
        "moelora",
        "same",
        "joint",
    ]


def test_a_run_of_another_benchmark_is_left_out(runs):
    section = published_sections(grouped(runs), published("trigap"))[0]
    assert "same is left out: it is a run of 'ucit', and these rows are about 'trigap'." in (
        section.lead
    )
    assert section.rows[-1][0] == "SAME†"
