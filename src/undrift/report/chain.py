"""What `undrift learn` has left, adapter after adapter, read as one run: v1, v2, v3 as its tasks.

Each adapter names the one that it went on from. That one is looked for where it was, beside this
one, and among the folders that were given; it is taken for the same if its weights are those that
learning began with. Where one is gone, what it had learned is known from when the next one began.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from undrift.bounded_yaml import load_yaml
from undrift.errors import RunDirError
from undrift.report.results import Asked, Guard, Results, RunFiles, results_of
from undrift.rundir import RunDir, damaged, read_answers, read_json, read_record
from undrift.rundir.files import known_format
from undrift.rundir.paths import LearnDir
from undrift.rundir.records import (
    LEARNED_FROM,
    Begun,
    Manifest,
    Matrix,
    Origin,
    Result,
)
from undrift.scoring import metrics

_RECORD, _WEIGHTS = "undrift.json", "adapter_model.safetensors"
_FROM = re.compile(r"^from:.*\n(?: +.*\n)*", re.MULTILINE)
BEFORE, AFTER = "before", "after"


def load(folder: Path) -> Results:
    """Read a finished run, or an adapter that `undrift learn` has left, with those before it.

    Args:
        folder: What `undrift run` or `undrift learn` has written; also its `adapter` folder.

    Returns:
        Its numbers.

    Raises:
        ConfigError: If its configuration cannot be read.
        RunDirError: If it holds neither, or an unfinished one, or files that lack something, or
            what a newer undrift has written.
    """
    return load_all([folder])[0]


def load_all(folders: Sequence[Path]) -> list[Results]:
    """Read runs and chains of adapters; an adapter that a later one went on from is part of it.

    Args:
        folders: As for `load`.

    Returns:
        One for each run, and for each chain as its last adapter.

    Raises:
        ConfigError: As `load`.
        RunDirError: As `load`.
    """
    homes = [_home(folder) for folder in folders]
    for home in homes:
        _check_configuration(home / LearnDir.config_name, "from")
        _check_configuration(home / RunDir.config_name, "benchmark")
    whole = {home: ChainDir(home, homes) for home in homes if _is_learned(home)}
    inner = {
        link.root.resolve() for chain in whole.values() for link in [*chain.links.values()][:-1]
    }
    return [
        results_of(ChainFiles(whole[home]) if home in whole else RunFiles(home))
        for home in homes
        if home not in whole or home.resolve() not in inner
    ]


def _home(folder: Path) -> Path:
    """Return the folder of an adapter that is given by its own folder."""
    inside = folder.name == "adapter" and _is_learned(folder.parent)
    return folder.parent if inside else folder


def _check_configuration(file: Path, key: str) -> None:
    """Refuse what a newer undrift has made, and a file that does not say what was run."""
    content = known_format(file, load_yaml(file)) if file.is_file() else {key: None}
    if not isinstance(content, Mapping) or key not in content:
        raise RunDirError(
            f"{file} does not say what was run (no `{key}:`); get it from where the folder "
            "comes from, or leave that folder out"
        )


def _is_learned(folder: Path) -> bool:
    return (folder / LearnDir.config_name).is_file()


@dataclass(frozen=True)
class Link:
    """One adapter of a chain.

    Args:
        root: The folder that `learn` has written.
        result: Its result.json.
        learned: The notes of the tasks that it has learned, its own last.
    """

    root: Path
    result: Mapping[str, Any]
    learned: Sequence[Mapping[str, Any]]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were asked, in the order of their files."""
        return [row["task"] for row in self.result["tasks"]]

    @property
    def guards(self) -> Sequence[Mapping[str, Any]]:
        """What was asked besides, without having been learned."""
        return self.result.get("guards", ())

    def answers(self, when: str, name: str) -> Path | None:
        """Return the file of the answers to a task, where it was asked."""
        if name not in self.tasks:
            return None
        return LearnDir(self.root).answers(when, self.tasks.index(name) + 1, name)

    def score(self, when: str, name: str) -> float | None:
        """Return a task's score, where it was asked."""
        return next((row[when] for row in self.result["tasks"] if row["task"] == name), None)


