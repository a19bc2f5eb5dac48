"""`undrift remember`, and runs whose history begins with the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.run.own import LAYER
from undrift.cli import app
from undrift.data.desk.general import prompts as desk_prompts
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.run.config import RunConfig
from undrift.run.folder_check import Check
from undrift.run.input_changes import REMEMBERED
from undrift.run.learn import start_from
from undrift.run.progress import Progress
from undrift.run.remember import own_prompts, read_task_zero
from undrift.rundir import RunDir, read_json


class StopInTaskOne(Progress):
    """Stops at the third step of the first task, after a snapshot."""

    def __init__(self):
        self.steps = 0
        self.learning = False

    def stage(self, title, total, work=0):
        self.learning = title.startswith("task 1 of 2: learning")

    def advance(self, pieces=1):
        self.steps += self.learning
        if self.steps == 4:
            raise KeyboardInterrupt


@pytest.fixture
def folder(backbone_folder, tmp_path):
    """What the tiny base is remembered as, by the command line."""
    words = ["remember", str(backbone_folder), "--out", str(tmp_path / "zero"), "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return tmp_path / "zero"


def history_tokens(run: Path) -> set[float]:
    from safetensors.torch import load_file

    tensors = load_file(run / "tasks/01-lower/adapter/adapter_model.safetensors")
    return {float(t) for name, t in tensors.items() if name.endswith("history_tokens")}


def test_a_folder_can_be_begun_with(folder, backbone, make_run, tmp_path):
    content = read_json(folder / "remembered.json")
    assert content["source"] == "prompts" and content["prompts"] == len(own_prompts())
    asked = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["question"] for line in asked] == [e.question for e in own_prompts()]
    assert set(read_task_zero(folder, backbone).histories) == set(content["linears"])
    make_run("same", remember=str(folder), profile="lite").go()
    assert history_tokens(tmp_path / "run") == {2.0}  # the base, and one task
    assert not (tmp_path / "run" / "remembered").exists()


def test_a_folder_that_changes_is_another_beginning(folder, make_run, tmp_path):
    make_run("same", remember=str(folder), profile="lite").go()
    assert "what is remembered of the base" in read_json(tmp_path / "run/data.json")["rows"]
    answers = folder / "answers.jsonl"
    answers.write_text(answers.read_text() + "\n")
    said = r"what is remembered of the base: 3 files then, 3 now: 1 changed \(answers\.jsonl\)"
    with pytest.raises(RunDirError, match=said):
        make_run("same", remember=str(folder), profile="lite")
    check = Check(RunDir(tmp_path / "run"), None, None, Progress())
    check.begun = read_json(tmp_path / "run/data.json")
    check.inputs({}, {REMEMBERED: folder})
    assert ["1 changed (answers.jsonl)" in line for line in check.verdict.wrong] == [True]
    folder.rename(tmp_path / "gone")
    check.inputs({}, {REMEMBERED: folder})
    assert check.verdict.unchecked == [f"{REMEMBERED}: {folder} is not there"]


def test_two_runs_of_one_method_have_two_folders(tmp_path):
    config = RunConfig(benchmark="tiny", remember=str(tmp_path / "zero"))
    assert config.folder.name == "tiny-nearlora-remember-zero-s0"
    assert RunConfig(benchmark="tiny").folder.name == "tiny-nearlora-s0"


@pytest.mark.parametrize("what", ["prompts", "weights"])
def test_a_run_remembers_by_itself(what, make_run, tmp_path):
    make_run("same", remember=what, profile="lite").go()
    assert history_tokens(tmp_path / "run") == {2.0}
    record = read_json(tmp_path / "run" / "remembered" / "remembered.json")
    assert record["source"] == what and record["measured"] == (what == "prompts")
    assert (tmp_path / "run" / "remembered" / "answers.jsonl").exists() == (what == "prompts")
    sums = (tmp_path / "run" / "SHA256SUMS").read_text()
    assert "remembered/history.safetensors" in sums


def test_what_cannot_be_is_refused(folder, backbone, backbone_folder, make_run, tmp_path):
    with pytest.raises(ConfigError, match="moelora keeps no history"):
        make_run("moelora", remember="prompts")
    off = {"name": "same", "router": False, "expert": False}
    with pytest.raises(ConfigError, match="same keeps no history, as it is set"):
        make_run("same", remember="prompts", method=off)
    with pytest.raises(RunDirError, match=r"nowhere holds no remembered\.json"):
        make_run("same", remember="nowhere")
    record = read_json(folder / "remembered.json")
    (folder / "remembered.json").write_text(json.dumps({**record, "fingerprint": "other"}))
    with pytest.raises(AdapterMismatch, match="run `undrift remember` again"):
        read_task_zero(folder, backbone)
    (folder / "remembered.json").write_text(
        json.dumps({**record, "linears": {"model.x": "model.x"}})
    )
    with pytest.raises(RunDirError, match=r"has no history of model\.x"):
        read_task_zero(folder, backbone)
    for words, said in (
        (["--out", str(folder)], "is there already"),
        (["--out", str(tmp_path / "new"), "--weights", "--data", "x.jsonl"], "leave out --data"),
    ):
        result = CliRunner().invoke(app, ["remember", str(backbone_folder), *words])
        assert result.exception is not None and said in str(result.exception)


def test_only_the_first_task_can_begin_with_it(make_run, tmp_path):
    make_run("same", profile="lite").go()
    with pytest.raises(ConfigError, match="only the first"):
        start_from(str(tmp_path / "run"), LAYER, {"remember": "prompts"})


def test_own_prompts_are_of_no_benchmark():
    own = {e.question.lower() for e in own_prompts()}
    assert len(own) == len(own_prompts()) > 150
    assert not own & {e.question.lower() for e in desk_prompts()}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["prompts", "weights"])
def test_killed_inside_the_first_task_and_resumed_equals_uninterrupted(what, make_run, tmp_path):
    given = {"train": {"max_steps": 6, "checkpoint_steps": 2}, "profile": "lite", "remember": what}
    make_run("same", "straight", **given).go()
    with pytest.raises(KeyboardInterrupt):
        make_run("same", "stopped", **given, progress=StopInTaskOne()).go()
    assert list((tmp_path / "stopped").rglob("checkpoint-*"))
    make_run("same", "stopped", **given).go()
    for task in ("01-lower", "02-upper"):
        weights = f"tasks/{task}/adapter/adapter_model.safetensors"
        one, other = ((tmp_path / run / weights).read_bytes() for run in ("straight", "stopped"))
        assert one == other
