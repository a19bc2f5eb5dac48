"""What holds for every test: offline, one thread or $UNDRIFT_TEST_THREADS, no cache touched."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("UNDRIFT_TEST_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", os.environ["UNDRIFT_TEST_THREADS"])

import hypothesis
import pytest
import torch

torch.set_num_threads(int(os.environ["UNDRIFT_TEST_THREADS"]))
# How long an example takes says something of the machine: it decides nothing.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

# A shell that starts the tests in the background has them, and all they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Hide all that was imported from the garbage collector, which would look through it often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Put back what a command line that ended in this process has set, for processes to come."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `undrift WORDS` in this process; return its exit status, output and errors."""
    from undrift import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["undrift", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
