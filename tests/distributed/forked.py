"""Several processes of one program, forked from the tests' own, which has imported everything."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 120.0  # seconds for all of them


class Failed(Exception):
    """One of the processes failed, or they wait for each other."""


def _child(number: int, count: int, folder: Path, work: Callable[[], object]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
                   "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
                   "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    if count > 1:
        meeting = f"file://{folder}/meeting"
        patience = timedelta(seconds=TIMEOUT)
        dist.init_process_group(
            "gloo", init_method=meeting, rank=number, world_size=count, timeout=patience
        )
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def forked(count: int, folder: Path, work: Callable[..., Any], *args: Any) -> None:
    """Call `work(*args)` in so many processes; fail as soon as one of them does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meeting").unlink(missing_ok=True)
    fork = get_context("fork")
    started = [
        fork.Process(target=_child, args=(number, count, folder, lambda: work(*args)))
        for number in range(count)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + TIMEOUT
    try:
        while any(process.is_alive() for process in started):
            _check(started)
            if time.monotonic() > end:
                raise Failed("they wait for each other")
            time.sleep(0.02)
        _check(started)
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
            process.join()


def _check(started: list[Any]) -> None:
    codes = [process.exitcode for process in started]
    if any(codes):
        raise Failed(f"exit codes {codes}; what was said is above")
