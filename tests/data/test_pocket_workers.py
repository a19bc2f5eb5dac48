"""The processes that draw the pocket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from undrift.data.benchmarks import pocket
from undrift.errors import DataError

PROGRAM = """
import time
from concurrent.futures import ProcessPoolExecutor
from undrift.data.benchmarks.pocket import _end_with_parent

with ProcessPoolExecutor(3, initializer=_end_with_parent) as workers:
    jobs = [workers.submit(time.sleep, 60) for _ in range(3)]
    print(*workers._processes, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_workers_end_when_their_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        workers = it.stdout.readline().split()
        it.send_signal(signal.SIGKILL)
        assert len(workers) == 3
        # the pipe is at its end: nobody holds the other one
        assert it.communicate(timeout=20) == ("", None)


def _killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_worker_that_is_killed_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pocket, "draw_split", _killed)
    with pytest.raises(DataError, match=r"draws the pocket was killed.*the same command") as told:
        pocket.benchmark(tmp_path, progress=False)
    assert "\n" not in str(told.value)
