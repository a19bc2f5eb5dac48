"""How the readers of other people's files are fuzzed, and what each is held to.

A file of tests is about one reader, and its tests share that reader's cases: 100 in `make test` and
1,000 in `make test-slow`, the same ones every time; in `make fuzz` new ones, as many as CASES says.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

from undrift.errors import UndriftError

CASES = int(os.environ.get("FUZZ_CASES", "100"))
SECOND = 1.0  # of CPU time, so that a busy machine fails nothing


def many(tests: int) -> settings:
    """Decorate a test made with `given`, one of so many that share the cases of a reader."""
    return settings(
        max_examples=-(-CASES // tests),
        deadline=None,
        derandomize=CASES <= 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def held() -> Iterator[None]:
    """Let our own errors of one line pass, and nothing else; over a second fails as well."""
    said = None
    gc.disable()  # what the tests before have left is not this reader's
    start = time.thread_time()
    try:
        yield
    except UndriftError as error:
        said = str(error)
    finally:
        spent = time.thread_time() - start
        gc.enable()
    assert said is None or said.strip(), "an error without a message"
    assert "\n" not in (said or ""), f"more than a line: {said}"
    assert spent < SECOND, f"{spent:.2f} s of CPU time"
