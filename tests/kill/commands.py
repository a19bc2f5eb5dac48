"""The commands that are killed, on a tiny backbone and two tiny tasks, each in a forked process."""

from __future__ import annotations

import atexit
import errno
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from tests.kill import moments
from tests.kill.moments import Counters
from tests.run.tiny import save_tiny, tiny_benchmark
from undrift import __main__ as program
from undrift import cli
from undrift.run import processes

TRAIN, TEST = 9, 5  # four examples a step: the last step of an epoch has one
CHECKPOINT = 2  # steps between snapshots
_SETTINGS = ("train.batch_size=4", "train.epochs=2", "train.learning_rate=0.01",
             f"train.checkpoint_steps={CHECKPOINT}", "train.log_steps=1", "eval.batch_size=4",
             "method.rank=2")  # fmt: skip
PATIENCE = 90.0  # seconds for a command


@dataclass(frozen=True)
class Command:
    """A command line that is killed.

    Args:
        name: What it is called in the table.
        words: What is typed after `undrift`.
        ranks: On how many processes it can be started.
    """

    name: str
    words: tuple[str, ...]
    ranks: tuple[int, ...] = (1, 2)


def commands(place: Path) -> dict[str, Command]:
    """Return all commands by their names; the place must be made (see `make_place`)."""
    base = ("--backbone", str(place / "backbone"), "--quiet")
    settings = tuple(word for text in _SETTINGS for word in ("--set", text))
    data = ("run", "folder", "--data", str(place / "data/tasks.yaml"), "--out", "out")
    same = ("--method", "same", "--set", "method.experts=2")
    learned = ("learn", str(place / "start/out"), "--data", str(place / "data/isred.json"))
    learn = (*learned, "--out", "out", "--max-new-tokens", "6", *settings, *base)
    made = [
        Command("run", (*data, *same, *settings, *base)),
        Command("run-told", (*data, "--method", "modalprompt", *settings[:-2], *base)),
        Command("learn", learn),
        Command("eval", ("eval", str(place / "start/out"), "--out", "out", "--batch-size", "2",
                         *base)),
        Command("study", ("study", str(place / "study.yaml"), "--work", "work", "--quiet"), (1,)),
    ]  # fmt: skip
    return {command.name: command for command in made}


def make_place(place: Path) -> None:
    """Write backbone, data, a study's file, and the run that `learn` and `eval` start from."""
    save_tiny(place / "backbone")
    tasks = tiny_benchmark(place / "data", TRAIN, TEST).tasks
    for task in tasks:
        for split, examples in (("train", task.train), ("test", task.test)):
            rows = [
                {
                    "id": each.id,
                    "image": str(each.images[0].relative_to(place / "data")),
                    "question": each.question,
                    "answer": each.answers[0],
                }
                for each in examples
            ]
            name = task.name if split == "train" else f"{task.name}-test"
            (place / f"data/{name}.json").write_text(json.dumps(rows))
    (place / "data/tasks.yaml").write_text(
        "".join(
            f"- {{name: {task.name}, train: {task.name}.json, test: {task.name}-test.json, "
            "max_new_tokens: 6}\n"
            for task in tasks[:2]
        )
    )
    (place / "study.yaml").write_text(
        f"benchmark: folder\nseeds: [0, 1]\nrows: [finetune]\nresults: results/small\n"
        f"run:\n  data: {place / 'data/tasks.yaml'}\n  backbone: {place / 'backbone'}\n"
        f"  train: {{max_steps: 2, checkpoint_steps: 1, batch_size: 4}}\n  method: {{rank: 2}}\n"
    )


@dataclass
class Started:
    """Processes of one command.

    Args:
        pids: Those that run, by rank.
        log: What they say.
    """

    pids: list[int]
    log: Path
    statuses: dict[int, int] = field(default_factory=dict)

    def look(self) -> bool:
        """Tell whether one is still running."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self.pids)

    def signal(self, number: int, *, group: bool = False) -> None:
        for rank, pid in enumerate(self.pids):
            if group:
                _kill(os.killpg, pid, number)
            elif rank not in self.statuses:
                _kill(os.kill, pid, number)

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait until all have ended; tell whether they did in time."""
        end = time.monotonic() + seconds
        while self.look():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def finish(self) -> dict[int, int]:
        """Wait as a launcher does: when one has failed the others are ended."""
        end = time.monotonic() + PATIENCE
        while self.look() and not any(self.statuses.values()) and time.monotonic() < end:
            time.sleep(0.005)
        if self.look() and not self.wait(1.0):
            self.signal(signal.SIGTERM)
            if not self.wait(3.0):
                self.signal(signal.SIGKILL)
                self.wait()
        return self.statuses


