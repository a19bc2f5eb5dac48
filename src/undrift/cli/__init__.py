"""The command line, a file a command. What is heavy is imported inside it: help comes at once."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from undrift.cli.ask import evaluate
from undrift.cli.chat import chat
from undrift.cli.compare import compare
from undrift.cli.diagnose import diagnose
from undrift.cli.doctor import doctor
from undrift.cli.export import export
from undrift.cli.failures import GOES_ON, advice, refusal
from undrift.cli.learn import learn
from undrift.cli.options import process_number
from undrift.cli.predict import predict
from undrift.cli.push import push
from undrift.cli.remember import remember
from undrift.cli.report import report
from undrift.cli.run import run
from undrift.cli.score import score
from undrift.cli.show import show
from undrift.cli.stopping import stop, stoppable
from undrift.cli.study import study
from undrift.cli.verify import verify
from undrift.errors import ConfigError, UndriftError
from undrift.untrusted import half_character

_TOGETHER = ("run", "learn", "eval", "diagnose")  # what several processes can do
_FIRST_SPEAKS = 3.0  # seconds
_TESTED = "linux"
_EMPTY = re.compile(r"--[\w-]+=")


class Commands(TyperGroup):
    """The commands; what is typed must be UTF-8, as records keep it, and hold something."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an argument that is not UTF-8, such as the name of a file in latin-1, or empty.

        An empty one is a shell's variable that was never set; some commands would take it for an
        option that was not given.
        """
        for before, given in zip(["undrift", *args], args, strict=False):
            if not given or _EMPTY.fullmatch(given):
                raise ConfigError(
                    f"nothing is given after {given.removesuffix('=') or before}; give a value, or "
                    "leave out the option"
                )
            if half_character(given):
                raise ConfigError(
                    f"the argument {given[:100]!r} is not UTF-8; rename the file, or type the text "
                    "in a UTF-8 terminal"
                )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args and args[0] not in _TOGETHER:
            raise ConfigError(
                f"undrift {args[0]} works in one process: start it without torchrun or accelerate "
                f"({', '.join(_TOGETHER)} take several)"
            )
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Commands,
    help="Teach a multimodal LLM one task after another without forgetting the earlier ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"undrift {version('undrift')}")
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version."),
    ] = False,
) -> None:
    pass


_COMMANDS = (
    *(run, learn, remember, study, evaluate, predict, chat, score),
    *(export, push, compare, diagnose, report, verify, doctor, show),
)
for command in _COMMANDS:
    name = {evaluate: "eval", show: "list"}.get(command, command.__name__)
    # the docstring is the help, in which a bracket would be markup
    app.command(name, help=str(command.__doc__).replace("[", "\\["))(command)


def main() -> None:
    """Run the command line; whatever ends it early is told in one line.

    The exit status is 2 after a mistake of the user's, 1 after what could not be done, 128 and the
    signal's number after a stop. Faults of undrift's own keep their traceback; with
    UNDRIFT_TRACEBACK set all others show it as well.
    """
    command = "".join(sys.argv[1:2])
    for stream in (sys.stdout, sys.stderr):  # no name of a file can be one too strange to print
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            if note := untested(sys.platform):
                _say(note)
            with stoppable():
                app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk or a closed pipe is met here, not at the exit
    except BaseException as ended:
        done = isinstance(ended, SystemExit) and not ended.code
        if _interrupted(ended) or (stop.number is not None and not done):
            stop.ignore()
            if not process_number():
                _say("stopped" + "; the same command goes on where it was" * (command in GOES_ON))
            sys.exit(128 + (stop.number or signal.SIGINT))
        if isinstance(ended, SystemExit | BrokenPipeError):  # whoever read has left: no more words
            _let_go(sys.stdout)
            sys.exit(ended.code if isinstance(ended, SystemExit) else 1)
        said = str(ended) + advice(ended, command) if isinstance(ended, UndriftError) else None
        said = said or refusal(ended, command)
        if said is None:
            raise  # a fault of undrift's own
        if os.environ.get("UNDRIFT_TRACEBACK"):
            traceback.print_exception(ended)
        _let_go(sys.stdout)
        number, who = process_number(), ""
        if number:  # the launcher soon ends it if the first one has said the same
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(_FIRST_SPEAKS)
            who = f"process {number}: "
        _say(f"[bold red]error:[/] {who}{escape(said)}")
        sys.exit(2 if isinstance(ended, ConfigError) else 1)


def untested(system: str) -> str | None:
    """Say that undrift is not tested on a system, as `sys.platform` names it; None if it is."""
    if system == _TESTED or process_number():
        return None
    return f"note: undrift is tested on Linux only, not on {system} (docs/promises.md)"


def _interrupted(ended: BaseException) -> bool:
    """Tell whether it was Ctrl-C, of which typer makes an exit with status 130."""
    return isinstance(ended, KeyboardInterrupt) or (
        isinstance(ended, SystemExit) and ended.code == 130
    )


def _say(text: str) -> None:
    try:
        Console(stderr=True, soft_wrap=True).print(text, highlight=False)
    except OSError:
        _let_go(sys.stderr)


def _let_go(stream: TextIO | None) -> None:
    """Drop what a stream cannot write, which Python would try again, and complain of, at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
