"""What goes wrong in one of several processes ends all of them."""

from __future__ import annotations

import time

import pytest

from tests.distributed.forked import forked
from tests.run.test_lock import holder
from undrift.errors import RunDirError
from undrift.run.ranks import alone_in, joined
from undrift.rundir.paths import LOCK
from undrift.tuner.distributed import rank

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_all_processes_are_refused_where_the_first_one_is(tmp_path):
    run = tmp_path / "run"

    def refused() -> None:
        with joined(), pytest.raises(RunDirError, match="is in use: process"), alone_in(run):
            raise AssertionError

    def alone() -> None:
        with joined(), alone_in(run), alone_in(run):
            time.sleep(0.5 * rank())  # it is held until the slowest is through
            assert (run / LOCK).is_file()
            (run / str(rank())).touch()

    another = holder(run)
    forked(2, tmp_path / "meeting", refused)
    another.communicate()
    forked(2, tmp_path / "meeting", alone)
    assert sorted(path.name for path in run.iterdir()) == ["0", "1"]
