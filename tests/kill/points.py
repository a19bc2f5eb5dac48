"""Points at which commands are killed, drawn from a seed, and what must hold after each."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.kill.commands import CHECKPOINT, PATIENCE, Command, Started, commands, make_place, start
from tests.kill.moments import KINDS, PROGRESS, Counters, watch_everything
from undrift.rundir.sums import SUMS, read_sums, sum_of

_SHARES = {"run": 9, "run-told": 2, "learn": 4, "eval": 3, "study": 4}
_DOUBLE, _CLOCK, _CELL, _SIZE = 0.25, 0.12, 0.5, 0.4
_ROOM = 1500
_ANY = "any"
_TIMES = {
    "seconds",
    "cpu_seconds",
    "peak_bytes",
    "step_cpu_ms",
    "tokens_per_second",
    "cost",
    "commit",
}
"""What may be another one when a command is run twice; a commit while its files are edited."""
_PYTHONS = re.compile(r"tmp(/[a-z0-9_]{8})?")
"""What Python leaves where it looks whether files can be made."""
_FINISHED = re.compile(
    r"cache/.*|(.*/)?(tasks/[^/]+|out)/adapter/(?!README)[^/]+|.*\.jsonl|.*/DONE|.*\.webp|"
    r".*/result\.json|out/tests/.*|"  # a card is written anew with the scores
    r".*/learn\.yaml"
)
"""What is not written again once it is there, below the folder of a point."""


@dataclass(frozen=True)
class Point:
    """Where a command is killed.

    Args:
        number: Of the point among those of its seed.
        command: Its name.
        ranks: On how many processes.
        where: Which process: the rank; of a study 0 for itself and 1 for its cells.
        kind: What is being done; "clock" if it is killed from outside, by the clock.
        at: The number of the moment, or the share of the time that the command takes.
        again: The moment of any kind at which what goes on is killed too; 0 for none.
        jobs: How many cells of a study run side by side.
        group: Whether all processes of a study are killed at once.
        stop: The signal that asks it to stop, instead of killing it.
        fault: What every write meets from that moment on, instead of a kill: "ENOSPC", "EROFS",
            "EIO"; or "size": no file can become larger than `at`, in bytes.
    """

    number: int
    command: str
    ranks: int
    where: int
    kind: str
    at: float
    again: int = 0
    jobs: int = 1
    group: bool = False
    stop: str = ""
    fault: str = ""

    def __str__(self) -> str:
        who = {0: "", 1: " cell"}[self.where] if self.command == "study" else f" rank {self.where}"
        when = f"{self.at:.0%} of its time" if self.kind == "clock" else f"moment {self.at:g}"
        also = f", then moment {self.again}" if self.again else ""
        several = f" of {self.ranks}" if self.ranks > 1 else ""
        many = ", all at once" if self.group else ""
        how = f", {self.stop or self.fault}" if self.stop or self.fault else ""
        return f"{self.command}{who}{several}: {self.kind}, {when}{also}{many}{how}"


@dataclass(frozen=True)
class Whole:
    """A command that nobody has killed.

    Args:
        counted: Its moments by process.
        files: What it has left, see `left`.
        seconds: How long it took.
    """

    counted: Sequence[Mapping[str, int]]
    files: Mapping[str, Any]
    seconds: float


class Harness:
    """A folder with all commands done once, from which points are drawn and killed.

    Args:
        place: An empty folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        make_place(place)
        watch_everything()
        self.commands = commands(place)
        begun = start(self.commands["run"], place / "start", place, 1, [Counters()])
        assert begun.finish() == {0: 0}, begun.log.read_text()
        self._whole: dict[tuple[str, int], Whole] = {}

    def whole(self, name: str, ranks: int) -> Whole:
        """Return what a command does and leaves that nobody kills."""
        if (name, ranks) not in self._whole:
            self._whole[name, ranks] = self._rehearse(self.commands[name], ranks)
        return self._whole[name, ranks]

    def _rehearse(self, command: Command, ranks: int) -> Whole:
        root = self.place / f"whole-{command.name}-{ranks}"
        counters = [Counters(), Counters()]
        begun = time.monotonic()
        started = start(command, root, self.place, ranks, counters)
        assert not any(started.finish().values()), started.log.read_text()
        seconds = time.monotonic() - begun
        return Whole([each.all() for each in counters], left(root), seconds)

    def points(self, count: int, seed: int | str) -> list[Point]:
        """Draw points: every command has its share, every kind of moment of it the same chance."""
        random = Random(f"kill {seed}")
        names = [name for name, share in _SHARES.items() for _ in range(share)]
        decks: dict[Any, list[str]] = {}
        drawn, deck = [], list[str]()
        for number in range(1, count + 1):
            if not deck:
                deck = random.sample(names, len(names))
            drawn.append(self._draw(number, deck.pop(), random, decks))
        return drawn

    def stops(self, count: int, seed: int | str) -> list[Point]:
        """Draw moments at which a command in one process is asked to stop."""
        random = Random(f"stop {seed}")
        drawn = []
        for number in range(1, count + 1):
            name = random.choice([*_SHARES])
            counted = self.whole(name, 1).counted[0]
            kind = random.choice(
                [k for k, n in counted.items() if n and k not in (_ANY, *PROGRESS)]
            )
            at, how = random.randint(1, counted[kind]), random.choice(("SIGTERM", "SIGINT"))
            drawn.append(Point(number, name, 1, 0, kind, at, stop=how))
        return drawn

    def faults(self, count: int, seed: int | str) -> list[Point]:
        """Draw moments from which on nothing can be written, and sizes that no file exceeds."""
        random = Random(f"fault {seed}")
        drawn = []
        for number in range(1, count + 1):
            name = random.choice([name for name, share in _SHARES.items() for _ in range(share)])
            study = name == "study"
            ranks = 1 if study else random.choice(self.commands[name].ranks)
            whole = self.whole(name, ranks)
            if random.random() < _SIZE:
                sizes = [len(each) for each in whole.files.values() if isinstance(each, bytes)]
                size = random.choice([size for size in sizes if size > _ROOM])
                at = random.randrange(_ROOM, size)  # what is said has room in its log
                drawn.append(Point(number, name, ranks, 0, "size", at, fault="size"))
                continue
            where = 0 if study else random.randrange(ranks)
            counted = whole.counted[where]
            kind = random.choice([k for k, n in counted.items() if n and k in KINDS])
            fault = random.choice(("ENOSPC", "ENOSPC", "EROFS", "EIO"))
            at = random.randint(1, counted[kind])
            drawn.append(Point(number, name, ranks, where, kind, at, fault=fault))
        return drawn

    def _draw(self, number: int, name: str, random: Random, decks: dict[Any, list[str]]) -> Point:
        study = name == "study"
        ranks = 1 if study else random.choice(self.commands[name].ranks)
        where = int(random.random() < _CELL) if study else random.randrange(ranks)
        counted = self.whole(name, ranks).counted[where]
        group = study and where == 0 and random.random() < 0.5
        again = 0
        if random.random() < _DOUBLE:
            again = random.randint(1, counted[_ANY])
        if random.random() < _CLOCK and not (study and where == 1):
            return Point(number, name, ranks, where, "clock", round(random.random(), 3), again,
                         2 if study else 1, group)  # fmt: skip
        deck = decks.setdefault((name, ranks, where), [])
        if not deck:
            kinds = [k for k, n in counted.items() if n and k not in (_ANY, *PROGRESS)]
            deck += random.sample(kinds, len(kinds))
        kind = deck.pop()
        at = random.randint(1, counted[kind])
        return Point(number, name, ranks, where, kind, at, again, 1, group)

    def check(self, point: Point) -> list[str]:
        """Kill a command at a point, run it again, and say what is wrong afterwards."""
        root = self.place / f"point-{point.number}"
        shutil.rmtree(root, ignore_errors=True)
        begun: list[Started] = []
        command, whole = self.commands[point.command], self.whole(point.command, point.ranks)
        wrong: list[str] = []
        counters = [Counters(), Counters()]
        wrong += self._end(point, command, root, counters, whole.seconds, begun)
        counted = [counters]
        finished = finished_files(root)
        if point.again:
            counters = [Counters(), Counters()]
            deadly = (point.where, _ANY, point.again)
            begun.append(start(command, root, self.place, point.ranks, counters, deadly))
            begun[-1].finish()
            counted.append(counters)
            wrong += untouched(root, finished)
            finished = finished_files(root)
        last = [Counters(), Counters()]
        counted.append(last)
        started = start(command, root, self.place, point.ranks, last, jobs=point.jobs)
        statuses = started.finish()
        if any(statuses.values()):
            wrong.append(f"the same command ends with {statuses}: {_tail(started.log)}")
        for each in (*begun, started):  # a killed study's runs go on, the last one to its page
            _gone(each)
        wrong += untouched(root, finished)
        wrong += differences(whole.files, left(root))
        wrong += repeated(point, whole, counted)
        if not wrong:
            shutil.rmtree(root)
        return wrong

    def _end(
        self,
        point: Point,
        command: Command,
        root: Path,
        counters: Sequence[Counters],
        whole: float,
        every: list[Started],
    ) -> Iterator[str]:
        """Kill a command, or ask it to stop and say what is wrong with how it did."""
        clock = point.kind == "clock"
        deadly = None if clock else (point.where, point.kind, int(point.at))
        begun = time.monotonic()
        number = signal.Signals[point.stop or "SIGKILL"]
        started = start(
            command, root, self.place, point.ranks, counters, deadly, point.jobs, number,
            point.fault,
        )  # fmt: skip
        every.append(started)
        if clock:
            while started.look() and time.monotonic() - begun < point.at * whole:
                time.sleep(0.002)
            if point.where not in started.statuses:
                if point.group:
                    started.signal(number, group=True)
                else:
                    Started(started.pids[point.where : point.where + 1], started.log).signal(number)
        statuses = started.finish()
        if point.group:
            started.signal(signal.SIGKILL, group=True)
            _gone(started)
        if point.stop:
            yield from _unfriendly(started, signal.Signals[point.stop])
            return
        if point.fault:
            yield from _unclear(point, started, root)
            return
        cell = point.command == "study" and point.where == 1  # the study tells of its end
        if not (clock or cell or -signal.SIGKILL in statuses.values()):
            raise AssertionError(f"{point}: it was not killed ({statuses}): {_tail(started.log)}")


