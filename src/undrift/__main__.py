"""The program `undrift`: ready to be stopped before anything else of it is imported.

Importing takes a second, and inside a library's import an interrupt may be turned into another
error, or be lost. So until the command line is imported a stop ends the process on the spot:
nothing has been written yet. From then on `undrift.cli.stopping` ends it in order.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as typing's, which takes long to import
if TYPE_CHECKING:
    from typing import NoReturn

# As in `undrift.cli.failures`, whose import is what must not be waited for here.
_GOES_ON = ("run", "learn", "study", "eval", "diagnose")
_PROCESS = os.getpid()


def _end(number: int, _frame: object) -> NoReturn:
    if os.getpid() == _PROCESS:  # a worker that was forked from it ends without a word
        on = "; the same command goes on where it was" if "".join(sys.argv[1:2]) in _GOES_ON else ""
        os.write(2, f"stopped{on}\n".encode())
    os._exit(128 + number)


try:
    import signal
except KeyboardInterrupt:
    _end(2, None)


def main() -> None:
    """Run the command line."""
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows lacks the last
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, _end)
    except KeyboardInterrupt:
        _end(2, None)
    from undrift.cli import main as command

    command()


if __name__ == "__main__":
    main()
