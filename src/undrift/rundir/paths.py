"""What lies where in the folder of a run and of one more task, and the DONE marks.

```
ROOT/
├── run.yaml          the format, and the configuration: two runs with one text are the same run
├── data.json         digests of every row and picture: a resumed run notices what has changed
├── manifest.json     method, benchmark, seed, order, profile, backbone, versions, hardware ...
├── matrix.json       {"tasks", "zero_shot", "matrix", "metrics"}, in percent
├── general.json      what the base could do "before", and "after" the last task, with the "loss"
├── general/          before.jsonl, after.jsonl: the answers behind it, a line a question
├── remembered/       the base as task zero, if --remember asks so: see `undrift.run.remember`
├── tasks/01-digits/  adapter/, train.jsonl, and DONE once everything about the task is written
├── skipped.jsonl     what --skip-bad has left out, if anything
├── eval/after-01/    on-01.jsonl: a prediction a line (after-00: untouched); on-01.json: tasks told
├── stream.json       a stream's tasks against time: scores at its points, mixing weights, metrics
├── stream/at-00012/  on-01.jsonl: a prediction a line, asked after step 12 of the stream
├── pictures/01-digits/  0001.webp: a small copy of the picture of line 1 of every on-01.jsonl, at
│                     most 160 pixels long; 0001-2.webp if it has a second; of the first 2000 lines
├── live/01-digits/   TensorBoard's files about the learning of the task, if --report-to asks so
├── SHA256SUMS        a digest of every adapter, record, answer file, log and configuration
└── undrift.lock      while a command works there: which process, on which host, since when
```

A line of `eval` is `{"id", "question", "answers", "prediction", "strict", "caseless"}`; one of a
published task has `"official", "lenient", "form"` too. Every object and every line says its
`format` as well. Every file is written under a temporary name and renamed, so a reader finds it
whole or not at all. Nothing here is ever pickled. `RunDir.start` begins or resumes a run,
`RunDir.existing` opens one to read. What a run did not write is never deleted, and a link to
another folder is never followed to write there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from undrift.errors import RunDirError
from undrift.rundir.checks import OF_LEARN, OF_RUN, refuse_links, refuse_strangers
from undrift.rundir.files import (
    FORMAT,
    NAME_RULE,
    TEMPORARY,
    atomic_write,
    check_format,
    is_name,
    our_turn,
    remove,
    sweep,
    text_of,
)
from undrift.rundir.records import Matrix, read_record
from undrift.rundir.sums import SUMS, write_sums

ADAPTER_FILES = ("*.safetensors", "*.json", "*/*.safetensors", "*/*.json")
"""What counts in an adapter's folder: all but its card."""

LOCK = "undrift.lock"
"""What a command holds while it writes into a folder, see `undrift.rundir.lock`."""
_FORMAT = re.compile(r"format: *(.*)\n")
_PLACE = re.compile(r"^( *)backbone_folder:.*\n(?:\1 +.*\n)*", re.MULTILINE)
"""Where the base lies, with the lines that a long path is folded into: no part of what a run is."""
_SETTING = re.compile(r"( *)(\w+):(.*)")
_FORCIBLE = re.compile(r"train\.|eval\.batch_size$")
"""How it is trained and asked, which can change midway; the rest says which run it is."""
_DIGEST = re.compile(r"^  digest: .*\n", re.MULTILINE)
_FROM = re.compile(r"^from: (.+)$", re.MULTILINE)


