"""Count how many files of undrift a reader would walk through to follow one step, answer or page.

    python scripts/walk.py
    PYTHONPATH=OTHER/src python scripts/walk.py       # of another source

A profiler hook notes every call of a Python function whose code lies under `src/undrift`:

- files: how many files such calls enter; functions: how many functions of them;
- moves: how many calls lead from one file to another, seen from the nearest function of undrift
  that is on the stack; a way back is no move.

Functions without a name (lambdas, comprehensions) are part of those that they stand in. Small runs
of `same` and `moelora` on two tasks of the pocket, four steps a task, are made first; measured are

- step: the third optimiser step of the second task of `same`, from its `on_step_begin` to the next
  one's: forward and backward pass, optimiser, all callbacks, and fetching the next batch;
- answer: one test question put to its last adapter: a cell of the matrix that has one question,
  up to the line in the file of predictions;
- report: the whole command `undrift report` of both runs, diagnosed, as `make demo` does it.

Everything is done once before it is measured, so that no import counts.

Before the source was put in order (5fae45b) that was

             files  functions   moves
    step        22         82     335
    answer      25        101     172
    report      41        250    2675

and afterwards

    step        16         87     379
    answer      17         90     225
    report      20        234    1345
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers.trainer_callback import CallbackHandler

import undrift
from undrift import cli

HOME = str(Path(undrift.__file__).parent) + os.sep
CELL = "undrift.run.evaluate:measure_cell"
SMALL = ("train.batch_size=4", "train.max_steps=4", "method.experts=4", "method.rank=2")


class Walk:
    """What was called of undrift while the hook was on."""

    def __init__(self) -> None:
        self.functions: set[CodeType] = set()
        self.moves = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call; what `sys.setprofile` wants."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(HOME) or code.co_name[0] == "<":
            return
        if code.co_name == "find_spec":  # undrift's own finder, asked by any import
            return
        self.functions.add(code)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(HOME):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != code.co_filename:
            self.moves += 1

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within this context the hook is on."""
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)

    def files(self) -> list[str]:
        """The files that were entered, from the package's folder."""
        return sorted({code.co_filename.removeprefix(HOME) for code in self.functions})

    def row(self) -> dict[str, int]:
        """The three numbers."""
        return {"files": len(self.files()), "functions": len(self.functions), "moves": self.moves}


def undrift_command(*words: object) -> None:
    """Run a command of undrift in this process, and say nothing."""
    sys.argv = ["undrift", *map(str, words)]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise


def make_run(folder: Path, method: str) -> Walk:
    """Make a run of two tasks, and follow the third step of its second task."""
    walk, begun = Walk(), CallbackHandler.on_step_begin
    trainings: list[object] = []

    def on_step_begin(self: Any, args: Any, state: Any, control: Any) -> Any:
        sys.setprofile(None)
        if state.global_step == 0:
            trainings.append(self)
        if len(trainings) == 2 and state.global_step == 2:
            sys.setprofile(walk)
        return begun(self, args, state, control)

    CallbackHandler.on_step_begin = on_step_begin
    try:
        (folder / "order.txt").write_text("charts\nwords\n")
        words = ["run", "pocket", "--order", folder / "order.txt", "--limit", 8, "--quiet"]
        given = [word for each in SMALL for word in ("--set", each)]
        undrift_command(*words, "--method", method, "--out", folder / method, *given)
    finally:
        sys.setprofile(None)
        CallbackHandler.on_step_begin = begun
    return walk


def of_answer(folder: Path, cell: str) -> Walk:
    """Ask the run's last adapter one question, twice, and follow the second time."""
    module, _, name = cell.partition(":")
    *owners, called = name.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    ask: Callable[..., Any] = getattr(owner, called)
    words = ("eval", folder / "same", "--task", "charts", "--limit", 1, "--quiet")
    undrift_command(*words, "--out", folder / "warm")
    walk = Walk()

    def followed(*args: Any, **kwargs: Any) -> Any:
        with walk.on():
            return ask(*args, **kwargs)

    setattr(owner, called, followed)
    try:
        undrift_command(*words, "--out", folder / "asked")
    finally:
        setattr(owner, called, ask)
    return walk


def of_report(folder: Path) -> Walk:
    """Diagnose both runs, draw their page twice, and follow the second time."""
    runs = (folder / "moelora", folder / "same")
    undrift_command("diagnose", *runs, "--quiet")
    undrift_command("report", *runs, "--out", folder / "warm.html")
    walk = Walk()
    with walk.on():
        undrift_command("report", *runs, "--out", folder / "report.html")
    return walk


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", default=CELL, help="what answers a cell (older source)")
    parser.add_argument("--files", action="store_true", help="name the files too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_run(folder, "moelora")
        walks = {"step": make_run(folder, "same")}
        walks |= {"answer": of_answer(folder, options.cell), "report": of_report(folder)}
    if options.json:
        print(json.dumps({name: walk.row() for name, walk in walks.items()}))
        return
    print(f"{'':8}{'files':>10}{'functions':>11}{'moves':>8}")
    for name, walk in walks.items():
        print(f"{name:8}{len(walk.files()):10}{len(walk.functions):11}{walk.moves:8}")
        if options.files:
            print(*(f"    {file}" for file in walk.files()), sep="\n")


if __name__ == "__main__":
    main()
