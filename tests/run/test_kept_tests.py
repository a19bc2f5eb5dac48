"""Test questions that travel with what `learn` leaves, and those that are told where they are."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.run.own import LAYER, write_task
from undrift.cli import app
from undrift.data.benchmarks.folder import OwnTask
from undrift.data.types import Example, Task
from undrift.errors import ConfigError, DataError, RunDirError, UnknownName
from undrift.run.adapters import origin_of
from undrift.run.backbone import Backbone
from undrift.run.kept_tests import keep_test, kept_at, kept_examples
from undrift.run.learn import Learn, start_from
from undrift.run.learned_tasks import find_again, relocated
from undrift.run.progress import Progress
from undrift.run.verify import verify
from undrift.rundir import read_json


class Told(Progress):
    """Keeps what was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def event(self, kind: str, text: str, **values: object) -> None:
        self.said.append(f"{kind}: {text}")


def asked(adapter: Path, moved=None, told=None) -> list[tuple[Task, bool]]:
    notes = relocated(origin_of(adapter)["learned"], adapter, moved or {})
    return find_again(notes, told or Progress(), adapter=adapter)


def texts(task: Task) -> list[tuple[object, ...]]:
    return [(e.id, e.question, e.answers, [p.name for p in e.images]) for e in task.test]


def test_questions_are_kept_and_asked_where_the_data_are_gone(lesson, data, tmp_path):
    lesson("colours").go()
    lesson("capitals", "colours").go()
    before = [texts(task) for task, _ in asked(tmp_path / "capitals/adapter")]
    assert verify(tmp_path / "capitals").wrong == []
    shutil.move(tmp_path / "capitals", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "colours")
    shutil.rmtree(data)
    told = Told()
    again = asked(tmp_path / "elsewhere/adapter", told=told)
    assert [texts(task) for task, _ in again] == before
    assert not any(changed for _, changed in again)
    assert sum(line.startswith("kept: asking the questions of") for line in told.said) == 2
    assert all(path.is_file() for task, _ in again for e in task.test for path in e.images)


def test_nothing_is_kept_beyond_the_size_and_that_is_said(data, tmp_path, backbone_folder):
    told = Told()
    own = OwnTask("colours", data / "colours.jsonl", data, max_new_tokens=6)
    begun = start_from(str(backbone_folder), LAYER)
    Learn(begun, own, tmp_path / "v1", told, keep_tests=1e-6).go()
    assert not (tmp_path / "v1/tests").exists()
    assert any("up to 1e-06 MB are copied" in line for line in told.said)


@pytest.mark.parametrize("megabytes", [0, 200])
def test_all_of_it_moved_together_is_found(data, tmp_path, backbone_folder, megabytes):
    place = tmp_path / "project"
    place.mkdir()
    shutil.move(data, place / "data")
    own = OwnTask("colours", place / "data/colours.jsonl", place / "data", max_new_tokens=6)
    begun = start_from(str(backbone_folder), LAYER)
    Learn(begun, own, place / "adapters/v1", keep_tests=megabytes).go()
    before = texts(asked(place / "adapters/v1/adapter")[0][0])
    shutil.move(place, tmp_path / "moved")
    told = Told()
    ((task, changed),) = asked(tmp_path / "moved/adapters/v1/adapter", told=told)
    assert texts(task) == before and not changed
    assert str(tmp_path / "moved/data") in told.said[0]  # the data themselves, where they are now


def test_a_place_that_is_told_is_taken_and_noted(lesson, data, tmp_path, backbone_folder):
    lesson("colours", out="v1").go()
    write_task(tmp_path / "other", "colours")
    rows = (tmp_path / "other/colours-test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other/new.jsonl").write_text("".join(rows[:2]))
    shutil.rmtree(data / "colours")
    moved = {"colours": tmp_path / "other/new.jsonl"}
    ((task, changed),) = asked(tmp_path / "v1/adapter", moved)
    assert len(task.test) == 2 and changed
    own = OwnTask("capitals", data / "capitals.jsonl", data, max_new_tokens=6)
    Learn(start_from(str(tmp_path / "v1"), LAYER, moved=moved), own, tmp_path / "v2").go()
    first = origin_of(tmp_path / "v2/adapter")["learned"][0]
    assert first["test"] == str(tmp_path / "other/new.jsonl")
    with pytest.raises(UnknownName, match="unknown task 'colour'"):
        asked(tmp_path / "v1/adapter", {"colour": tmp_path})
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        asked(tmp_path / "v1/adapter", {"colours": tmp_path / "nowhere.jsonl"})