class RunDir:
    """The paths of one run. Making one touches no file; tasks and stages count from 1.

    Args:
        root: The run's folder.

    Attributes:
        config_name: The name of the file that says which run it is.
        config_file: The configuration, YAML.
        manifest_file: What produced the numbers: versions, hardware, fingerprints, protocol.
        matrix_file: The accuracy matrix and the metrics.
        stream_file: A stream's tasks against time; only of a run without boundaries.
        general_file: What became of general ability; only where the benchmark asks for it.
        general_answers: The folder of the answers behind it.
        asked_anew: The text of a configuration whose settings are not yet those of the run.
        contents: All that a run writes, by what it is called in the folder; in each folder of
            it, what its files are called.
        summed: What has a digest in SHA256SUMS, as patterns: all that decides the numbers or
            cannot be computed from the rest.
    """

    config_name = "run.yaml"
    contents: ClassVar[Mapping[str, str]] = OF_RUN
    summed: ClassVar[tuple[str, ...]] = (
        "run.yaml",
        "manifest.json",
        "general.json",
        "general/*.jsonl",
        "remembered/*",
        "stream.json",
        "stream/at-*/on-*.jsonl",
        "eval/after-*/on-*.json",
        "eval/after-*/on-*.jsonl",
        "tasks/*/train.jsonl",
        *(f"tasks/*/adapter/{name}" for name in ADAPTER_FILES),
    )

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config_file = self.root / self.config_name
        self.manifest_file = self.root / "manifest.json"
        self.matrix_file = self.root / "matrix.json"
        self.stream_file = self.root / "stream.json"
        self.general_file = self.root / "general.json"
        self.general_answers = self.root / "general"
        self.remembered = self.root / "remembered"
        self.asked_anew: str | None = None

    @classmethod
    def start(cls, root: Path, config: str, *, replace: bool = False, force: bool = False) -> Self:
        """Begin a run in an empty or missing folder, or resume the one that is there.

        Args:
            root: The run's folder.
            config: The text of run.yaml: everything that decides the run's numbers.
            replace: Delete the run that is there, whatever its configuration, and begin again.
            force: Go on with an unfinished run although settings of its training are others; they
                wait in `asked_anew` until the change is noted.

        Returns:
            The run, with its run.yaml written.

        Raises:
            RunDirError: If the folder holds something else than a run, or another run.
        """
        run = cls.looked_at(root, config, replace=replace, force=force)
        if run._anything():
            if replace:
                run._clear()
            run.sweep()
        if not run.config_file.exists():
            run.write_config(config)
        return run

    @classmethod
    def looked_at(
        cls, root: Path, config: str, *, replace: bool = False, force: bool = False
    ) -> Self:
        """Refuse what `start` refuses; nothing is written, nothing deleted.

        Args:
            root: As for `start`.
            config: As for `start`.
            replace: As for `start`.
            force: As for `start`.

        Returns:
            The run.

        Raises:
            RunDirError: If the folder holds something else than a run, or another run.
        """
        run = cls(root)
        if run._anything():
            if not run.config_file.is_file():
                raise RunDirError(
                    f"{root} is not empty and holds no run (no {cls.config_name}); "
                    "choose a new or an empty folder with --out"
                )
            run.check_folders()
            if replace:
                run._check_clearable()
            else:
                run._check_same(config, force)
        return run

    def write_config(self, config: str) -> None:
        """Write the text that says which run it is."""
        atomic_write(self.config_file, f"format: {FORMAT}\n{config}")

    @classmethod
    def existing(cls, root: Path) -> RunDir:
        """Open a run to read it; a folder without one is refused."""
        run = cls(root)
        if not run.config_file.is_file():
            raise RunDirError(
                f"{root} is not a run: it has no {cls.config_name}; "
                "give a folder that `undrift run ... --out FOLDER` has written"
            )
        return run

    @property
    def begun_here(self) -> bool:
        """Whether undrift has written the configuration that is there, and not its user.

        A run from before there was a format is known by its manifest.
        """
        if not self.config_file.is_file():
            return False
        return bool(_FORMAT.match(text_of(self.config_file))) or self.manifest_file.is_file()

    def config_text(self) -> str:
        """Return the text of the configuration without its format and the place of its base."""
        text = _PLACE.sub("", text_of(self.config_file))
        if (said := _FORMAT.match(text)) is None:
            return text
        number = said[1].strip()
        whole = number.isdecimal() and len(number) < 10
        check_format(self.config_file, int(number) if whole else number)
        return text[said.end() :]

    @property
    def command(self) -> str:
        """What to type to go on with what is in the folder."""
        return f"undrift run {self.config_file} --out {self.root}"

    def task(self, index: int, name: str) -> Path:
        """Return ROOT/tasks/01-digits, say; a name that cannot be a folder's is refused."""
        if index < 1 or not is_name(name):
            raise RunDirError(
                f"task {index} cannot be called {name!r}: tasks count from 1, and {NAME_RULE}"
            )
        return self.root / "tasks" / f"{index:02d}-{name}"

    def adapter(self, index: int, name: str) -> Path:
        """Return the folder of the adapter as it was after this task (see `task`)."""
        return self.task(index, name) / "adapter"

    def train_log(self, index: int, name: str) -> Path:
        """Return the file with one line per logged training step of this task (see `task`)."""
        return self.task(index, name) / "train.jsonl"

    def predictions(self, after: int, on: int) -> Path:
        """Return the predictions of one cell, such as ROOT/eval/after-03/on-01.jsonl.

        Args:
            after: How many tasks had been trained; 0 is the untouched model.
            on: The task that was asked, from 1.

        Returns:
            The file.

        Raises:
            RunDirError: If there can be no such cell.
        """
        if after < 0 or on < 1:
            raise RunDirError(f"no cell of the matrix is after task {after} on task {on}")
        return self.root / "eval" / f"after-{after:02d}" / f"on-{on:02d}.jsonl"

    def point(self, step: int, on: int) -> Path:
        """Return the answers to a task in a stream, such as ROOT/stream/at-00012/on-01.jsonl."""
        return self.root / "stream" / f"at-{step:05d}" / f"on-{on:02d}.jsonl"

    def stages(self) -> list[Path]:
        """List the folders with predictions, by how many tasks had been trained."""
        there = (self.root / "eval").glob("after-*")
        return sorted(path for path in there if path.name.removeprefix("after-").isdecimal())

    def pictures(self, on: int, name: str) -> Path:
        """Return the folder with the thumbnails of what a task asks (see `task`)."""
        return self.root / "pictures" / self.task(on, name).name

    def picture(self, on: int, name: str, line: int, k: int = 1) -> Path:
        """Return the thumbnail of picture `k` on a line of a task's predictions, all from 1.

        It is such as ROOT/pictures/01-digits/0001.webp, or 0001-2.webp for a second picture.
        """
        return thumbnail(self.pictures(on, name), line, k)

    def live(self, index: int, name: str) -> Path:
        """Return the folder with what reporters keep of a task's learning (see `task`)."""
        return self.root / "live" / self.task(index, name).name

    def mark_done(self, index: int, name: str) -> None:
        """Write the DONE mark of a task; to be called after everything else is on disk."""
        atomic_write(self.task(index, name) / "DONE", "")

    def note_sums(self, *, resumed: bool = False) -> None:
        """Enter what is new into SHA256SUMS; to be called before something is marked as done.

        Args:
            resumed: Only drop what is gone, before it is made again.
        """
        if not resumed or (self.root / SUMS).is_file():
            anew = (self.manifest_file.name, self.general_file.name, self.config_name)
            write_sums(self.root, self.summed, anew)

    def is_done(self, index: int, name: str) -> bool:
        """Tell whether a task has its DONE mark."""
        return (self.task(index, name) / "DONE").is_file()

    @property
    def only_planned(self) -> bool:
        """Whether undrift has begun a run here that has not produced anything."""
        there = {path.name for path in self._entries()} if self.root.is_dir() else set()
        return there <= {self.config_name, "data.json"} and self.begun_here

    def snapshots(self) -> list[Path]:
        """List the folders of snapshots of what is half learned."""
        return sorted(self.root.glob("tasks/*/training"))

    def check_folders(self) -> None:
        """Refuse to write into a run whose folders are links (see `checks.refuse_links`)."""
        refuse_links(self.root, self.contents)

    def check_ours(self, *names: str) -> None:
        """Refuse to delete `names` (all of `contents` by itself) if not written by undrift."""
        refuse_strangers(self.root, self.contents, names or tuple(self.contents))

    def sweep(self) -> None:
        """Clear away what killed processes have left half written or half deleted."""
        with our_turn() as ours:
            if ours:
                sweep(self.root)

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        there = self.matrix_file.is_file()
        return there and read_record(self.matrix_file, Matrix)["metrics"]["last"] is not None

    def _check_same(self, config: str, force: bool) -> None:
        text, there, config = config, self.config_text(), _PLACE.sub("", config)
        if there == config:
            return
        was, is_now = settings_of(there), settings_of(config)
        names = [n for n in {**was, **is_now} if was.get(n) != is_now.get(n)]
        forcible = not self.finished and all(map(_FORCIBLE.match, names)) and bool(names)
        if force and forcible:
            self.asked_anew = text
            return
        shown = [
            f"{sign} {name}: {each[name]}"
            for name in names
            for sign, each in (("-", was), ("+", is_now))
            if name in each
        ]
        raise RunDirError(
            f"{self.root} holds another run; what differs (- is there, + was asked for):",
            *(f"  {line}" for line in shown[:12]),
            f"to resume that run: {self.command}",
            *["to go on as asked for, which is noted: the same command with --force"] * forcible,
            "to delete it and begin again: the same command with --replace",
            "to keep both: another folder with --out",
        )

    def _entries(self) -> list[Path]:
        """List what the folder holds, but for its lock and what a killed process was writing."""
        there = self.root.iterdir()
        return [path for path in there if path.suffix != TEMPORARY and path.name != LOCK]

    def _anything(self) -> bool:
        """Tell whether something is there already."""
        return self.root.exists() and (not self.root.is_dir() or bool(self._entries()))

    def refuse_to_delete(self, *read: Path | None) -> None:
        """Refuse to begin again in a folder that holds what the new run is made from.

        Args:
            *read: Files and folders that are read; what is not there, and None, does not count.

        Raises:
            RunDirError: If one of them lies inside.
        """
        root = self.root.resolve()
        for path in filter(None, read):
            if os.path.lexists(path) and path.resolve().is_relative_to(root):
                raise RunDirError(
                    f"--replace would delete {path}, which is read, with {self.root}; choose "
                    "another folder with --out"
                )

    def _check_clearable(self) -> None:
        if not self.begun_here:
            raise RunDirError(
                f"{self.config_file} was not written by undrift, so nothing is deleted; choose "
                "another folder with --out"
            )
        self.check_ours()

    def _clear(self) -> None:
        self._check_clearable()
        for name in (*self.contents, self.config_name):
            remove(self.root / name)
            if os.path.lexists(self.root / name):
                raise RunDirError(f"cannot delete {self.root / name}; may it be written there?")