def _unfriendly(started: Started, number: int) -> Iterator[str]:
    """Say what is wrong with the end of a command that was asked to stop."""
    status, said = started.statuses[0], started.log.read_text(errors="replace")
    started.log.write_text("")
    if status not in (0, 128 + number):
        yield f"it ended with {status}"
    lines = said.strip().splitlines()
    if status and lines != ["stopped; the same command goes on where it was"]:
        yield f"it said {lines[-12:]}"
    if _group_alive(started.pids[0]):
        yield "a process of it is left"


def _unclear(point: Point, started: Started, root: Path) -> Iterator[str]:
    """Say what is wrong with the end of a command that could not write."""
    said = started.log.read_text(errors="replace")
    logs = [each.read_text(errors="replace") for each in root.rglob("*.log")]
    started.log.write_text("")
    if any("Traceback" in text for text in (said, *logs)):
        yield f"it shows a traceback: {' | '.join(said.strip().splitlines()[-12:])}"
    status = started.statuses.get(point.where)
    if status not in (0, 1):
        yield f"it ended with {status}: {said[-300:]}"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if status and point.command != "study" and not 1 <= len(errors) <= point.ranks:
        yield f"it said {said.strip().splitlines()[-12:]}"
    for path in root.rglob("*.writing"):
        yield f"{path.relative_to(root)} is left"


