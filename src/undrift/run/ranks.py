"""The processes of one command, as torchrun or accelerate launch starts them.

All of them run the same code on the same files, and a write is something they do together: each
waits until all have come to it, the first one writes, and all go on when it is there. So whatever
is looked up in a folder, all see the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from undrift.errors import ConfigError, RunDirError, UndriftError
from undrift.rundir import files
from undrift.rundir.lock import held
from undrift.tuner.distributed import processes, rank

_PATIENCE = timedelta(hours=2)  # the first process may have much to compute while others wait


def launched() -> int:
    """How many processes a launcher has started with this one; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[bool]:
    """Within this context the processes that a launcher has started work together.

    Yields:
        Whether this is the first one, which alone has something to say afterwards.

    Raises:
        ConfigError: If they are to share the model's weights among them.
    """
    if launched() == 1:
        yield True
        return
    for name, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"{what} is for your own Trainer (docs/processes.md); undrift's commands keep the "
                "whole model in every process: launch them without it"
            )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    begun = dist.is_initialized()  # by whoever calls undrift from a program of their own
    if not begun:
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        with files.writing_together(_together):
            yield rank() == 0
        dist.barrier()
    finally:
        if not begun:
            dist.destroy_process_group()


@contextmanager
def alone_in(*folders: Path) -> Iterator[None]:
    """Within this context no other command writes into these folders; all processes call it.

    Args:
        *folders: The folders; the first process holds them for all.

    Yields:
        Nothing.

    Raises:
        RunDirError: In every process, if somebody else works in one of them (see
            `undrift.rundir.lock`).
    """
    refused: UndriftError | None = None
    with ExitStack() as stack:
        try:
            for folder in folders if rank() == 0 else ():
                stack.enter_context(held(folder))
        except UndriftError as error:
            refused = error
        if said := of_all([refused and str(refused)])[0][0]:
            raise refused or RunDirError(said)
        yield
        if processes() > 1:  # held until the slowest process is through
            dist.barrier()


@contextmanager
def _together() -> Iterator[bool]:
    dist.barrier()
    yield rank() == 0
    dist.barrier()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do what is inside before the others, who then find it done."""
    if processes() > 1 and rank() > 0:
        dist.barrier()
    with files.writing_together(None):
        yield
    if processes() > 1 and rank() == 0:
        dist.barrier()


def of_all(mine: list[Any]) -> list[list[Any]]:
    """Return what every process brings, in the order of their numbers; all have to call it."""
    if processes() == 1:
        return [mine]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, mine)
    return found


def totals(*counts: int) -> list[int]:
    """Add up numbers of every process; all have to call it."""
    if processes() == 1:
        return [*counts]
    summed = torch.tensor(counts)
    dist.all_reduce(summed)
    return [int(each) for each in summed]


def facts_together(told: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Put together what a method has told of several batches of answers, see `Method.facts`."""
    found = [facts for facts in told if facts]
    if not found:
        return {}
    prompts = sum(facts["prompts"] for facts in found)
    counts = {
        name: sum(round(facts[name] * facts["prompts"] / 100) for facts in found)
        for name in found[0]
        if name != "prompts"
    }
    return {**{name: 100 * count / prompts for name, count in counts.items()}, "prompts": prompts}