def thumbnail(folder: Path, line: int, k: int = 1) -> Path:
    """Return the thumbnail of picture `k` on a line of a file of predictions, see `RunDir.picture`.

    Args:
        folder: Where those of the file lie.
        line: The line.
        k: Which of its pictures.

    Returns:
        The file.

    Raises:
        RunDirError: If there can be no such picture.
    """
    if line < 1 or k < 1:
        raise RunDirError(f"no picture is number {k} of line {line}: both count from 1")
    return folder / f"{line:04d}{'' if k == 1 else f'-{k}'}.webp"


def settings_of(text: str) -> dict[str, str]:
    """Read a configuration as undrift writes it.

    Args:
        text: The text of run.yaml or learn.yaml.

    Returns:
        The text of every value by a name such as "train.batch_size".
    """
    found: dict[str, str] = {}
    place: list[tuple[int, str]] = []
    for line in text.splitlines():
        if key := _SETTING.match(line):
            deep = len(key[1])
            place = [*(above for above in place if above[0] < deep), (deep, key[2])]
            found[_name(place)] = key[3].strip()
        elif place:  # a list, or what a long value is folded into
            found[_name(place)] += line
    return found


def _name(place: Sequence[tuple[int, str]]) -> str:
    return ".".join(name for _, name in place).removeprefix("run.")


