"""The processes that draw the pocket."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

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