def test_what_is_gone_says_how_to_tell_where_it_is(lesson, data, tmp_path):
    lesson("colours", out="v1", keep_tests=0).go()
    shutil.rmtree(data)
    with pytest.raises(
        DataError, match=r"cannot be asked: .* --test-of colours=FILE; .*--without colours"
    ):
        asked(tmp_path / "v1/adapter")


def test_a_question_that_no_row_can_hold_is_not_kept(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"not looked at")
    odd = Example("1", "what is <img>x.png</img>?", ("a",), (picture,))
    task = Task("odd", (odd,), (), (odd,), "exact", 4)
    assert keep_test(tmp_path / "tests/01-odd", task, 1) is not None
    assert list((tmp_path / "tests").iterdir()) == []


def test_same_names_in_two_folders_stay_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(name.encode())
    examples = tuple(
        Example(name, "which?", ("a", "b"), (tmp_path / name / "1.png",), system="say one word")
        for name in ("one", "two")
    )
    task = Task("two", examples, (), examples, "exact", 4)
    assert keep_test(tmp_path / "tests/01-two", task, 1) is None
    kept = kept_examples(kept_at(tmp_path / "adapter", "two"))
    assert [e.images[0].read_bytes() for e in kept] == [b"one", b"two"]
    assert [(e.answers, e.system) for e in kept] == [(("a", "b"), "say one word")] * 2


def test_questions_that_changed_under_a_lesson_are_kept_anew(tmp_path):
    first, second = (Example(name, f"{name}?", ("a",)) for name in ("one", "two"))
    folder = tmp_path / "tests/01-a"
    assert keep_test(folder, Task("a", (first,), (), (first,), "exact", 4), 1) is None
    assert keep_test(folder, Task("a", (first,), (), (second,), "exact", 4), 1) is None
    assert [each.id for each in kept_examples(folder)] == ["two"]


def test_what_was_kept_and_changed_since_is_noticed(lesson, data, tmp_path):
    lesson("colours", out="v1").go()
    shutil.rmtree(data)
    file = tmp_path / "v1/tests/01-colours/questions.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[1:]))
    ((_, changed),) = asked(tmp_path / "v1/adapter")
    assert changed
    assert any("questions.jsonl" in line for line in verify(tmp_path / "v1").wrong)


def test_a_task_is_learned_again_from_what_came_before_it(lesson, tmp_path, backbone_folder):
    lesson("colours", out="v1").go()
    lesson("capitals", "v1", out="v2").go()
    with pytest.raises(ConfigError) as told:
        lesson("capitals", "v2", out="v3")
    assert f"`undrift learn {tmp_path / 'v1/adapter'} --data " in str(told.value)
    with pytest.raises(ConfigError, match=r"then capitals again from what that leaves") as told:
        lesson("colours", "v2", out="v3")
    assert f"`undrift learn {backbone_folder} --data" in str(told.value)


def test_the_card_tells_what_became_of_every_task(lesson, tmp_path):
    lesson("colours", out="v1").go()
    lesson("capitals", "v1", out="v2").go()
    card = (tmp_path / "v2/adapter/README.md").read_text()
    rows = {
        row["task"]: f"| {row['task']} | 8 | 4 | {row['before']:.1f} % | {row['after']:.1f} % |"
        for row in read_json(tmp_path / "v2/result.json")["tasks"]
    }
    assert all(row in card for row in rows.values()) and len(rows) == 2
    assert "| task | training examples | test questions | before capitals |" in card
    assert "Fingerprint of the base's weights: " in card
    assert str(tmp_path) not in card
    assert verify(tmp_path / "v2").wrong == []


@pytest.mark.slow
def test_a_plain_lora_becomes_part_of_the_base(data, tmp_path, backbone_folder):
    wide = r".*language_model.*(up|down)_proj"
    config = LoraConfig(r=2, target_modules=wide, init_lora_weights=False)
    model = get_peft_model(Backbone.load(str(backbone_folder)).model, config)
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(RunDirError) as told:
        start_from(str(tmp_path / "lora"), LAYER)
    (line,) = re.findall(r"`undrift (.*?)`", str(told.value))
    words = line.replace("BASE", str(backbone_folder)).replace("MERGED", str(tmp_path / "base"))
    done = CliRunner().invoke(app, shlex.split(words))
    assert done.exit_code == 0, done.output
    own = OwnTask("colours", data / "colours.jsonl", data, max_new_tokens=6)
    Learn(start_from(str(tmp_path / "base"), LAYER), own, tmp_path / "v1").go()
    merged = load_file(tmp_path / "base/model.safetensors")
    before = load_file(backbone_folder / "model.safetensors")
    moved = [name for name in merged if not torch.equal(merged[name], before[name])]
    assert merged.keys() == before.keys() and len(moved) == 4
