"""A stop while a command works: what is open is closed, and one line says that it was stopped.

Ctrl-C, and SIGTERM and SIGHUP as schedulers and terminals send them, interrupt the work where it
is; a training finishes its step and leaves a snapshot first. Whoever does not let go in time is
ended as by a kill, which every command's files stand.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from undrift.run.stopping import Stopped, request

SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
GRACE = 15.0  # seconds for closing what is open; a study gives its runs ten
_SAME_PRESS = 1.0  # seconds within which a second signal is the first one's echo
_AT_ONCE = 0.05
_SHOW_CURSOR = b"\x1b[?25h"


class _Stop:
    """The one stop of this process.

    Attributes:
        number: The signal; None while nobody has asked.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._process = os.getpid()
        self._since = 0.0
        self._lost = False
        self._said = False
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """Interrupt the work from now on, instead of ending the process."""
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # as under nohup
                self._before[number] = before
                signal.signal(number, self._interrupt)
        if hasattr(signal, "SIGALRM"):
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._remind)

    def end(self) -> None:
        """Put back what there was; an alarm that is still to come would end whoever goes on."""
        if self.number is not None:
            _ring(0)
        while self._before:
            signal.signal(*self._before.popitem())

    def ignore(self) -> None:
        """Hear no more signals: the last word is said, and the process is ending."""
        self._said = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def lost(self) -> None:
        """Interrupt again, soon: the exception was raised where Python drops it."""
        self._lost = True
        _ring(_AT_ONCE)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            os._exit(128 + number)  # a worker that was forked from us ends without a word
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if _importing(frame):  # a library may drop the exception there; nothing is half done
                self._kill(number, frame)
            _ring(GRACE)
            if request.heard:  # the step is finished and a snapshot written, if there is time
                request.asked = True
                return
            raise Stopped
        if time.monotonic() - self._since > _SAME_PRESS:
            self._kill(number, frame)

    def _remind(self, number: int, frame: FrameType | None) -> None:
        if self._lost:
            self._lost = False
            _ring(GRACE)
            raise Stopped
        self._kill(self.number or number, frame)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        if self._said:
            os._exit(128 + number)
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
        before = self._before.get(number)
        if callable(before):
            before(number, frame)  # ends the process, see `undrift.__main__`
        raise Stopped


stop = _Stop()


@contextmanager
def stoppable() -> Iterator[None]:
    """Interrupt what is inside where it is when the process is asked to stop.

    Yields:
        Nothing.
    """
    heard = sys.unraisablehook

    def unraisable(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped):
            stop.lost()
        else:
            heard(dropped)

    stop.begin()
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = heard
        if stop.number is None:
            stop.end()


def _importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _ring(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
