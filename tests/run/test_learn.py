"""One more task for an adapter: the same as in a run, measured before and after, resumable."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tests.run.own import LAYER, list_tasks, write_rows
from tests.run.test_report_to import Noted
from tests.run.test_task_loop import Stop
from tests.sweeps import mostly_slow
from undrift.data.benchmarks.folder import OwnTask
from undrift.diagnose.adapter_series import AdapterSeries
from undrift.errors import AdapterMismatch, ConfigError, DataError, RunDirError
from undrift.run.adapters import open_adapter
from undrift.run.config import overrides, resolve
from undrift.run.learn import Change, Learn, start_from
from undrift.run.task_loop import Run
from undrift.rundir import read_json, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_equal(one: Path, two: Path) -> None:
    left, right = tensors(one), tensors(two)
    assert left.keys() == right.keys() and left
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("method", mostly_slow(["same", "steadylora", "proglora-static"], ["same"]))
def test_task_by_task_is_the_run_over_the_sequence(method, lesson, data, tmp_path, monkeypatch):
    monkeypatch.setitem(LAYER, "method", {"name": method, "experts": 2, "rank": 2})
    start = lesson("colours")
    start.go()
    changes = lesson("capitals", "colours").go()
    content = {"benchmark": "folder", "backbone": start.config.backbone, "out": tmp_path / "run"}
    list_tasks(data)
    config = resolve({**content, "data": data}, LAYER)
    result = Run(config).go()
    assert_equal(tmp_path / "colours/adapter", tmp_path / "run/tasks/01-colours/adapter")
    assert_equal(tmp_path / "capitals/adapter", tmp_path / "run/tasks/02-capitals/adapter")
    assert [change.task for change in changes] == ["colours", "capitals"]
    assert [change.after for change in changes] == result["matrix"][1]
    assert changes[0].before == result["matrix"][0][0]
    for number, name in enumerate(("colours", "capitals"), 1):
        said = read_lines(tmp_path / "capitals/eval/after" / f"{number:02}-{name}.jsonl")
        assert said == read_lines(tmp_path / "run/eval/after-02" / f"on-{number:02}.jsonl")


def test_a_lesson_that_is_watched_and_reported_is_the_same_lesson(lesson, tmp_path, monkeypatch):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "noted", Noted)
    monkeypatch.setattr(Noted, "heard", [])
    lesson("colours").go()
    plain = lesson("capitals", "colours").go()
    monkeypatch.setitem(LAYER, "watch_routes", 1)
    monkeypatch.setitem(LAYER, "report_to", ["noted"])
    changes = lesson("capitals", "colours", out="watched").go()
    assert changes == plain
    assert_equal(tmp_path / "capitals/adapter", tmp_path / "watched/adapter")
    assert (tmp_path / "watched/learn.yaml").read_text() == (
        tmp_path / "capitals/learn.yaml"
    ).read_text()
    log = read_lines(tmp_path / "watched/train.jsonl")
    assert [row["step"] for row in log if "routes/overlap/colours" in row] == [1, 2, 3]
    assert ("begin", "watched/02-capitals", "undrift") in Noted.heard
    scores = {f"test_{change.task}": change.after for change in changes}
    assert Noted.heard[-2:] == [("log", 3, scores), ("end", 3)]


def test_an_adapter_of_a_run_goes_on(lesson, make_run, two, data, tmp_path, benchmark_root):
    make_run("same").go()  # a benchmark that only this test knows
    note = tmp_path / "run/tasks/02-upper/adapter/undrift.json"
    origin = read_json(note)
    assert [row["name"] for row in origin["learned"]] == ["lower", "upper"]
    made = lesson("colours", "run", without=("lower", "upper"))
    assert made.index == 3
    assert [change.task for change in made.go()] == ["colours"]
    kept = read_json(tmp_path / "colours/adapter/undrift.json")
    assert [row["name"] for row in kept["learned"]] == ["lower", "upper", "colours"]
    assert kept["after"] == 3


def test_tasks_of_a_benchmark_are_asked_again(lesson, data, backbone_folder, tmp_path):
    list_tasks(data)
    first = {"benchmark": "folder", "order": ("colours",), "backbone": str(backbone_folder)}
    Run(resolve({**first, "data": data, "out": tmp_path / "run"}, LAYER)).go()
    changes = lesson("capitals", "run").go()
    assert [(change.task, change.new) for change in changes] == [
        ("colours", False),
        ("capitals", True),
    ]
    assert not changes[0].changed


@pytest.mark.parametrize(
    "after", [2, pytest.param(6, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
def test_a_lesson_that_was_stopped_goes_on(lesson, tmp_path, after):
    lesson("colours").go()
    whole = lesson("capitals", "colours", out="whole").go()
    with pytest.raises(KeyboardInterrupt):
        lesson("capitals", "colours", out="cut", progress=Stop(after)).go()
    assert not (tmp_path / "cut/result.json").exists()
    assert lesson("capitals", "colours", out="cut").go() == whole
    assert_equal(tmp_path / "cut/adapter", tmp_path / "whole/adapter")
    assert lesson("capitals", "colours", out="cut").go() == whole  # finished: read from its file


def test_a_default_that_changes_does_not_change_what_was_begun(lesson, tmp_path, monkeypatch):
    learned = lesson("colours")
    learned.go()
    was = learned.method.config
    assert "mu" not in learned.config.method.options

    @dataclass(frozen=True, kw_only=True)
    class Later(type(was)):
        mu: float = 0.5

    lesson("capitals", "colours", out="second").go()
    monkeypatch.setattr(type(learned.method), "Config", Later)
    assert lesson("capitals").method.config.mu == 0.5
    assert lesson("colours").method.config.mu == was.mu  # the same folder
    assert lesson("capitals", "colours", out="next").method.config.mu == was.mu
    assert open_adapter(tmp_path / "colours").method.config.mu == was.mu
    assert AdapterSeries(tmp_path / "second").method.config.mu == was.mu


def test_without_a_test_file_a_part_is_held_out_and_found_again(lesson, data, tmp_path):
    first = lesson("colours", tested=False, held_out=0.25)
    assert len(first.task.test) == 2 and len(first.task.train) == 6
    first.go()
    second = lesson("capitals", "colours")
    ((again, changed),) = second.earlier
    assert again.test == first.task.test and not changed
    rows = [json.loads(line) for line in (data / "colours.jsonl").read_text().splitlines()]
    held = first.task.test[0].id
    write_rows(data / "colours.jsonl", [r for r in rows if str(r["question_id"]) != held])
    assert lesson("capitals", "colours", out="other").earlier[0][1]  # told that it has changed


def test_a_test_file_that_is_gone_is_named_before_anything_is_learned(lesson, data, tmp_path):
    lesson("colours", keep_tests=0).go()
    (data / "colours-test.jsonl").unlink()
    with pytest.raises(DataError, match=r"'colours' cannot be asked.*--without colours"):
        lesson("capitals", "colours")
    assert not (tmp_path / "capitals").exists()
    assert [c.task for c in lesson("capitals", "colours", without=("colours",)).go()] == [
        "capitals"
    ]


def test_bad_examples_are_left_out_and_listed(lesson, data, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in (data / "colours.jsonl").read_text().splitlines()]
    write_rows(data / "colours.jsonl", [*rows, {"question_id": 99, "text": "what?", "answer": ""}])
    broken = data / rows[0]["image"]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match="row 9"):
        lesson("colours")
    monkeypatch.setitem(LAYER, "skip_bad", True)
    made = lesson("colours")
    assert len(made.task.train) == 7
    made.go()
    skipped = read_lines(tmp_path / "colours/skipped.jsonl")
    assert [row["where"].rpartition("/")[2] for row in skipped] == [
        "colours.jsonl, row 9",
        "task colours, train example 0".rpartition("/")[2],
    ]
    assert read_json(tmp_path / "colours/result.json")["skipped"] == 2


def test_what_cannot_be(lesson, data, tmp_path, backbone_folder):
    lesson("colours").go()
    with pytest.raises(ConfigError, match="learned a task called 'colours' already"):
        lesson("colours", "colours", out="again")
    with pytest.raises(ConfigError, match="--without shapes"):
        lesson("capitals", "colours", without=("shapes",))
    with pytest.raises(ConfigError, match=r"made by 'same'.*cannot be continued by 'finetune'"):
        start_from(str(tmp_path / "colours"), {"method": "finetune"})
    with pytest.raises(ConfigError, match="does not learn one task after another"):
        lesson_of = start_from(str(backbone_folder), {"method": "joint"})
        Learn(lesson_of, OwnTask("x", data / "colours.jsonl", data), tmp_path / "x")
    with pytest.raises(RunDirError, match="holds another run"):
        lesson("capitals", "colours", out="colours")
    (tmp_path / "colours/adapter/undrift.json").unlink()
    with pytest.raises(RunDirError, match="does not say which tasks"):
        start_from(str(tmp_path / "colours"))


def test_what_a_lesson_is_made_from_is_never_deleted(lesson, data, tmp_path):
    lesson("colours").go()
    with pytest.raises(RunDirError, match=r"--replace would delete .*colours/adapter, which is"):
        lesson("capitals", "colours", out="colours", replace=True)
    copied = tmp_path / "colours/tests/01-colours/questions.jsonl"
    begun = start_from(str(tmp_path / "colours"), LAYER)
    for own in (
        OwnTask("x", copied, copied.parent),
        OwnTask("x", data / "colours.jsonl", data, test=copied, test_images=copied.parent),
    ):
        start = start_from(begun.config.backbone, LAYER)
        with pytest.raises(RunDirError, match="--replace would delete"):
            Learn(start, own, tmp_path / "colours", replace=True, dry=True)
    with pytest.raises(RunDirError, match=r"--replace would delete .*questions.jsonl"):
        lesson("capitals", out="colours", replace=True, guards=[copied])
    assert (tmp_path / "colours/adapter/adapter_model.safetensors").is_file() and copied.is_file()
    lesson("colours", replace=True).go()


@pytest.mark.parametrize(
    "setting",
    ["profile=lite", "profile.limit=2", "benchmark=pocket", "eval.split=validation", "out=x",
     "reading.held_out=0.5", "match_budget=total"],
)  # fmt: skip
def test_settings_of_a_run_are_refused(setting, backbone_folder):
    key = setting.split("=")[0]
    with pytest.raises(ConfigError, match=key if "eval" in key else key.split(".")[0]):
        start_from(str(backbone_folder), LAYER, overrides([setting]))
    start_from(str(backbone_folder), LAYER, overrides(["eval.split=test"]))


def test_a_drop_is_of_earlier_tasks_only():
    assert Change("old", 80.0, 70.5, 10).drop == 9.5
    assert Change("old", 80.0, 81.0, 10).drop == 0
    assert Change("new", 80.0, 0.0, 10, new=True).drop == 0


def test_another_dtype_than_the_adapters_is_named(lesson, data, tmp_path):
    lesson("colours").go()
    begun = start_from(str(tmp_path / "colours"), LAYER, {"dtype": "bfloat16"})
    own = OwnTask("capitals", data / "capitals.jsonl", data, max_new_tokens=6)
    with pytest.raises(AdapterMismatch, match=r"with dtype auto, and bfloat16 is asked for: leave"):
        Learn(begun, own, tmp_path / "capitals").go()
