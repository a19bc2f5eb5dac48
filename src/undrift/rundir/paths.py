"""What a run leaves on disk: paths and the DONE marks.

```
ROOT/
├── run.yaml          the configuration; two runs are the same run if these texts are equal
├── manifest.json     method, benchmark, seed, order, profile, backbone, versions, hardware ...
├── matrix.json       {"tasks", "zero_shot", "matrix", "metrics"}, in percent
├── tasks/01-digits/  adapter/, train.jsonl, and DONE once everything about the task is written
├── skipped.jsonl     what --skip-bad has left out, if anything
├── eval/after-01/    on-01.jsonl: a prediction a line (after-00: untouched); on-01.json: tasks told
├── pictures/01-digits/  0001.webp: a small copy of the picture of line 1 of every on-01.jsonl, at
│                     most 160 pixels long; 0001-2.webp if it has a second; of the first 2000 lines
└── live/01-digits/   TensorBoard's files about the learning of the task, if --report-to asks so
```

A line of `eval` is `{"id", "question", "answers", "prediction", "strict", "caseless"}`; one of a
published task has `"official", "lenient", "form"` too. Every file is written under a temporary name
and renamed, so a reader finds it whole or not at all. Nothing here is ever pickled. `RunDir.start`
begins or resumes a run, `RunDir.existing` opens one to read.
"""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path

from undrift.errors import RunDirError
from undrift.rundir.files import TEMPORARY, atomic_write, text_of

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RunDir:
    """The paths of one run. Making one touches no file; tasks and stages count from 1.

    Args:
        root: The run's folder.

    Attributes:
        config_name: The file that says which run it is.
        contents: All that a run may hold.
    """

    config_name = "run.yaml"
    contents = (
        "manifest.json matrix.json report.html report-figures skipped.jsonl tasks eval pictures "
        "live diagnose"
    ).split()

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @classmethod
    def start(cls, root: Path, config: str, *, replace: bool = False) -> RunDir:
        """Begin a run in an empty or missing folder, or resume the one that is there.

        Args:
            root: The run's folder.
            config: The text of run.yaml: everything that decides the run's numbers.
            replace: Delete the run that is there, whatever its configuration, and begin again.

        Returns:
            The run, with its run.yaml written.

        Raises:
            RunDirError: If the folder holds something else than a run, or another run.
        """
        run = cls(root)
        if root.exists() and (not root.is_dir() or run._entries()):
            if not run.config_file.is_file():
                raise RunDirError(
                    f"{root} is not empty and holds no run (no {cls.config_name}); "
                    "choose a new or an empty folder with --out"
                )
            if replace:
                run._clear()
            else:
                run._check_same(config)
        if not run.config_file.exists():
            atomic_write(run.config_file, config)
        return run

    @classmethod
    def existing(cls, root: Path) -> RunDir:
        """Open a run to read it.

        Args:
            root: The run's folder.

        Returns:
            The run.

        Raises:
            RunDirError: If there is no run in the folder.
        """
        run = cls(root)
        if not run.config_file.is_file():
            raise RunDirError(
                f"{root} is not a run: it has no {cls.config_name}; "
                "give a folder that `undrift run ... --out FOLDER` has written"
            )
        return run

    @property
    def command(self) -> str:
        """What to type to go on with what is in the folder."""
        return f"undrift run {self.config_file} --out {self.root}"

    @property
    def config_file(self) -> Path:
        """The configuration, YAML."""
        return self.root / self.config_name

    @property
    def manifest_file(self) -> Path:
        """What produced the numbers: versions, hardware, fingerprints, protocol."""
        return self.root / "manifest.json"

    @property
    def matrix_file(self) -> Path:
        """The accuracy matrix and the metrics."""
        return self.root / "matrix.json"

    def task(self, index: int, name: str) -> Path:
        """Return the folder of the task that is trained as number `index`.

        Args:
            index: From 1.
            name: The task's name.

        Returns:
            Such as ROOT/tasks/01-digits.

        Raises:
            RunDirError: If the name cannot be a folder's name, or the index is below 1.
        """
        if index < 1 or not _TASK_NAME.fullmatch(name):
            raise RunDirError(
                f"task {index} cannot be called {name!r}: tasks count from 1, and a name is made "
                "of letters, digits, '_', '.' and '-', beginning with a letter or a digit"
            )
        return self.root / "tasks" / f"{index:02d}-{name}"

    def adapter(self, index: int, name: str) -> Path:
        """Return the folder of the adapter as it was after this task (see `task`)."""
        return self.task(index, name) / "adapter"

    def train_log(self, index: int, name: str) -> Path:
        """Return the file with one line per logged training step of this task (see `task`)."""
        return self.task(index, name) / "train.jsonl"

    def predictions(self, after: int, on: int) -> Path:
        """Return the file with the predictions of one cell of the matrix.

        Args:
            after: How many tasks had been trained; 0 is the untouched model.
            on: The task that was asked, from 1.

        Returns:
            Such as ROOT/eval/after-03/on-01.jsonl.

        Raises:
            RunDirError: If there can be no such cell.
        """
        if after < 0 or on < 1:
            raise RunDirError(f"no cell of the matrix is after task {after} on task {on}")
        return self.root / "eval" / f"after-{after:02d}" / f"on-{on:02d}.jsonl"

    def pictures(self, on: int, name: str) -> Path:
        """Return the folder with the thumbnails of what a task asks (see `task`)."""
        return self.root / "pictures" / self.task(on, name).name

    def picture(self, on: int, name: str, line: int, k: int = 1) -> Path:
        """Return the thumbnail of a picture that a test example shows.

        Args:
            on: The task that is asked, from 1.
            name: The task's name.
            line: The line of its predictions, from 1.
            k: Which of the example's pictures, from 1.

        Returns:
            Such as ROOT/pictures/01-digits/0001.webp, or 0001-2.webp for the second picture.

        Raises:
            RunDirError: If there can be no such picture (see also `task`).
        """
        if line < 1 or k < 1:
            raise RunDirError(f"no picture is number {k} of line {line}: both count from 1")
        return self.pictures(on, name) / f"{line:04d}{'' if k == 1 else f'-{k}'}.webp"

    def live(self, index: int, name: str) -> Path:
        """Return the folder with what reporters keep of a task's learning (see `task`)."""
        return self.root / "live" / self.task(index, name).name

    def mark_done(self, index: int, name: str) -> None:
        """Write the DONE mark of a task; to be called after everything else is on disk."""
        atomic_write(self.task(index, name) / "DONE", "")

    def is_done(self, index: int, name: str) -> bool:
        """Tell whether a task has its DONE mark."""
        return (self.task(index, name) / "DONE").is_file()

    def _check_same(self, config: str) -> None:
        there = text_of(self.config_file)
        if there == config:
            return
        changes = difflib.unified_diff(there.splitlines(), config.splitlines(), lineterm="", n=0)
        shown = [line for line in changes if not line.startswith(("---", "+++", "@@"))]
        raise RunDirError(
            f"{self.root} holds another run; what differs (- is there, + was asked for):",
            *(f"  {line}" for line in shown[:12]),
            f"to resume that run: {self.command}",
            "to delete it and begin again: the same command with --replace",
            "to keep both: another folder with --out",
        )

    def _entries(self) -> list[Path]:
        """List what the folder holds, but for files that a killed process was still writing."""
        return [path for path in self.root.iterdir() if path.suffix != TEMPORARY]

    def _clear(self) -> None:
        for name in (*self.contents, self.config_name):
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
