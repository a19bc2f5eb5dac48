from __future__ import annotations

import errno
import os

import pytest

from undrift.errors import RunDirError
from undrift.rundir import (
    RunDir,
    atomic_folder,
    atomic_write,
    read_json,
    read_lines,
    write_json,
    write_lines,
)

CONFIG = "benchmark: pocket\nmethod: {name: same}\nseed: 0\n"


def test_the_layout(tmp_path):
    run = RunDir(tmp_path)
    assert run.config_file == tmp_path / "run.yaml"
    assert run.manifest_file == tmp_path / "manifest.json"
    assert run.matrix_file == tmp_path / "matrix.json"
    assert run.adapter(1, "digits") == tmp_path / "tasks" / "01-digits" / "adapter"
    assert run.train_log(12, "digits") == tmp_path / "tasks" / "12-digits" / "train.jsonl"
    assert run.picture(1, "digits", 12) == tmp_path / "pictures" / "01-digits" / "0012.webp"
    assert run.picture(1, "digits", 12, 2).name == "0012-2.webp"
    assert run.live(2, "icons") == tmp_path / "live" / "02-icons"
    assert run.predictions(0, 3) == tmp_path / "eval" / "after-00" / "on-03.jsonl"
    assert list(tmp_path.iterdir()) == []


def test_start_writes_the_configuration_and_resumes(tmp_path):
    root = tmp_path / "runs" / "one"
    RunDir.start(root, CONFIG).mark_done(1, "digits")
    again = RunDir.start(root, CONFIG)
    assert again.is_done(1, "digits")
    assert not again.is_done(2, "icons")
    assert again.config_text() == CONFIG


def test_another_run_is_refused_and_the_message_says_what_to_do(tmp_path):
    RunDir.start(tmp_path / "one", CONFIG)
    with pytest.raises(RunDirError) as caught:
        RunDir.start(tmp_path / "one", CONFIG.replace("seed: 0", "seed: 1"))
    message = str(caught.value)
    assert "- seed: 0" in message
    assert "+ seed: 1" in message
    assert "pocket" not in message  # what is equal is not listed
    assert f"to resume that run: undrift run {tmp_path / 'one' / 'run.yaml'}" in message
    assert "--replace" in message
    assert RunDir(tmp_path / "one").config_text() == CONFIG


def test_replace_begins_again_and_keeps_what_is_not_the_runs(tmp_path):
    run = RunDir.start(tmp_path, CONFIG)
    run.mark_done(1, "digits")
    write_json(run.matrix_file, {})
    for left in (run.picture(1, "digits", 1), run.live(1, "digits") / "events"):
        left.parent.mkdir(parents=True)
        left.write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    fresh = RunDir.start(tmp_path, "seed: 1\n", replace=True)
    assert not fresh.is_done(1, "digits")
    assert not fresh.matrix_file.exists()
    assert not (tmp_path / "pictures").exists() and not (tmp_path / "live").exists()
    assert fresh.config_text() == "seed: 1\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_with_something_else_in_it_is_refused(tmp_path, replace):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirError, match="holds no run"):
        RunDir.start(tmp_path, CONFIG, replace=replace)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="holds no run"):
        RunDir.start(tmp_path / "file", CONFIG)


def test_a_start_that_was_killed_while_writing_can_be_repeated(tmp_path):
    (tmp_path / "run.yaml.4711.writing").write_text("bench")
    assert RunDir.start(tmp_path, CONFIG).config_text() == CONFIG


def test_existing(tmp_path):
    with pytest.raises(RunDirError, match="is not a run"):
        RunDir.existing(tmp_path)
    RunDir.start(tmp_path, CONFIG)
    assert RunDir.existing(tmp_path).root == tmp_path


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "..", ".hidden", "tab\t", "nul\0", "ä"])
def test_task_names_that_are_no_folder_names(tmp_path, name):
    with pytest.raises(RunDirError, match="cannot be called"):
        RunDir(tmp_path).task(1, name)


def test_tasks_count_from_one(tmp_path):
    with pytest.raises(RunDirError):
        RunDir(tmp_path).task(0, "digits")
    with pytest.raises(RunDirError):
        RunDir(tmp_path).predictions(1, 0)
    with pytest.raises(RunDirError):
        RunDir(tmp_path).predictions(-1, 1)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, "grüße")
    assert path.read_bytes() == "grüße".encode()

    def full_disk(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunDirError, match="No space left on device; free some space"):
        atomic_write(path, b"new")
    assert path.read_text() == "grüße"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    path = tmp_path / "file.txt"
    atomic_write(path, "old")
    with path.open() as reader:
        atomic_write(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_atomic_folder(tmp_path):
    target = tmp_path / "adapter"
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("old")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (target / "weights").read_text() == "old"
    with atomic_folder(target) as folder:
        (folder / "other").write_text("new")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_json_and_lines_come_back(tmp_path):
    value = {"matrix": [[1.5, None]], "name": "Grüße\u2028"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    rows = [{"id": "1", "prediction": "a\nb\u2028c"}, {"id": "2", "prediction": ""}]
    write_lines(tmp_path / "a.jsonl", rows)
    assert read_lines(tmp_path / "a.jsonl") == rows
    write_lines(tmp_path / "none.jsonl", [])
    assert read_lines(tmp_path / "none.jsonl") == []


def test_what_json_cannot_hold_is_refused(tmp_path):
    for value in ({"loss": float("nan")}, {"path": tmp_path}):
        with pytest.raises(RunDirError, match=r"cannot write .*a\.json"):
            write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


def test_damage_is_named_with_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(RunDirError, match="line 2"):
        read_lines(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('{\n"id": 1,\n"more" 2}')
    with pytest.raises(RunDirError, match="line 3"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunDirError, match="cannot read"):
        read_json(tmp_path / "missing.json")
