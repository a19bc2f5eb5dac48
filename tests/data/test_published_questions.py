"""Test questions of a published task, read without its pictures and without its training file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from undrift.data.published_benchmark import find_published, questions_in, questions_of
from undrift.errors import DataError, UnknownName
from undrift.registry import BENCHMARKS

FIXTURES = Path(__file__).parents[1] / "fixtures"
PUBLISHED = ("coin", "ucit", "trigap", "mllm_dcl")


def _but_test_files(folder, names):
    files = [name for name in names if (Path(folder) / name).is_file()]
    return [name for name in files if not name.endswith(".json") or name.startswith("train")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_are_the_benchmarks_own_without_pictures_or_training(name, tmp_path):
    whole = BENCHMARKS.load(name)(FIXTURES / name, progress=False)
    shutil.copytree(FIXTURES / name, tmp_path / name, ignore=_but_test_files)
    for task in whole.tasks:
        found = questions_in(find_published(f"{name}/{task.name}"), tmp_path / name)
        assert [(e.id, e.question, e.answers, e.extra) for e in found] == [
            (e.id, e.question, e.answers, e.extra) for e in task.test
        ]


def test_both_names_of_a_task_are_known():
    assert find_published("coin/REC") is find_published("coin/Grounding")
    with pytest.raises(UnknownName, match="did you mean 'coin/ScienceQA'"):
        find_published("coin/ScienceAQ")
    with pytest.raises(UnknownName, match="did you mean 'coin'"):
        find_published("coni/ScienceQA")
    with pytest.raises(UnknownName, match="published task"):
        find_published("pocket/digits")


def test_another_wording_is_the_folder_of_its_own():
    task = find_published("coin/TextVQA")
    original = questions_in(task, FIXTURES / "coin")
    diverse = questions_in(task, FIXTURES / "coin" / "Instructions_Diverse")
    assert [e.id for e in original] == [e.id for e in diverse]
    assert [e.question for e in original] != [e.question for e in diverse]
    assert all(len(e.answers) == 10 for e in diverse)


def test_one_file_with_its_second_file_beside_it(tmp_path):
    task, there = find_published("ucit/VizWiz"), FIXTURES / "ucit/instructions/VizWiz"
    found = questions_of(task, there / "test_3000.json")
    assert len(found[0].answers) > 1
    shutil.copy(there / "test_3000.json", tmp_path)
    with pytest.raises(DataError, match=r"scored by val_coco_type_3000\.json, which is in none of"):
        questions_of(task, tmp_path / "test_3000.json")
    (tmp_path / "val_coco_type_3000.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be the annotation file of VizWiz"):
        questions_of(task, tmp_path / "test_3000.json")


def test_a_wrong_folder_names_the_nearest(tmp_path):
    (tmp_path / "Instructions_Original" / "ScienceQa").mkdir(parents=True)
    with pytest.raises(DataError, match="ScienceQA does not exist"):
        questions_in(find_published("coin/ScienceQA"), tmp_path / "Instructions_Original")
