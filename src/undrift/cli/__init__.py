"""The command line, a file a command. What is heavy is imported inside it: help comes at once."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from undrift.cli.ask import evaluate, predict
from undrift.cli.compare import compare
from undrift.cli.diagnose import HELP as DIAGNOSE_HELP
from undrift.cli.diagnose import diagnose
from undrift.cli.doctor import HELP as DOCTOR_HELP
from undrift.cli.doctor import doctor
from undrift.cli.learn import HELP as LEARN_HELP
from undrift.cli.learn import learn
from undrift.cli.report import report
from undrift.cli.run import run
from undrift.cli.score import score
from undrift.cli.show import show
from undrift.cli.study import HELP as STUDY_HELP
from undrift.cli.study import study
from undrift.errors import ConfigError, UndriftError
from undrift.untrusted import half_character


class Commands(TyperGroup):
    """The commands; what is typed must be UTF-8, as records keep it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an argument that is not UTF-8, such as the name of a file in latin-1."""
        for given in args:
            if half_character(given):
                raise ConfigError(
                    f"the argument {given[:100]!r} is not UTF-8; rename the file, or type the text "
                    "in a UTF-8 terminal"
                )
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Commands,
    help="Teach a multimodal LLM one task after another without forgetting the earlier ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command(help=LEARN_HELP)(learn)
app.command(help=STUDY_HELP)(study)
app.command("eval")(evaluate)
app.command()(predict)
app.command()(score)
app.command()(compare)
app.command(help=DIAGNOSE_HELP)(diagnose)
app.command()(report)
app.command(help=DOCTOR_HELP)(doctor)
app.command("list")(show)


def main() -> None:
    """Run the command line; a mistake of the user is one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # no name of a file can be one too strange to print
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except UndriftError as error:
        _fail(error, 1)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer makes the first the second, with 130
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        Console(stderr=True).print("stopped; the same command goes on where it was")
        sys.exit(130)


def _fail(error: Exception, status: int) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
    sys.exit(status)
