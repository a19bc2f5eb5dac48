"""What every fuzz leaves out: the wait for the disk, which decides nothing that is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _unsynced() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undrift.rundir.files._sync", lambda _: None)
        yield
