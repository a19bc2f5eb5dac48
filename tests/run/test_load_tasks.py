"""A benchmark read as a run's configuration asks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.run.own import list_tasks, write_task
from undrift.errors import ConfigError, DataError, UnknownName
from undrift.run.config import Profile, resolve
from undrift.run.load_tasks import cut, read_benchmark
from undrift.run.progress import Progress

FIXTURES = Path(__file__).parents[1] / "fixtures"


def read(name: str, data: Path, **layer):
    config = resolve({"benchmark": name, "data": data, "backbone": "pocket"}, layer)
    return read_benchmark(config, Progress())


def test_a_benchmarks_own_options_are_checked_and_handed_over():
    plain, _ = read("coin", FIXTURES / "coin")
    diverse, _ = read("coin", FIXTURES / "coin", reading={"instructions": "Diverse"})
    assert (plain.version, diverse.version) == ("Original", "Diverse")
    assert plain.fingerprint != diverse.fingerprint
    with pytest.raises(UnknownName, match=r"reading.instruction.*reading.instructions"):
        read("coin", FIXTURES / "coin", reading={"instruction": "Diverse"})
    with pytest.raises(ConfigError, match="'desk' has no options"):
        read("desk", FIXTURES, reading={"only": []})


def test_an_order_of_some_tasks_reads_only_these(tmp_path):
    data = tmp_path / "coin"
    shutil.copytree(FIXTURES / "coin", data)
    shutil.rmtree(data / "Instructions_Original/GQA")
    with pytest.raises(DataError, match="GQA"):
        read("coin", data)
    made, _ = read("coin", data, order=("VizWiz", "ScienceQA"))
    assert [task.name for task in made.in_order(("VizWiz", "ScienceQA"))] == [
        "VizWiz",
        "ScienceQA",
    ]


def test_bad_rows_and_pictures_are_left_out_and_listed(tmp_path):
    write_task(tmp_path, "colours")
    write_task(tmp_path, "capitals")
    list_tasks(tmp_path)
    lines = (tmp_path / "colours.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    (tmp_path / "colours.jsonl").write_text("\n".join([*lines, "{broken"]))
    (tmp_path / first["image"]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"row 9: no JSON"):
        read("folder", tmp_path)
    made, skipped = read("folder", tmp_path, skip_bad=True)
    assert [len(task.train) for task in made.tasks] == [7, 8]
    assert [row.where.split("/")[-1] for row in skipped] == [
        "colours.jsonl, row 9",
        "task colours, train example 0",
    ]
    assert "no JSON at line 9" in skipped[0].reason


def test_a_part_is_the_same_part_however_the_file_is_sorted(tmp_path):
    write_task(tmp_path, "colours", train=40)
    write_task(tmp_path, "capitals")
    list_tasks(tmp_path)

    def part(**profile):
        made, _ = read("folder", tmp_path)
        return {e.id for e in cut(made.tasks[0], Profile(name="part", **profile)).train}

    few, third, more = part(limit=5), part(fraction=1 / 3), part(limit=20)
    assert (len(few), len(third), len(more)) == (5, 13, 20)
    assert few < third < more
    assert part(limit=5, draw=1) != few
    rows = (tmp_path / "colours.jsonl").read_text().splitlines()
    (tmp_path / "colours.jsonl").write_text("\n".join(reversed(rows)))
    assert part(limit=5) == few