def _kill(how: Any, pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        how(pid, number)


def start(
    command: Command,
    root: Path,
    data: Path,
    ranks: int = 1,
    counters: Sequence[Counters] = (),
    deadly: tuple[int, str, int] | None = None,
    jobs: int = 1,
    number: int = signal.SIGKILL,
    fault: str = "",
) -> Started:
    """Start a command in a folder.

    Args:
        command: The command.
        root: The folder; caches and temporary files lie in it as well.
        data: What is read there is a moment.
        ranks: How many processes it has.
        counters: One for each process; of a study, one for it and one for all its cells.
        deadly: (which of the counters, kind, number): where a process kills itself.
        jobs: How many cells of a study run side by side.
        number: The signal.
        fault: What fails from that moment on instead, such as "ENOSPC"; "size" if no file can
            become larger than the number says, in bytes.

    Returns:
        Its processes.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    log = root.with_name(f"{root.name}.log")
    meeting = root.with_name(f"{root.name}.meeting")
    meeting.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pids = []
    for rank in range(ranks):
        if (pid := os.fork()) == 0:
            try:
                os.setsid()
                _quiet(log)
                _environment(root, rank, ranks, meeting)
                moments.watch.signal = number
                moments.watch.error = getattr(errno, fault, 0)
                if fault == "size" and deadly and deadly[0] == rank:
                    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                    resource.setrlimit(resource.RLIMIT_FSIZE, (deadly[2], limit))
                own = None if deadly is None or deadly[0] != rank else deadly[1:]
                if command.name == "study":
                    _fork_cells(counters[1], deadly[1:] if deadly and deadly[0] == 1 else None,
                                root, data)  # fmt: skip
                words = [*command.words, "--jobs", str(jobs)] * (command.name == "study")
                moments.begin(counters[rank], own, root, data)
                _command(words or list(command.words))
            finally:
                os._exit(99)
        pids.append(pid)
    return Started(pids, log)


def _quiet(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _environment(root: Path, rank: int, ranks: int, meeting: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(root)
    torch.set_num_threads(1)
    os.environ |= {"UNDRIFT_CACHE": str(root / "cache"), "TMPDIR": str(root / "tmp"),
                   "COLUMNS": "100"}  # fmt: skip
    tempfile.tempdir = None
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                       "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks,
            timeout=timedelta(seconds=PATIENCE),
        )  # fmt: skip


def _command(words: list[str]) -> None:
    """Run a command line, and end this process with its status."""
    atexit._clear()  # what the parent has to do at its end
    sys.argv = ["undrift", *words]
    program._PROCESS = os.getpid()
    cli.stop.__init__()
    status: Any = 0
    try:
        program.main()
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 98
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fork_cells(counters: Counters, deadly: tuple[str, int] | None, root: Path, data: Path) -> None:
    """Let a study fork its cells, which costs less than starting Python."""

    class Forked:
        """What `processes` uses of a `subprocess.Popen`."""

        def __init__(self, argv: Sequence[str], *, stdout: Any, **_: Any) -> None:
            self._status: int | None = None
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    for number in (signal.SIGTERM, signal.SIGHUP):
                        signal.signal(number, signal.SIG_DFL)
                    os.dup2(stdout.fileno(), 1)
                    os.dup2(stdout.fileno(), 2)
                    os.closerange(3, 1024)  # the locks of other cells among them
                    moments.watch.counters, moments.watch.deadly = counters, deadly
                    moments.watch.process = os.getpid()
                    _command(list(argv[3:]))
                finally:
                    os._exit(99)

        def poll(self) -> int | None:
            if self._status is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = os.waitstatus_to_exitcode(status) if ended else None
            return self._status

        def wait(self, timeout: float = PATIENCE) -> int:
            end = time.monotonic() + timeout
            while self.poll() is None:
                if time.monotonic() > end:
                    raise processes.subprocess.TimeoutExpired("cell", timeout)
                time.sleep(0.01)
            return self._status or 0

        def terminate(self) -> None:
            _kill(os.kill, self.pid, signal.SIGTERM)

        def kill(self) -> None:
            _kill(os.kill, self.pid, signal.SIGKILL)

    real = processes.subprocess
    names = ("DEVNULL", "TimeoutExpired")
    processes.subprocess = SimpleNamespace(Popen=Forked, **{n: getattr(real, n) for n in names})
