"""Guards: questions that are no task, asked before and after what is learned."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.run.own import LAYER, write_rows
from undrift.data.benchmarks.folder import OwnTask
from undrift.errors import ConfigError, DataError, RunDirError
from undrift.run.learn import Learn, start_from
from undrift.run.verify import verify
from undrift.rundir import read_json, read_lines, write_json


@pytest.fixture
def golden(data):
    """Golden questions, in a folder of their own beside their pictures."""
    folder = data / "golden"
    folder.mkdir()
    shutil.copytree(data / "capitals", folder / "capitals")
    (folder / "golden.jsonl").write_text((data / "capitals-test.jsonl").read_text())
    return folder / "golden.jsonl"


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_guard_is_asked_before_and_after_and_kept(lesson, golden, tmp_path):
    made = lesson("colours", guards=(golden,))
    (change,) = made.go()
    assert change.task == "colours"  # a guard is no task
    (guard,) = made.guarded()
    assert (guard.task, guard.examples) == ("golden", 4)
    out = tmp_path / "colours"
    assert read_json(out / "result.json")["guards"] == [
        {
            "task": "golden",
            "before": guard.before,
            "after": guard.after,
            "examples": 4,
            "drop": max(0.0, guard.before - guard.after),
        }
    ]
    for when in ("before", "after"):
        said = read_lines(out / f"eval/{when}/guard-golden.jsonl")
        assert [row["id"] for row in said] == [str(row["question_id"]) for row in rows_of(golden)]
    assert [note["name"] for note in read_json(out / "adapter/undrift.json")["learned"]] == [
        "colours"
    ]
    found = verify(out)
    assert not found.wrong and any("tasks and guards" in line for line in found.checked)
    plain = lesson("colours", out="plain")
    plain.go()
    assert plain.guarded() == [] and "guards" not in read_json(tmp_path / "plain/result.json")


def test_a_method_that_has_to_be_told_the_task_refuses_a_guard_at_once(
    backbone_folder, data, golden, tmp_path
):
    begun = start_from(
        str(backbone_folder), LAYER, {"method": {"name": "nearlora", "oracle": True}}
    )
    own = OwnTask("colours", data / "colours.jsonl", data, max_new_tokens=6)
    with pytest.raises(ConfigError, match=r"nearlora, as it is set, has to be told .* leave out"):
        Learn(begun, own, tmp_path / "out", guards=(golden,))
    assert not (tmp_path / "out").exists()


def test_a_guard_whose_answers_or_scores_were_touched_is_found(lesson, golden, tmp_path):
    lesson("colours", guards=(golden,)).go()
    result = read_json(tmp_path / "colours/result.json")
    result["guards"][0]["after"] = 77.0
    write_json(tmp_path / "colours/result.json", result)
    (tmp_path / "colours/eval/before/guard-golden.jsonl").unlink()
    said = "\n".join(map(str, verify(tmp_path / "colours").wrong))
    assert "after of golden" in said and "guard-golden.jsonl" in said


def test_a_guard_that_changed_is_refused_as_data_are(lesson, golden):
    lesson("colours", guards=(golden,))
    rows = rows_of(golden)
    write_rows(golden, [{**rows[0], "answer": "mauve"}, *rows[1:]])
    with pytest.raises(RunDirError, match=r"golden, test: 4 rows then, 4 now: 1 changed"):
        lesson("colours", guards=(golden,))
    lesson("colours", guards=(golden,), force=True)
    with pytest.raises(RunDirError, match="holds another run"):
        lesson("colours")


def test_what_a_guard_cannot_be(lesson, golden, data, tmp_path):
    with pytest.raises(ConfigError, match="two guards are called 'golden'; rename"):
        lesson("colours", guards=(golden, golden))
    with pytest.raises(DataError, match=r"golden\.json.*does not exist"):
        lesson("colours", guards=(golden.with_suffix(".json"),))
    with pytest.raises(ConfigError, match="the guard 'capitals' is called as a task is; rename"):
        lesson("capitals", guards=(data / "capitals.jsonl",))
    odd = golden.with_name(".odd.jsonl")
    golden.rename(odd)
    with pytest.raises(RunDirError, match=r"a guard cannot be called '\.odd'"):
        lesson("colours", guards=(odd,))
    assert not (tmp_path / "colours").exists()


def test_a_guard_is_scored_as_the_task_or_as_it_is_said(lesson, golden):
    assert lesson("colours", guards=(golden,)).guards[0].scorer == "exact"
    made = lesson("colours", out="b", guards=(golden,), guard_scorer="caseless")
    assert (made.task.scorer, made.guards[0].scorer) == ("exact", "caseless")
