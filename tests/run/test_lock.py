"""One command at a time in a folder: the second is refused, a lock ends with its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures.make_before import copy_to
from undrift import cli
from undrift.errors import RunDirError
from undrift.rundir import RunDir
from undrift.rundir.lock import held
from undrift.rundir.paths import LOCK

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from undrift.rundir.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    """A process that holds a folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_works_there_and_a_killed_one_holds_nothing(tmp_path):
    first = holder(tmp_path / "run")
    who = rf"run is in use: process {first.pid} on {socket.gethostname()} has worked there since 2"
    for _ in range(2):  # being refused takes nothing from the one who holds it
        with pytest.raises(RunDirError, match=who) as caught, held(tmp_path / "run"):
            raise AssertionError
        assert "\n" not in str(caught.value)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert os.listdir(tmp_path / "run") == [LOCK]
    with held(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
        (tmp_path / "run" / "mine").touch()
    assert os.listdir(tmp_path / "run") == ["mine"]


def test_who_ends_in_order_leaves_nothing(tmp_path):
    first = holder(tmp_path / "a" / "run")
    first.communicate()
    assert not os.listdir(tmp_path)


def test_a_thread_that_holds_it_goes_on_and_another_one_is_refused(tmp_path):
    with held(tmp_path / "run"):
        with held(tmp_path / "other" / ".." / "run"):
            pass
        assert (tmp_path / "run" / LOCK).is_file()
    with (
        taken(tmp_path / "run"),
        pytest.raises(RunDirError, match=f"process {os.getpid()} on"),
        held(tmp_path / "run"),
    ):
        raise AssertionError


def test_the_lock_is_no_part_of_a_run(tmp_path):
    with held(tmp_path):
        run = RunDir.start(tmp_path, "seed: 0\n")
        assert run.only_planned
        run.mark_done(1, "digits")
        RunDir.start(tmp_path, "seed: 1\n", replace=True)
        assert sorted(os.listdir(tmp_path)) == ["run.yaml", LOCK]
    assert os.listdir(tmp_path) == ["run.yaml"]


@pytest.mark.parametrize("content", ["mine", '{"host": "a"}', "link", "folder"])
def test_a_file_of_somebody_else_stays(tmp_path, content):
    lock = tmp_path / LOCK
    (tmp_path / "empty").touch()
    if content == "folder":
        lock.mkdir()
    elif content == "link":
        lock.symlink_to(tmp_path / "empty")
    else:
        lock.write_text(content)
    with pytest.raises(RunDirError, match="was not written by undrift; move it"), held(tmp_path):
        pass
    assert lock.is_dir() or lock.is_symlink() or lock.read_text() == content
    assert not (tmp_path / "empty").stat().st_size


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSYS, "has no locks"),
        (errno.ENOLCK, "has no locks"),
        (errno.EIO, "cannot write .*Input/output error"),
    ],
)
def test_a_file_system_without_locks_is_refused_in_one_line(tmp_path, monkeypatch, number, said):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunDirError, match=said) as caught, held(tmp_path / "run"):
        raise AssertionError
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_keeps_nothing_of_the_lock(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunDirError, match="free some space"), held(tmp_path / "run"):
            raise AssertionError
    assert not os.listdir(tmp_path)
    with held(tmp_path / "run"):
        pass


def test_the_lock_of_another_one_stays(tmp_path):
    with held(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / LOCK).write_text("another's")
    assert (tmp_path / "run" / LOCK).read_text() == "another's"


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Within this context another thread holds a folder."""
    locked, over = threading.Event(), threading.Event()

    def hold() -> None:
        with held(folder):
            locked.set()
            over.wait(60)

    with ThreadPoolExecutor() as threads:
        done = threads.submit(hold)
        assert locked.wait(60)
        try:
            yield
        finally:
            over.set()
            done.result()


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    return copy_to(tmp_path_factory.mktemp("before") / "before")


STUDY = (
    "benchmark: pocket\nseeds: [0]\nrows: [finetune]\nresults: results/x\nrun: {data: nowhere}\n"
)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("run coin --data nowhere --backbone pocket --out here", "here"),
        ("run coin --data nowhere --backbone pocket --out here --replace", "here"),
        ("learn pocket --data data/colours.jsonl --test data/red-test.jsonl --out here", "here"),
        ("eval runs/same --out here", "here"),
        ("diagnose runs/disco runs/same", "runs/same"),
        ("study study.yaml --work here", "here"),
    ],
)
def test_a_command_is_refused_before_it_reads_or_writes(before, monkeypatch, capsys, words, folder):
    def there() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in before.rglob("*") if p.is_file()}

    monkeypatch.chdir(before)
    (before / "study.yaml").write_text(STUDY)
    monkeypatch.setattr(sys, "argv", ["undrift", *words.split()])
    with taken(before / folder):
        was = there()
        with pytest.raises(SystemExit, match="1"):
            cli.main()
        assert there() == was
    said = capsys.readouterr().err
    assert f"error: {folder} is in use: process {os.getpid()} on" in said
    assert len(said.splitlines()) == 1


def test_what_only_reads_takes_no_lock(before, monkeypatch):
    monkeypatch.chdir(before)
    monkeypatch.setattr(sys, "argv", ["undrift", "compare", "runs/same", "runs/disco", "--json"])
    with taken(before / "runs" / "same"), pytest.raises(SystemExit, match="0"):
        cli.main()


def test_a_run_made_in_python_holds_its_folder_and_notices_another(make_run, tmp_path):
    first = make_run("zeroshot")
    with taken(tmp_path / "run"):
        for begin in (first.go, lambda: make_run("zeroshot")):
            with pytest.raises(RunDirError, match="run is in use: process"):
                begin()
    make_run("finetune", overwrite=True)
    with pytest.raises(RunDirError, match="holds another run"):
        first.go()
