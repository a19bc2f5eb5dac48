"""A stop that lets a training finish its step and leave a snapshot.

Ctrl-C and the signals of schedulers (see `undrift.cli.stopping`) ask for it; only inside
`finishing_steps` is there somebody who listens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """The process was asked to stop."""


class _Request:
    """Whether this process was asked to stop.

    Attributes:
        heard: Whether a training will look before its next step.
        asked: Whether somebody has asked since.
    """

    heard = False
    asked = False


request = _Request()


@contextmanager
def finishing_steps() -> Iterator[None]:
    """Within this context a stop is asked for, not forced: `request.asked` says so.

    Raises:
        Stopped: Behind it, if a stop was asked for and nothing inside has stopped.
    """
    request.heard = True
    try:
        yield
        if request.asked:
            raise Stopped
    finally:
        request.heard = request.asked = False
