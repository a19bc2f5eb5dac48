"""Runs a study: cells side by side, each an `undrift run` in its own process, results as they come.

What is finished on disk is not run again, an unfinished run goes on by itself, and an error in one
cell leaves the others alone. The results are written anew after every cell.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from undrift.errors import RunDirError, unknown
from undrift.run.processes import Process, begin, stopped_with_us
from undrift.run.progress import Progress, clock
from undrift.run.stopping import finishing_steps
from undrift.run.study_plan import Cell, Plan, Row, best_rate, next_rate
from undrift.rundir import RunDir, atomic_write, read_record
from undrift.rundir.files import remove
from undrift.rundir.lock import held
from undrift.rundir.records import Manifest, StudyResults
from undrift.rundir.study_results import both, compact, run_entry, surroundings

PROGRAM = (sys.executable, "-m", "undrift.cli")
Paired = Callable[[Sequence[tuple[Mapping[str, Any], Path]], str], list[dict[str, Any]]]
"""Called with the entry and the folder of every finished cell, and the label of `against`."""
_TICK = 0.1  # seconds between two looks at the processes
_TAIL = 12  # lines of a failed cell's output that are shown
_FAILED = float("-inf")
_CHANGED = (
    "it is finished, but with other data or defaults than the study began with: was undrift "
    "changed meanwhile? Delete {} and run the same command again"
)


@dataclass(frozen=True)
class Failure:
    """A cell that ended with an error.

    Args:
        cell: The cell.
        command: What was run.
        error: The last lines that it wrote.
    """

    cell: Cell
    command: str
    error: str


class Study:
    """All cells of a study, done or to be done.

    Args:
        plan: Makes the cells.
        command: How the study was called, for the results.
        work: The folder for the runs.
        table: Writes the results as a table in Markdown.
        only: Labels to run; all by itself. The others keep what there is of them.
        prune: Delete the adapters of each cell once it is finished.
        program: What is put before `run ...`.
        paired: Compares rows with the one of `against`, question by question.

    Attributes:
        failures: By folder name, the cells that have failed since this object was made.

    Raises:
        UnknownName: If `only` names no row.
    """

    def __init__(
        self,
        plan: Plan,
        command: str,
        work: Path,
        table: Callable[[Mapping[str, Any]], str],
        only: Sequence[str] = (),
        *,
        prune: bool = False,
        program: Sequence[str] = PROGRAM,
        paired: Paired | None = None,
    ) -> None:
        labels = [row.label for row in plan.study.rows]
        for label in only:
            if label not in labels:
                raise unknown("label", label, labels)
        self.plan = plan
        self.command = command
        self.work = work
        self.table = table
        self.only = tuple(only) or tuple(labels)
        self.program = tuple(program)
        self._paired = paired
        self.failures: dict[str, Failure] = {}
        self._prune = prune
        self._finished: dict[str, float] = {}
        self._begun: set[str] = set()  # folders of the cells that were started here or are done
        self._cells = self._known_cells()

    # ------------------------------------------------------------ what there is

    @property
    def cells(self) -> list[Cell]:
        """The cells of the rows to run, as many as are known so far."""
        return [cell for cell in self._cells if cell.row.label in self.only]

    @property
    def todo(self) -> list[Cell]:
        """The cells that wait, all rows of a seed before the next seed, each folder once."""
        waiting = {cell.name: cell for cell in self.cells if self.last(cell) is None}
        return sorted(waiting.values(), key=lambda c: self.plan.study.seeds.index(c.seed))

    @property
    def files(self) -> tuple[Path, Path]:
        """The JSON file and the Markdown file of the results."""
        base = self.plan.study.results
        return base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.md")

    @property
    def finished(self) -> list[Path]:
        """The folders of the cells that are done, each once."""
        return [self.work / name for name in self._finished]

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell's run."""
        return self.work / cell.name

    def argv(self, cell: Cell) -> list[str]:
        """Return the command that runs a cell."""
        return [*self.program, *cell.words, "--out", str(self.folder(cell)), "--quiet"]

    def command_of(self, cell: Cell) -> str:
        """Return that command as a user types it."""
        return shlex.join(["undrift", *self.argv(cell)[len(self.program) :]])

    def last(self, cell: Cell) -> float | None:
        """Return what a cell has reached at the end.

        Args:
            cell: The cell.

        Returns:
            The last average in percent; minus infinity if it failed, None if it is not done.
        """
        if cell.name in self.failures:
            return _FAILED
        if cell.name not in self._finished:
            last = cell.last(RunDir(self.folder(cell)))
            if last is None:
                return None
            self._finished[cell.name] = last
            if self._prune:
                RunDir(self.folder(cell)).check_ours("tasks")
                RunDir(self.folder(cell)).sweep()
                for adapter in self.folder(cell).glob("tasks/*/adapter"):
                    remove(adapter)
        return self._finished[cell.name]

    # ------------------------------------------------------------ running

    def go(self, jobs: int, progress: Progress) -> None:
        """Run what is not done yet; write the results after every cell.

        What the results say of a cell that waits stays, if its command and rate are the same.

        Args:
            jobs: How many side by side.
            progress: What is told meanwhile.

        Raises:
            KeyboardInterrupt: If it was stopped; the children have been stopped too.
            RunDirError: If another study works in the folder.
        """
        with held(self.work):
            self._go(jobs, progress)

    def _go(self, jobs: int, progress: Progress) -> None:
        self.write()
        waiting, running, took = self.todo, list[Process](), list[float]()
        with stopped_with_us(running):
            while waiting or running:
                self._fill(waiting, running, jobs)
                self._tell(progress, waiting, running, fmean(took) if took else None)
                time.sleep(_TICK)
                ended = [process for process in running if process.status is not None]
                for process in ended:
                    running.remove(process)
                    took.append(process.seconds)
                    self._settle(process, progress)
                if ended or not running:  # without any of ours, another study is at it
                    waiting = self.todo
            self._tell(progress, [], [], None)
        self.write()

    def _fill(self, waiting: Iterable[Cell], running: list[Process], jobs: int) -> None:
        """Start what waits, as far as there is room and nobody else runs it."""
        ours = {process.name for process in running}
        for cell in waiting:
            if len(running) >= jobs:
                return
            if cell.name not in ours:
                with finishing_steps():  # a stop must not come between a child and its place here
                    process = begin(cell.name, self.argv(cell), self.work / f"{cell.name}.log")
                    running += [process] if process is not None else []
                    self._begun.add(cell.name)

    def _settle(self, process: Process, progress: Progress) -> None:
        """Take note of how a process has ended."""
        process.log.close()
        cell = next(cell for cell in self._cells if cell.name == process.name)
        seconds = round(process.seconds, 1)
        last = self.last(cell) if process.status == 0 else None
        values: dict[str, Any] = {**cell.known, "folder": str(self.folder(cell)), "took": seconds}
        if last is not None:
            text = f"{cell.title}: last {last:.1f} ({clock(seconds)})"
            progress.event("cell", text, last=last, **values)
        else:
            said = process.tail(_TAIL) or f"it ended with status {process.status} without a word"
            if process.status == 0:
                said = _CHANGED.format(self.folder(cell))
            self.failures[cell.name] = Failure(cell, self.command_of(cell), said)
            progress.event("failed", f"{cell.title}: failed ({clock(seconds)})", **values)
        self._cells = self._known_cells()
        self.write()

    def _tell(
        self,
        progress: Progress,
        waiting: Sequence[Cell],
        running: Sequence[Process],
        mean: float | None,
    ) -> None:
        """Say how many cells are done, which run, and how many seconds are left."""
        total = len({cell.name for cell in self.cells})
        titles = [c.title for c in waiting if c.name in {process.name for process in running}]
        rest = None
        if mean is not None and running:
            left = mean * len(waiting) - sum(min(mean, process.seconds) for process in running)
            rest = left / len(running)
        progress.cells(total - len(waiting), total, ", ".join(titles), rest)

    def _known_cells(self) -> list[Cell]:
        """List the cells, as far as what is done says which there are."""
        study = self.plan.study
        return [c for row in study.rows for c in self._of_row(row, study.first_rates[row.label])]

    def _of_row(self, row: Row, first: Sequence[float | None]) -> list[Cell]:
        """List a row's cells: `widen` adds rates; one that `drop` leaves out has one seed."""
        study, rates = self.plan.study, list(first)
        while True:
            cells = self.plan.of_row(row, rates)
            if study.drop is not None and len(rates) > 1:
                early = [cell for cell in cells if cell.seed == cells[0].seed]
                means = self._means(early)
                if means is None:  # a rate was added: what the others had begun stays
                    return [c for c in cells if c in early or c.name in self._begun]
                if (beyond := self._beyond(means, row.label)) is not None:
                    rates = sorted([*means, beyond])
                    continue
                floor = max(means.values()) - study.drop
                stay = {rate for rate, mean in means.items() if mean >= floor}
                cells = [c for c in cells if c.seed == cells[0].seed or c.rate in stay]
            means = self._means(cells)
            beyond = None if means is None else self._beyond(means, row.label)
            if means is None or beyond is None:
                return cells
            rates = sorted([*means, beyond])

    def _beyond(self, means: Mapping[float, float], label: str) -> float | None:
        """Return the rate beyond an edge where the best one lies, if such are asked for."""
        first = self.plan.study.rates.get(label) if self.plan.study.widen else None
        return next_rate(means, first) if first else None

    def _means(self, cells: Sequence[Cell]) -> dict[float, float] | None:
        """Return what each rate of a row's cells has reached; None while one is not done."""
        found: dict[float, list[float]] = {}
        for cell in cells:
            if cell.rate is not None:
                last = self.last(cell)
                if last is None:
                    return None
                found.setdefault(cell.rate, []).append(last)
        return {rate: fmean(values) for rate, values in found.items()}

    def _best(self, label: str) -> float | None:
        """Return the best rate of a row, once all its cells are done, of those that stayed in."""
        cells = [cell for cell in self._cells if cell.row.label == label]
        count = Counter(cell.rate for cell in cells)
        stayed = [cell for cell in cells if count[cell.rate] == max(count.values())]
        return best_rate(self._means(stayed) or {}) if self._means(cells) else None

    # ------------------------------------------------------------ results

    def results(self) -> dict[str, Any]:
        """Gather all that is finished, and what the results have of cells that wait.

        Returns:
            The content of the results' JSON file.
        """
        study, old = self.plan.study, self._written()
        done = [c for c in self._cells if self.last(c) is not None and c.name in self._finished]
        manifests = [
            read_record(RunDir(self.folder(cell)).manifest_file, Manifest) for cell in done
        ]
        made_with = surroundings(manifests)
        runs: list[dict[str, Any]] = []
        stayed: set[str] = set()  # labels of which there are runs that are not at hand
        chosen: dict[str, float] = {}
        for row in study.rows:
            of_row, all_at_hand = self._runs_of(row.label, old)
            runs += of_row
            best = self._best(row.label)
            if not all_at_hand:
                stayed.add(row.label)
                best = best or old.get("chosen", {}).get(row.label)
            if best is not None:
                chosen[row.label] = best
        if stayed:
            made_with = both(old, made_with)
        out: dict[str, Any] = {"command": self.command, **made_with}
        if study.against is not None:
            out["against"] = study.against
            if paired := self._pairs(done, stayed, old):
                out["paired"] = paired
        if study.rates:
            out["chosen"] = chosen
        if study.drop is not None:
            out["drop"] = study.drop
        if self.failures:
            out["failed"] = [
                {**failure.cell.known, "command": failure.command, "error": failure.error}
                for failure in self.failures.values()
            ]
        return {**out, "runs": runs}

    def _runs_of(self, label: str, old: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """Gather a row: the runs at hand, and of other cells what the results have of them.

        Returns:
            The entries, and whether all of them are of runs at hand.
        """
        before = [run for run in old.get("runs", ()) if run["label"] == label]
        cells = [cell for cell in self._cells if cell.row.label == label]
        if label not in self.only and not any(cell.name in self._finished for cell in cells):
            return before, not before
        known = {(run["command"], run["learning_rate"]): run for run in before}
        found, all_at_hand = [], True
        for cell in cells:
            if cell.name in self._finished:
                found.append(self._entry(cell))
            elif cell.name not in self.failures:
                rate = cell.settings["learning_rate"] if cell.trained else None
                if run := known.get((self._command(cell), rate)):
                    found.append(run)
                    all_at_hand = False
        return found, all_at_hand

    def _pairs(
        self, done: Sequence[Cell], stayed: Set[str], old: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Pair the rows that are at hand with the one of `against`; others keep their lines."""
        found: list[dict[str, Any]] = []
        against = self.plan.study.against
        if self._paired is not None and against is not None:
            cells = [(self._entry(cell), self.folder(cell)) for cell in done]
            found = self._paired(cells, against)
        kept = [line for line in old.get("paired", ()) if {line["label"], against} & stayed]
        labels = {line["label"] for line in kept}
        return [*(line for line in found if line["label"] not in labels), *kept]

    def _entry(self, cell: Cell) -> dict[str, Any]:
        row, command = cell.row, self._command(cell)
        return run_entry(
            self.folder(cell), row.label, cell.setting, row.options, command, cell.trained
        )

    @staticmethod
    def _command(cell: Cell) -> str:
        return shlex.join(["undrift", *cell.words])

    def write(self) -> None:
        """Write the results, once there are any."""
        results = self.results()
        if results["runs"]:
            texts = (compact(results), self.table(results))
            for path, text in zip(self.files, texts, strict=True):
                if not path.is_file() or path.read_text(encoding="utf-8") != text:
                    atomic_write(path, text)

    def _written(self) -> dict[str, Any]:
        file, table = self.files
        if file.exists():
            return read_record(file, StudyResults)
        if table.exists():
            raise RunDirError(
                f"{table} is there without {file.name}, so no study has written it; move it away, "
                "or name other `results:` in the study's file"
            )
        return {}
