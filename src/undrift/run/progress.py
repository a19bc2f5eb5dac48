"""What a run tells while it runs: nothing, bars for people, or JSON lines for programs."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Column

from undrift.errors import one_line

EVERY = 30.0  # seconds between two lines of a log
_WORDS = {"loss": "loss", "learning_rate": "rate"}


class Progress:
    """Says nothing; the base of the others. Use it as a context.

    Attributes:
        drawn: Whether others may draw bars of their own as well.
    """

    drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        pass

    def plan(self, work: float) -> None:
        """Say how much there is to do in all, in units that cost about the same time."""

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        """Begin a stage.

        Args:
            title: What is done.
            total: In how many pieces.
            work: The whole stage's share of the planned work.
        """

    def advance(self, pieces: int = 1) -> None:
        """Say that pieces of the stage are done."""

    def resume(self, pieces: int) -> None:
        """Say that pieces of the stage were done before it began."""
        self.advance(pieces)

    def cells(self, done: int, total: int, now: str, rest: float | None) -> None:
        """Say how far a study is.

        Args:
            done: How many of its cells are done.
            total: How many there are.
            now: Which ones are running.
            rest: How many seconds it will take; None if that is not known yet.
        """

    def figures(self, **values: float) -> None:
        """Say how a training goes, at its latest step.

        Args:
            **values: Such as loss and learning_rate.
        """

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Tell something that happened.

        Args:
            kind: For programs.
            text: For people.
            **values: For programs, as JSON can hold them.
        """

    def block(self, kind: str, lines: Sequence[str], **values: Any) -> None:
        """Tell what takes several lines.

        Args:
            kind: For programs.
            lines: For people.
            **values: For programs, as JSON can hold them.
        """
        for line in lines:
            self.event(kind, line, **values)


class Bars(Progress):
    """Two bars, the whole run and the current stage, and a line for each event.

    Args:
        console: Where to draw.
    """

    drawn = True

    def __init__(self, console: Console) -> None:
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[unit]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            speed_estimate_period=300.0,
        )
        self._whole: bars.TaskID | None = None
        self._stage: bars.TaskID | None = None
        self._worth = 0.0  # planned work of one piece of the stage

    def __exit__(self, kind: object, *_: object) -> None:
        if self._whole is None:
            return
        if kind is None:
            self._bars.update(self._whole, completed=100)
        self._bars.stop()

    def plan(self, work: float) -> None:
        """Begin to draw: the bar of the whole run, in percent."""
        self._bars.start()
        self._work = max(work, 1e-9)
        self._whole = self._bars.add_task("whole run", total=100, unit="%")

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        """Draw a new bar in the place of the last stage's."""
        if self._stage is not None:
            self._bars.remove_task(self._stage)
        self._stage = self._bars.add_task(escape(one_line(title)), total=total, unit="")
        self._worth = work / max(total, 1)

    def advance(self, pieces: int = 1) -> None:
        """Move both bars."""
        if self._stage is not None:
            self._bars.advance(self._stage, pieces)
        if self._whole is not None:
            self._bars.advance(self._whole, 100 * pieces * self._worth / self._work)

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Print the text above the bars."""
        self._bars.console.print(escape(one_line(text)), highlight=False)


class Lines(Progress):
    """Plain lines, for a log: how far it is, every half minute and at the end of a stage.

    Args:
        console: Where to write.
        every: Seconds between two lines.
        now: Tells the seconds.
    """

    def __init__(
        self,
        console: Console,
        every: float = EVERY,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._every, self._now = console, every, now
        self._title, self._total, self._done, self._before = "", 0, 0, 0
        self._start = self._last = now()
        self._known: dict[str, float] = {}

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        """Begin to count."""
        self._title, self._total, self._done, self._before = title, total, 0, 0
        self._start = self._last = self._now()
        self._known = {}

    def advance(self, pieces: int = 1) -> None:
        """Count, and write a line where it is time."""
        self._done += pieces
        over = self._done >= self._total
        if over or self._now() - self._last >= self._every:
            self._last = self._now()
            self._say(over)

    def resume(self, pieces: int) -> None:
        """Count what took no time."""
        self._done = self._before = pieces

    def figures(self, **values: float) -> None:
        """Keep them for the next line."""
        self._known |= values

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Write the text."""
        self._console.out(one_line(text), highlight=False)

    def _say(self, over: bool) -> None:
        took = self._now() - self._start
        said = [f"{self._title}: {self._done} of {self._total}"]
        said += [f"{_WORDS[key]} {value:.3g}" for key, value in self._known.items()]
        left = took * (self._total - self._done) / max(1, self._done - self._before)
        said.append(f"{clock(took)} taken" if over else f"about {clock(left)} left")
        self._console.out(one_line(", ".join(said)), highlight=False)


class Comments(Progress):
    """Each text as a comment, for what stands above YAML.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Write the text."""
        self._console.out(f"# {one_line(text)}", highlight=False)


class StudyBar(Progress):
    """One bar for a whole study, which runs are going on, and a line for each that has ended.

    Args:
        console: Where to draw.
    """

    drawn = True

    def __init__(self, console: Console) -> None:
        self._bar = bars.Progress(
            bars.TextColumn("cells"),
            bars.BarColumn(20),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[rest]}"),
            bars.TextColumn("[dim]{task.description}", table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=console,
        )
        self._task: bars.TaskID | None = None

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.stop()

    def cells(self, done: int, total: int, now: str, rest: float | None) -> None:
        """Draw the bar."""
        self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task("", total=total, rest="")
        left = "" if rest is None else f"about {clock(rest)} left"
        said = escape(one_line(f"now {now}")) if now else ""
        self._bar.update(self._task, completed=done, total=total, description=said, rest=left)

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Print the text above the bar."""
        self._bar.console.print(escape(one_line(text)), highlight=False)


class JsonLines(Progress):
    """One JSON object a line, for each event and the end of each stage.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def event(self, kind: str, text: str, **values: Any) -> None:
        """Print `{"event", "seconds", ...}`."""
        line = {"event": kind, "seconds": round(time.monotonic() - self._start, 2), **values}
        self._console.out(json.dumps(line, ensure_ascii=False), highlight=False)

    def block(self, kind: str, lines: Sequence[str], **values: Any) -> None:
        """Print one object."""
        self.event(kind, "", **values)


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds, or as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def calm(threads: int | None) -> None:
    """Set the threads, and keep the libraries' own bars and warnings off the screen.

    Args:
        threads: Of the CPU; torch's own choice if None.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch
    from transformers import logging as theirs

    if threads is not None:
        torch.set_num_threads(threads)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