class LearnDir(RunDir):
    """The paths of one more task, which `undrift learn` has taught.

    ```
    OUT/
    ├── learn.yaml      what was asked for; the same command goes on with what is not done yet
    ├── data.json       digests of every row and picture: a resumed one notices what has changed
    ├── adapter/        PEFT's format, with the record of all tasks learned so far
    ├── eval/before/, eval/after/   01-birds.jsonl ...: every prediction, before and after;
    │                   guard-golden.jsonl: those for the questions of --guard golden.jsonl
    ├── tests/01-birds/ the test questions and pictures of every task, unless they are large
    ├── pictures/01-birds/  0001.webp: small copies of what was asked, as a run keeps them
    ├── report.html     the page, which `undrift report` draws anew
    ├── diagnose/       what `undrift diagnose` has found
    ├── train.jsonl     a line each few steps
    ├── remembered/     the base as task zero, if --remember asks so
    ├── live/01-birds/  TensorBoard's files, if --report-to asks so
    ├── manifest.json   what produced the numbers
    ├── SHA256SUMS      a digest of every file of the adapter, and of every file of answers
    └── result.json     the scores before and after; written last
    ```
    """

    config_name = "learn.yaml"
    contents: ClassVar[Mapping[str, str]] = OF_LEARN
    summed: ClassVar[tuple[str, ...]] = (
        "learn.yaml",
        "manifest.json",
        "train.jsonl",
        "remembered/*",
        "eval/*/*.jsonl",
        "tests/*/questions.jsonl",
        *(f"adapter/{name}" for name in ADAPTER_FILES),
    )

    @property
    def command(self) -> str:
        """What to type to go on with what is in the folder."""
        return "the command that began it"

    @property
    def result_file(self) -> Path:
        """The scores before and after."""
        return self.root / "result.json"

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return self.result_file.is_file()

    def snapshots(self) -> list[Path]:
        """List the folder of snapshots, if the task is half learned."""
        return [folder for folder in (self.root / "training",) if folder.is_dir()]

    def answers(self, when: str, number: int, name: str) -> Path:
        """Return the file with every prediction for one task, before or after."""
        return self.root / "eval" / when / f"{self.task(number, name).name}.jsonl"

    def guard_pictures(self, name: str) -> Path:
        """Return the folder with the thumbnails of what a guard asks."""
        return self.root / "pictures" / self.guard_answers("before", name).stem

    def guard_answers(self, when: str, name: str) -> Path:
        """Return the file with every prediction for a guard, before or after."""
        if not is_name(name):
            raise RunDirError(f"a guard cannot be called {name!r}: {NAME_RULE}; rename its file")
        return self.root / "eval" / when / f"guard-{name}.jsonl"

    def tests(self, number: int, name: str) -> Path:
        """Return the folder in which the test questions of a task are kept."""
        return self.root / "tests" / self.task(number, name).name

    def config_text(self) -> str:
        """Read what makes the configuration another one.

        Older ones hold digests of rows, those of data.json now, and name an adapter as typed.
        """
        return _FROM.sub(_whole, _DIGEST.sub("", super().config_text()))


def _whole(found: re.Match[str]) -> str:
    adapter = Path(found[1])
    is_one = (adapter / "adapter_config.json").is_file()
    return f"from: {adapter.resolve()}" if is_one else found[0]
