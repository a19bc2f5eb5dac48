"""How files are written: whole, on the disk before they count, each with its format."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

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


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, str]]:
    """What was asked of the system, in order: what, and of which file."""
    calls: list[tuple[str, str]] = []

    def named(file: int) -> str:
        return Path(f"/proc/self/fd/{file}").resolve().name.split(".")[0]

    real = os.fsync, os.rename, os.replace

    def fsync(file: int) -> None:
        calls.append(("sync", named(file)))
        real[0](file)

    def rename(old: Path, new: Path) -> None:
        aside = "aside" if "replaced" in Path(new).name else "in place"
        calls.append((aside, Path(new).name.split(".")[0]))
        real[1](old, new)

    def replace(old: Path, new: Path) -> None:
        calls.append(("replace", Path(new).name.split(".")[0]))
        real[2](old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_a_file_is_on_the_disk_before_its_name_changes(tmp_path, told):
    (tmp_path / "here").mkdir()
    atomic_write(tmp_path / "here" / "file.txt", "text")
    assert told == [("sync", "file"), ("replace", "file"), ("sync", "here")]


def test_a_folder_is_on_the_disk_with_all_that_is_in_it(tmp_path, told):
    (tmp_path / "here").mkdir()
    target = tmp_path / "here" / "adapter"
    with atomic_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("1")
    first = [("sync", "weights"), ("sync", "inner"), ("sync", "adapter"), ("in place", "adapter")]
    assert told == [*first, ("sync", "here")]
    told.clear()
    with atomic_folder(target) as folder:
        (folder / "other").write_text("2")
    before = [("sync", "other"), ("sync", "adapter"), ("aside", "adapter")]
    assert told == [*before, ("in place", "adapter"), ("sync", "here")]
    assert os.listdir(tmp_path / "here") == ["adapter"] and os.listdir(target) == ["other"]


def test_a_folder_moved_aside_comes_back(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("old")
    target.rename(tmp_path / "adapter.7-ab.replaced.writing")  # as a killed process leaves it
    with pytest.raises(RuntimeError), atomic_folder(target):
        raise RuntimeError
    assert (target / "weights").read_text() == "old"


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch):
    from undrift.methods.shared.tensor_files import save_tensors

    write_json(tmp_path / "a.json", {"old": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: write_json(tmp_path / "a.json", {"new": 1}),
        lambda: save_tensors({}, tmp_path / "a.json"),
    ):
        with pytest.raises(RunDirError, match="No space left on device; free some space") as caught:
            write()
        assert "\n" not in str(caught.value) and str(tmp_path / "a.json") in str(caught.value)
    with pytest.raises(RunDirError, match="free some space"), atomic_folder(tmp_path / "b") as made:
        (made / "c").write_text("c")
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.foreign("2.1")
def test_a_link_under_the_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f"a.json.{os.getpid()}.writing").symlink_to(tmp_path / "mine")
    (tmp_path / "a.json").symlink_to(tmp_path / "mine")
    atomic_write(tmp_path / "a.json", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "new"


def test_the_format_stands_in_objects_and_lines_and_is_taken_off(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    write_lines(tmp_path / "a.jsonl", [{"b": 1}, {"b": 2}])
    assert json.loads((tmp_path / "a.json").read_text()) == {"format": 1, "b": 1}
    assert (tmp_path / "a.jsonl").read_text() == '{"format": 1, "b": 1}\n{"format": 1, "b": 2}\n'
    assert read_json(tmp_path / "a.json") == {"b": 1}
    assert read_lines(tmp_path / "a.jsonl") == [{"b": 1}, {"b": 2}]
    (tmp_path / "a.jsonl").write_text('{"b": 1}\n{"format": 2, "b": 2}\n')
    with pytest.raises(
        RunDirError, match=r"newer undrift \(format 2, this one reads up to 1\); pip"
    ):
        read_lines(tmp_path / "a.jsonl")


def test_a_run_from_before_there_was_a_format_goes_on(tmp_path):
    config = "benchmark: pocket\nseed: 0\n"
    (tmp_path / "run.yaml").write_text(config)
    RunDir.start(tmp_path, config)
    assert (tmp_path / "run.yaml").read_text() == config
    (tmp_path / "run.yaml").write_text(f"format: 2\n{config}")
    with pytest.raises(RunDirError, match="newer undrift"):
        RunDir.start(tmp_path, config)


@pytest.mark.foreign("2.1")
@pytest.mark.parametrize(
    "place", ["pictures/cat.webp", "tasks/notes.txt", "eval/x.jsonl", "live/mine", "diagnose/a.txt"]
)
def test_replace_deletes_nothing_that_a_run_has_not_written(tmp_path, place):
    run = RunDir.start(tmp_path, "seed: 0\n")
    run.mark_done(1, "digits")
    mine = tmp_path / place
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(RunDirError, match="was not written by undrift, so nothing is deleted"):
        RunDir.start(tmp_path, "seed: 1\n", replace=True)
    assert mine.read_text() == "mine" and run.is_done(1, "digits")


@pytest.mark.foreign("2.1")
def test_replace_keeps_a_configuration_that_its_user_has_written(tmp_path):
    (tmp_path / "run.yaml").write_text("# mine\nseed: 0\n")
    with pytest.raises(RunDirError, match="was not written by undrift"):
        RunDir.start(tmp_path, "seed: 1\n", replace=True)
    assert (tmp_path / "run.yaml").read_text() == "# mine\nseed: 0\n"


def test_pages_and_tables_of_somebody_else_stay(tmp_path):
    from undrift.rundir.checks import claim_json, claim_page
    from undrift.rundir.records import Summary

    (tmp_path / "thesis.html").write_text("<html>mine</html>")
    with pytest.raises(RunDirError, match="was not written by undrift"):
        claim_page(tmp_path / "thesis.html")
    (tmp_path / "x-figures").mkdir()
    with pytest.raises(RunDirError, match="x-figures is there"):
        claim_page(tmp_path / "x.html", tmp_path / "x-figures")
    (tmp_path / "summary.json").write_text('{"mine": 1}')
    with pytest.raises(RunDirError, match="was not written by undrift"):
        claim_json(tmp_path / "summary.json", Summary)
    write_json(tmp_path / "summary.json", {"methods": {}, "margins": [], "differences": {}})
    claim_json(tmp_path / "summary.json", Summary, tmp_path / "thesis.html")


def test_the_only_copy_of_a_folder_is_never_deleted(tmp_path, monkeypatch):
    """The new folder cannot take its place, nor can the old one be put back."""
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "weights").write_text("old")
    rename, done = os.rename, []

    def refused(source, target):
        done.append(target)
        if len(done) > 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as broken, pytest.raises(RunDirError), atomic_folder(place) as made:
        broken.setattr(os, "rename", refused)
        (made / "weights").write_text("new")
    assert not place.exists()
    with atomic_folder(tmp_path / "adapter") as made:
        assert (place / "weights").read_text() == "old"  # it is put back first
        (made / "weights").write_text("new")
    assert (place / "weights").read_text() == "new"
