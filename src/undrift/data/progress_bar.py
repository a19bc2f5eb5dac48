"""A bar over things that are read or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def bar(
    items: Iterable[T], title: str, *, total: int | None = None, shown: bool = True
) -> Iterator[Iterable[T]]:
    """Show a bar while things are gone through; it ends with the block.

    (`rich.progress.track` is a generator: after an error in its loop it ends whenever garbage is
    collected, which may be while another bar holds the lock it waits for.)

    Args:
        items: The things.
        title: What is done with them.
        total: How many there are, where they cannot tell.
        shown: Whether there is a bar at all.

    Yields:
        The things.
    """
    from rich.progress import Progress

    def each() -> Iterator[T]:
        for item in items:
            yield item
            drawn.advance(task)

    with Progress(transient=True, disable=not shown) as drawn:
        task = drawn.add_task(title, total=total or length_hint(items) or None)
        yield each()