def _gone(started: Started) -> None:
    """Wait until no process of a command is left."""
    end = time.monotonic() + PATIENCE
    for pid in started.pids:
        while _group_alive(pid) and time.monotonic() < end:
            time.sleep(0.01)


def _group_alive(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def left(root: Path) -> dict[str, Any]:
    """Read all that a command has left in a point's folder, without what tells its time."""
    return {
        str(path.relative_to(root)): _content(path)
        for path in sorted(root.rglob("*"))
        if path.suffix != ".log"
        and not _PYTHONS.fullmatch(str(path.relative_to(root)))
        and (path.is_file() or not any(path.iterdir()))
    }


def _content(path: Path) -> Any:
    if path.is_dir():
        return "an empty folder"
    if path.name == "report.html":
        return path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    if path.name == SUMS:  # the manifest's digest is of its times, too
        found = read_sums(path.parent)
        rest = {name: digest for name, digest in found.items() if name != "manifest.json"}
        return rest, found["manifest.json"] == sum_of(path.with_name("manifest.json"))
    if path.suffix == ".json" and path.name != "data.json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".md" and path.parent.name == "results":
        return None
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in _TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def differences(whole: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Say which files are missing, left over, or hold something else."""
    for name in sorted({*whole, *found}):
        if name not in found:
            yield f"{name} is missing"
        elif name not in whole:
            yield f"{name} is left over"
        elif whole[name] != found[name]:
            yield f"{name} is another one"


def finished_files(root: Path) -> dict[str, tuple[int, int]]:
    """Note when what is finished was written."""
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_file() and _FINISHED.fullmatch(name) and ".writing" not in name:
            if path.name == "train.jsonl" and not (path.parent / "adapter").is_dir():
                continue  # written just before the adapter
            about = path.stat()
            found[name] = (about.st_ino, about.st_mtime_ns)
    return found


def untouched(root: Path, finished: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Say which finished files were written again."""
    now = finished_files(root)
    for name, about in finished.items():
        if now.get(name) != about:
            yield f"{name} was finished, and written again"


def repeated(point: Point, whole: Whole, counted: Sequence[Sequence[Counters]]) -> Iterator[str]:
    """Say whether more was done again than a kill can cost: steps since a snapshot, one batch."""
    if point.command == "study":
        return
    kills = len(counted) - 1
    for what, cost in (("steps", CHECKPOINT), ("batches", 1)):
        for rank in range(point.ranks):
            total = sum(each[rank][what] for each in counted)
            once = whole.counted[rank][what]
            if not once <= total <= once + kills * cost:
                yield f"rank {rank} has done {total} {what}, {once} would do"


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-6:])
