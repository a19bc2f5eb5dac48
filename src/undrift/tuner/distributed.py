"""Several processes: their running sums are summed, never averaged, and their rows gathered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from undrift.errors import ConfigError

_LEFT_OUT = ContextVar("_LEFT_OUT", default=False)


class Running(Protocol):
    """What has sums that every process makes of its own examples."""

    def running(self) -> Mapping[str, Tensor]:
        """Name the sums; they are written into."""
        ...


def rank() -> int:
    """The number of this process, 0 where there is one only."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """Put the rows of all processes below each other, in the order of the processes.

    A trainer deals a batch's examples out in that order, so this is the batch of one process. All
    processes have to call it.

    Args:
        rows: Of this process, (n, ...); n may differ.

    Returns:
        Of all, without a graph; `rows` itself in one process.
    """
    if processes() == 1:
        return rows
    rows = rows[:0] if _LEFT_OUT.get() else rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(processes())]
    dist.all_gather(counts, count)
    sizes = [int(each) for each in counts]
    mine = rows.new_zeros(max(sizes), *rows.shape[1:])
    mine[: len(rows)] = rows.detach()
    parts = [torch.empty_like(mine) for _ in sizes]
    dist.all_gather(parts, mine)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def full_tensor(value: Tensor) -> Tensor:
    """Gather a tensor that FSDP2 has sharded; all processes have to call it.

    Args:
        value: A tensor, sharded or not.

    Returns:
        All of it, a tensor like any other.
    """
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(held: Tensor, value: Tensor) -> Tensor:
    """Shard a tensor as FSDP2 has sharded another one; all processes have to call it.

    Args:
        held: The other one, sharded or not.
        value: All of it, the same in every process.

    Returns:
        The value, sharded as `held` is.
    """
    if not isinstance(held, DTensor):
        return value
    return distribute_tensor(value.to(held.device), held.device_mesh, held.placements)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether FSDP2 has sharded a model's parameters."""
    return any(isinstance(p, DTensor) for p in model.parameters())


@contextmanager
def opened_embedding(embedding: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within this context an embedding can be called outside a forward pass of its model.

    FSDP2's hooks are left aside: called first, the embedding would be a root of its own for them.

    Args:
        embedding: The embedding.

    Yields:
        What gives its rows for the ids of tokens.
    """
    sharded = is_sharded(embedding)
    with full_parameters(embedding, ["weight"]):
        yield embedding.forward if sharded else embedding


@contextmanager
def full_parameters(model: nn.Module, adapters: Collection[str]) -> Iterator[None]:
    """Within this context adapters that FSDP2 has sharded are full, to read and to write.

    All processes have to go through it, and write the same. Nothing is done to what is not
    sharded.

    Args:
        model: The model.
        adapters: The adapters' names; whatever is trained counts as well.

    Raises:
        ConfigError: If a parameter was put in the place of another one, which FSDP2 cannot see.
    """
    sharded = [
        (module, name, p)
        for prefix, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(p, DTensor)
        and (p.requires_grad or not {*prefix.split("."), name}.isdisjoint(adapters))
    ]
    put = [nn.Parameter(full_tensor(p.detach()), p.requires_grad) for _, _, p in sharded]
    for (module, name, _), p in zip(sharded, put, strict=True):
        setattr(module, name, p)
    try:
        yield
        if any(
            getattr(module, name, None) is not p
            for (module, name, _), p in zip(sharded, put, strict=True)
        ):
            raise ConfigError(
                "the method has put new parameters in the place of those that FSDP2 has sharded; "
                "learn this task under DDP"
            )
    finally:
        for (module, name, p), now in zip(sharded, put, strict=True):
            setattr(module, name, p)
            with torch.no_grad():
                p.copy_(sharded_like(p, now.detach()))


@contextmanager
def left_out(statistics: Running) -> Iterator[None]:
    """Within this context nothing that this process sees counts, though it does what all do.

    Args:
        statistics: Whose sums are put back.
    """
    kept = [(value, value.clone()) for value in statistics.running().values()]
    before = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(before)
        for value, was in kept:
            value.copy_(was)


@contextmanager
def summed(statistics: Iterable[Running]) -> Iterator[None]:
    """Within this context every rank holds the running sums of ALL ranks.

    One flattened all-reduce (SUM) for all linears on the way in; on the way out every rank but the
    first sets its own to zero, so that the next sum is right again. Nothing happens in one process.

    Args:
        statistics: All of a model's, in the same order on every rank; on one device.
    """
    parts = [value for each in statistics for value in each.running().values()]
    if processes() == 1 or not parts:
        yield
        return
    flat = torch.cat([part.flatten().double() for part in parts])
    dist.all_reduce(flat)
    for part, value in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(value.view_as(part))
    yield
    if rank() > 0:
        for each in parts:
            each.zero_()