class ChainDir(LearnDir):
    """The paths of a chain of adapters, as those of a run with a task each.

    Args:
        root: The folder of the last adapter.
        given: Where else earlier ones may lie.

    Attributes:
        links: The adapters that are there, by how many tasks each has learned.
        run: The run that the first of them went on from, if that is what it was.
        notes: What is not there any more, a sentence each.
        names: The tasks, in the order of learning.

    Raises:
        RunDirError: If learning is not finished there, or its files lack something.
    """

    def __init__(self, root: Path, given: Sequence[Path] = ()) -> None:
        super().__init__(root)
        self.run: RunDir | None = None
        self.notes: list[str] = []
        self._adapters: dict[int, Path] = {}
        last = _link(root)
        self.learned = list(last.learned)
        self.names = [note["name"] for note in self.learned]
        found = {len(last.learned): last}
        link = last
        while earlier := self._earlier(link, given):
            count = len(link.learned) - 1
            self._adapters[count] = earlier
            if earlier.name == "adapter" and (earlier.parent / "result.json").is_file():
                link = _link(earlier.parent)
                found[count] = link
                continue
            home = earlier.parents[2] if len(earlier.parents) > 2 else earlier
            if (home / RunDir.config_name).is_file() and earlier.name == "adapter":
                self.run = RunDir(home)
            else:
                self.notes.append(f"{earlier} lies there without the answers to its questions")
            break
        self._adapters |= {count: each.root / "adapter" for count, each in found.items()}
        self.links = dict(sorted(found.items()))

    def _earlier(self, link: Link, given: Sequence[Path]) -> Path | None:
        """Find the adapter that one went on from; None where that was a model, or it is gone."""
        count = len(link.learned) - 1
        if not count:
            return None
        said = Path(_from(link.root))
        inner = [said.name] if said.name != "adapter" else [said.parent.name, "adapter"]
        others = [
            folder if (folder / _RECORD).is_file() else folder / "adapter" for folder in given
        ]
        changed = False
        for place in dict.fromkeys([said, link.root.absolute().parent.joinpath(*inner), *others]):
            if (place / _RECORD).is_file():
                if _is_the_one(place, link):
                    return place
                changed |= place == said
        why = "holds other weights now" if changed else "is not there any more"
        names = ", ".join(note["name"] for note in link.learned[:count])
        self.notes.append(
            f"{link.root.name} went on from {said}, which {why}: what is said of {names} begins "
            f"with the answers that were given before {link.root.name} learned"
        )
        return None

    @property
    def _oldest(self) -> Link:
        return self.links[min(self.links)]

    @property
    def in_run(self) -> int:
        """How many tasks the run had learned that the chain went on from."""
        return min(self.links) - 1 if self.run is not None else 0

    def stage_name(self, after: int) -> str:
        """Name the adapter after so many tasks as its folder is called."""
        if after in self.links:
            return self.links[after].root.name
        if after in self._adapters:  # RUN/tasks/01-digits/adapter, or an adapter that lies alone
            folder = self._adapters[after]
            return folder.parent.name if folder.name == "adapter" else folder.name
        if 0 < after <= self.in_run:
            return f"{after:02d}-{self.names[after - 1]}"
        return "untouched" if self.run is not None else f"before {self._oldest.root.name}"

    def adapter(self, index: int, name: str) -> Path:
        """Return the folder of the adapter after so many tasks; also one that is not there."""
        if self.run is not None and index <= self.in_run:
            return self.run.adapter(index, name)
        return self._adapters.get(index, self.root.parent / f"adapter-after-{index:02d}")

    def predictions(self, after: int, on: int) -> Path:
        """Return the answers to a task after so many: those of then, or from before the next."""
        name = self.names[on - 1]
        if self.run is not None and after <= self.in_run and on <= self.in_run:
            return self.run.predictions(after, on)
        for count, when in ((after, AFTER), (after + 1, BEFORE)):
            file = self.links[count].answers(when, name) if count in self.links else None
            if file is not None:
                return file
        return self.root / "eval" / AFTER / f"not-asked-{after:02d}-{on:02d}.jsonl"

    def pictures(self, on: int, name: str) -> Path:
        """Return the folder with a task's thumbnails, of the last adapter that keeps any."""
        for link in reversed(self.links.values()):
            if name in link.tasks:
                folder = RunDir(link.root).pictures(link.tasks.index(name) + 1, name)
                if folder.is_dir():
                    return folder
        if self.run is not None and on <= self.in_run:
            return self.run.pictures(on, name)
        return super().pictures(on, name)

    def score(self, after: int, on: int) -> float | None:
        """Return the score of a task after so many."""
        name = self.names[on - 1]
        if self.run is not None and after <= self.in_run and on <= self.in_run:
            saved = read_record(self.run.matrix_file, Matrix)
            rows = [saved["zero_shot"] or [], *saved["matrix"]]
            row = rows[after] if after < len(rows) else []
            return row[on - 1] if on <= len(row) else None
        for count, when in ((after, AFTER), (after + 1, BEFORE)):
            if count in self.links and name in self.links[count].tasks:
                return self.links[count].score(when, name)
        return None

    @property
    def logs(self) -> dict[int, Path]:
        """The logs of the trainings that are there, by the task."""
        found = {count: link.root / "train.jsonl" for count, link in self.links.items()}
        if self.run is not None:
            for task in range(1, self.in_run + 1):
                found[task] = self.run.train_log(task, self.names[task - 1])
        return {task: found[task] for task in sorted(found) if found[task].is_file()}


