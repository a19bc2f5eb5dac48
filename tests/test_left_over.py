"""What killed processes leave half written or half deleted, and what clears it away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from undrift.rundir import RunDir, atomic_folder, atomic_write, check_writable, files
from undrift.rundir.files import remove, sweep, temporary_folder

CONFIG = "benchmark: pocket\nmethod: {name: same}\nseed: 0\n"


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def name_of(path: Path, pid: int, kind: str = "", host: str | None = None) -> Path:
    host = files._HOST if host is None else host
    return path.with_name(f"{path.name}.{pid}-{host}0123abcd{kind}.writing")


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_what_a_dead_process_was_writing_is_cleared_away(tmp_path):
    RunDir.start(tmp_path, CONFIG)
    pid = dead()
    make(name_of(tmp_path / "matrix.json", pid))
    make(name_of(tmp_path / "tasks/01-a/adapter", pid) / "adapter_model.safetensors")
    make(name_of(tmp_path / "tasks/01-a/training/checkpoint-2", pid, ".removed") / "random.json")
    make(tmp_path / f"tasks/01-a/adapter.{pid}-0123abcd.writing/half")  # of an older undrift
    make(tmp_path / f"run.yaml.{pid}.writing")
    make(tmp_path / f"run.yaml.{10**30}.writing")
    RunDir.start(tmp_path, CONFIG)
    assert not [*tmp_path.rglob("*.writing")]
    assert (tmp_path / "run.yaml").is_file()


def test_what_a_living_process_is_writing_stays(tmp_path):
    mine, another = (name_of(tmp_path / "a.json", pid) for pid in (os.getpid(), os.getppid()))
    far = name_of(tmp_path / "a.json", dead(), host="ffff" if files._HOST != "ffff" else "eeee")
    for path in (mine, another, far):
        make(path)
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, another, far])
    old = time.time() - 2 * 86400  # the number is another process's by now
    for path in (mine, another, far):
        os.utime(path, (old, old))
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_killed_and_not_waited_for_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    path = make(name_of(tmp_path / "a.json", process.pid))
    sweep(tmp_path)
    assert path.exists()
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    sweep(tmp_path)
    assert not path.exists()
    process.communicate()


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path):
    aside = make(name_of(tmp_path / "adapter", dead(), ".replaced") / "weights").parent
    sweep(tmp_path)
    assert not aside.exists() and (tmp_path / "adapter/weights").read_text() == "x"
    aside = make(name_of(tmp_path / "adapter", dead(), ".replaced") / "half").parent
    sweep(tmp_path)
    assert not aside.exists() and os.listdir(tmp_path / "adapter") == ["weights"]


def test_a_folder_is_never_seen_half_deleted(tmp_path, monkeypatch):
    make(tmp_path / "checkpoint-2/a")
    seen = []

    def killed(path, **_):
        seen.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2").exists()
    assert [path.name.endswith(".removed.writing") for path in seen] == [True]


def test_writing_into_a_folder_clears_it_of_ours_alone(tmp_path):
    pid = dead()
    left = make(name_of(tmp_path / "features.safetensors", pid))
    theirs = make(tmp_path / f"notes.{pid}.writing"), make(tmp_path / "mine.writing")
    below = make(name_of(tmp_path / "below/a.json", pid))
    atomic_write(tmp_path / "b.json", "{}")
    assert not left.exists() and below.exists() and all(path.exists() for path in theirs)


def test_a_probe_that_was_killed_is_found_by_the_next(tmp_path):
    left = make(name_of(tmp_path / ".undrift", dead()))
    check_writable(tmp_path / "run")
    assert not left.exists() and not list(tmp_path.iterdir())


def test_a_temporary_folder_that_was_killed_is_found_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    left = make(name_of(tmp_path / "undrift", dead()) / "a").parent
    theirs = make(name_of(tmp_path / "undrift", os.getpid()) / "a").parent
    check_writable(tmp_path / "run")  # every command begins with it
    assert not left.exists() and theirs.exists()
    remove(theirs)
    left.mkdir()
    files._SWEPT.clear()
    with temporary_folder() as folder, atomic_folder(folder / "b") as made:
        assert made.is_dir() and not left.exists()
    assert not list(tmp_path.iterdir())
