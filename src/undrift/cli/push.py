"""The command `undrift push`: an adapter to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from undrift.cli import options
from undrift.errors import one_line
from undrift.run.progress import calm


def push(
    adapter: Annotated[Path, typer.Argument(help="An adapter, or a folder that holds one.")],
    repo: Annotated[str, typer.Argument(help="Where to, such as me/invoices-v2.")],
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made is for everybody to see.")
    ] = False,
    with_tests: Annotated[
        bool,
        typer.Option("--with-tests", help="Send the test questions and their pictures as well."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Send an adapter to the Hugging Face Hub: weights, configuration, records and card.

    No test question, answer, picture or prediction is sent unless --with-tests says so, and no folder
    of this machine is named. What the adapter keeps of the data are weights and, of a method with a
    history, second moments of the layers' inputs.
    """  # noqa: E501 (the lines are those of the help)
    calm(None)
    from undrift.run.adapters import find_adapter
    from undrift.run.hub import check_repo, not_sent, to_send
    from undrift.run.hub import push as send

    check_repo(repo)
    folder = find_adapter(adapter)
    console = Console(soft_wrap=True, highlight=False)
    with to_send(folder, with_tests=with_tests) as made:
        files = {
            path.relative_to(made).as_posix(): path.stat().st_size
            for path in sorted(made.rglob("*"))
            if path.is_file()
        }
        if not as_json:
            for name, size in files.items():
                console.print(escape(one_line(f"{size:>13,} bytes  {name}")))
            for name in not_sent(folder):
                console.print(escape(one_line(f"     not sent        {name}")))
        address = None if dry_run else send(made, repo, public=public)
    if as_json:
        options.print_json({"adapter": str(folder), "files": files, "address": address})
    elif dry_run:
        console.print(escape(f"nothing was sent; without --dry-run it goes to {repo}"))
    else:
        console.print(escape(f"sent to {address}"))