class ChainFiles(RunFiles):
    """The files of a chain, each read when it is asked for, and once.

    Args:
        paths: Where they are.
    """

    def __init__(self, paths: ChainDir) -> None:
        self.chain = paths
        self.paths = paths
        self._read = {}

    @cached_property
    def matrix(self) -> dict[str, Any]:
        """The scores as those of a run; what was not asked is None."""
        numbers = range(1, len(self.chain.names) + 1)
        rows = [[self.chain.score(after, on) for on in numbers] for after in (0, *numbers)]
        content = {"tasks": self.chain.names, "zero_shot": rows[0], "matrix": rows[1:]}
        return {**content, "metrics": metrics(rows[1:], rows[0])}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """That of the last adapter, with all tasks."""
        manifest = read_record(self.chain.manifest_file, Manifest)
        asked = {task["name"]: task for task in self._protocols()}
        notes = self.chain.learned
        entries = [
            asked.get(note["name"]) or {key: note[key] for key in ("name", "scorer")}
            for note in notes
            if note["name"] in asked or "scorer" in note
        ]
        known = entries if len(entries) == len(notes) else []  # a benchmark's, and its run is gone
        return {**manifest, "protocol": {**manifest.get("protocol", {}), "tasks": known}}

    def _protocols(self) -> Iterator[Mapping[str, Any]]:
        there = [link.root for link in self.chain.links.values()]
        for root in [self.chain.run.root, *there] if self.chain.run is not None else there:
            yield from read_record(root / "manifest.json", Manifest)["protocol"].get("tasks", ())

    @cached_property
    def last_stage(self) -> int:
        """All tasks."""
        return len(self.chain.names)

    @property
    def stage_names(self) -> Sequence[str]:
        """What the model is called after so many tasks, from none on."""
        return [self.chain.stage_name(after) for after in range(self.last_stage + 1)]

    @property
    def notes(self) -> Sequence[str]:
        """What is not there any more, and whose questions are others than they were."""
        changed = [
            f"the test questions of {row['task']} were others when {link.root.name} learned than "
            "when it was learned itself: scores before and since are not of the same questions"
            for link in self.chain.links.values()
            for row in link.result["tasks"]
            if row["changed"]
        ]
        return [*self.chain.notes, *changed]

    @property
    def logs(self) -> Mapping[int, Path]:
        """The logs of the trainings that are there, by the task."""
        return self.chain.logs

    @property
    def guards(self) -> Sequence[Guard]:
        """What was asked and not learned, wherever it was asked."""
        return self._once(("guards",), self._guards)

    def _guards(self) -> Sequence[Guard]:
        courses: dict[str, list[Asked]] = {}
        pictures: dict[str, Path] = {}
        for count, link in self.chain.links.items():
            files = LearnDir(link.root)
            before = self.chain.links.get(count - 1)
            for row in link.guards:
                name = row["task"]
                course = courses.setdefault(name, [])
                pictures[name] = files.guard_pictures(name)
                known = before is not None and name in (each["task"] for each in before.guards)
                for stage, when in ((f"before {link.root.name}", BEFORE), (link.root.name, AFTER)):
                    if when == AFTER or not known:
                        lines = read_answers(files.guard_answers(when, name))
                        course.append(Asked(stage, row[when], lines))
        return [Guard(name, course, pictures[name]) for name, course in courses.items()]


def _link(root: Path) -> Link:
    files = LearnDir(root)
    if not files.finished:
        raise RunDirError(
            f"{root} holds a task that is not finished; the command that began it goes on with it"
        )
    record = root / "adapter" / _RECORD
    learned = read_record(record, Origin).get("learned", [])
    if not learned:
        raise damaged(record, "learned: expected the tasks that it has learned")
    return Link(root, read_record(files.result_file, Result), learned)


def _from(root: Path) -> str:
    """Read what an adapter went on from; one entry of a file of ours, never the whole of it."""
    found = _FROM.search(LearnDir(root).config_text())
    return str(yaml.safe_load(found[0])["from"]) if found else ""


def _is_the_one(adapter: Path, link: Link) -> bool:
    """Tell whether learning went on from this adapter: its weights, or else its tasks."""
    begun = link.root / "data.json"
    rows = read_record(begun, Begun)["rows"] if begun.is_file() else {}
    digest = rows.get(LEARNED_FROM, {}).get(_WEIGHTS)
    weights = adapter / _WEIGHTS
    if digest and weights.is_file():
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[: len(digest[-1])] == digest[-1]
    learned = read_json(adapter / _RECORD).get("learned", [])
    return [note["name"] for note in learned] == [note["name"] for note in link.learned[:-1]]
