"""What verifying a run and verifying one more task have in common: digests, scores, records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from undrift.data.types import Example
from undrift.errors import DataError, UndriftError
from undrift.methods.shared.adapter_config import read_config
from undrift.methods.shared.model_card import RECORD, MethodState
from undrift.methods.shared.tensor_files import load_tensors
from undrift.run.adapters import origin_of
from undrift.run.backbone import Backbone
from undrift.run.config import RunConfig
from undrift.run.input_changes import differences, digests
from undrift.run.progress import Progress
from undrift.rundir import RunDir, read_answers, read_lines, read_record
from undrift.rundir.files import SHORT, TEMPORARY
from undrift.rundir.paths import LOCK
from undrift.rundir.records import Begun, Manifest
from undrift.rundir.sums import SUMS, read_sums, sum_of, summed
from undrift.scoring import check_scorer, needs_extra, scores_of, task_score

_NAMED = 3  # of many alike
_ROUNDING = 2e-6  # scores and metrics are kept with six digits
_KEYS = ("strict", "caseless", "official", "lenient", "form")
_LATER = ("official", "lenient", "form")  # what older versions did not keep
_DERIVED = ("report.html", "report-figures", "diagnose", "pictures", "live", "skipped.jsonl")
_T = TypeVar("_T")


@dataclass
class Verdict:
    """What was found out about a run's folder.

    Attributes:
        run: The folder.
        checked: What was held against something else, with how much of it there was.
        wrong: What does not match, a line each.
        unchecked: What could not be checked, and why or what to give for it.
        left_over: Files that no number depends on: of killed processes, or of nobody's.
    """

    run: Path
    checked: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])
    unchecked: list[str] = field(default_factory=list[str])
    left_over: list[str] = field(default_factory=list[str])

    @property
    def matches(self) -> bool:
        """Whether all that was checked matches."""
        return not self.wrong


@dataclass
class Question:
    """One task as it was asked: what its answers are held against.

    Args:
        name: The task's name.
        scorer: How it is scored; None if that is not known without its data.
        count: How many questions there are, if that is recorded.
        ids: Their ids, if these are recorded.
        examples: The questions themselves by id, if the data is at hand.
        said: Question and answers by id, as the first file has them.
    """

    name: str
    scorer: str | None
    count: int | None = None
    ids: Sequence[str] | None = None
    examples: Mapping[str, Example] | None = None
    said: dict[str, tuple[str, list[str]]] = field(default_factory=dict[str, Any])


class Check:
    """What is read of a folder, and what was found out about it.

    Args:
        files: The folder.
        data: The benchmark's folder, if it was given.
        backbone: Where the base is, if it was given.
        progress: Told about slow parts.

    Attributes:
        root: The folder.
        verdict: What was found out.
        rows: How many answers were scored again.
        tensors: How many tensors were read.
        unscored: Why the answers to a task could not be scored again, by its name.
        manifest: manifest.json; empty if it cannot be read.
        begun: data.json; empty if it cannot be read.
    """

    def __init__(
        self, files: RunDir, data: Path | None, backbone: str | None, progress: Progress
    ) -> None:
        self.files, self.root = files, files.root
        self.data, self.backbone, self.progress = data, backbone, progress
        self.verdict = Verdict(files.root)
        self.rows = self.tensors = 0
        self.unscored: dict[str, str] = {}
        self.manifest: dict[str, Any] = self.record(files.manifest_file, Manifest) or {}
        self.begun: dict[str, Any] = {}
        if (self.root / "data.json").is_file():
            self.begun = self.record(self.root / "data.json", Begun) or {}
        else:
            self.unchecked("rows and pictures against data.json, which is not there")

    # what differs between the two

    @property
    def finished(self) -> bool:
        """Whether the run says that all is done."""
        raise NotImplementedError

    def expected(self) -> set[str]:
        """The places of the answers that there have to be, or may be."""
        raise NotImplementedError

    def tasks_there(self) -> set[str]:
        """What the folders in tasks/ may be called."""
        return set()

    def all(self) -> None:
        """Check everything but digests and strays."""
        raise NotImplementedError

    # what is told

    def place(self, path: Path) -> str:
        """Return where a file lies in the run's folder."""
        return path.relative_to(self.root).as_posix()

    def wrong(self, where: Path | str, said: str) -> None:
        """Tell what does not match."""
        place = where if isinstance(where, str) else self.place(where)
        self.verdict.wrong.append(f"{place}: {said}")

    def unchecked(self, said: str) -> None:
        """Tell what could not be checked."""
        self.verdict.unchecked.append(said)

    def checked(self, said: str) -> None:
        """Tell what was checked."""
        self.verdict.checked.append(said)

    def same(self, where: Path | str, what: str, there: Any, expected: Any, why: str) -> None:
        """Tell where two values differ."""
        if not _same(there, expected):
            self.wrong(where, f"{what} is {_short(there)}, and {why} {_short(expected)}")

    def tried(self, read: Callable[[], _T]) -> _T | None:
        """Return what a reader returns; what is damaged is told, and is None."""
        try:
            return read()
        except (UndriftError, OSError, yaml.YAMLError) as error:
            said = " ".join(str(error).split()).replace(f"{self.root}/", "")
            self.verdict.wrong.append(said)
            return None

    def record(self, path: Path, kind: Any) -> dict[str, Any] | None:
        """Read a file of ours; what is damaged is told, and is None."""
        return self.tried(partial(read_record, path, kind))

    # the parts

    def sums(self) -> None:
        """Compare every file with the digest that was entered when it was written."""
        if not (self.root / SUMS).is_file():
            self.unchecked(
                f"whether adapters and answers are those that were written: there is no {SUMS} "
                "(an older undrift has made the run, or it was not finished)"
            )
            return
        known = self.tried(partial(read_sums, self.root)) or {}
        manifest = self.place(self.files.manifest_file)
        for place, digest in known.items():
            path = self.root / place
            if place == manifest and not self.finished:
                continue
            if not _inside(place) or not path.is_file():
                self.wrong(place, f"is in {SUMS}, and not here")
            elif sum_of(path) != digest:
                self.wrong(place, f"is not what was written: another digest than in {SUMS}")
        if self.finished:
            for place in summed(self.root, self.files.summed):
                if place not in known:
                    self.wrong(place, f"is not in {SUMS}: the run has not written it")
        self.checked(f"digests of {len(known)} files in {SUMS}")

    def answers(self, file: Path, task: Question) -> float | None:
        """Score a file of answers again; return what it is worth, in percent."""
        rows = self.tried(partial(read_answers, file))
        if rows is None:
            return None
        self._identities(file, rows, task)
        now = list(self._scored(file, rows, task))
        self.rows += len(rows)
        return self.tried(partial(task_score, now))

    def _identities(self, file: Path, rows: Sequence[Mapping[str, Any]], task: Question) -> None:
        """Every question has one answer, and is the same question in every file."""
        ids = [row["id"] for row in rows]
        twice = [key for key in dict.fromkeys(ids) if ids.count(key) > 1] if _repeats(ids) else []
        if twice:
            self.wrong(file, f"{len(twice)} ids stand twice: {_few(twice)}")
        if task.ids is not None:
            missing = [key for key in task.ids if key not in set(ids)]
            strange = [key for key in dict.fromkeys(ids) if key not in set(task.ids)]
            if missing:
                self.wrong(file, f"{len(missing)} questions have no answer: {_few(missing)}")
            if strange:
                self.wrong(file, f"{len(strange)} are no questions of {task.name}: {_few(strange)}")
        if task.count is not None and len(rows) != task.count:
            said = f"has {len(rows)} answers, and the manifest says {task.count} questions"
            self.wrong(file, said)
        others: list[str] = []
        for row in rows:
            asked = (row["question"], row["answers"])
            example = (task.examples or {}).get(row["id"])
            if example is not None:
                task.said[row["id"]] = (example.question, list(example.answers))
            if task.said.setdefault(row["id"], asked) != asked:
                others.append(row["id"])
        if others:
            than = "the data" if task.examples else "another file of this task"
            said = f"{len(others)} rows have another question or other answers than {than}"
            self.wrong(file, f"{said}: {_few(others)}")

    def _scored(
        self, file: Path, rows: Sequence[Mapping[str, Any]], task: Question
    ) -> Iterator[Mapping[str, Any]]:
        """Score rows again; rows that cannot be are taken as they are, and named."""
        scoring = self.manifest.get("protocol", {}).get("scoring", "coin")
        differ: list[str] = []
        why = self._no_scores(task, scoring)
        if why is not None:
            self.unscored[task.name] = why
            yield from rows
            return
        for row in rows:
            example = (task.examples or {}).get(row["id"])
            extra = {"question": row["question"], **(example.extra if example else {})}
            scorer = str(task.scorer)
            try:
                now = scores_of(scorer, row["prediction"], row["answers"], extra, scoring)
            except DataError as error:
                self.wrong(file, f"{row['id']}: {error}")
                yield row
                continue
            for key in _KEYS:
                older = key in _LATER and key not in row
                if not older and not _same(row.get(key), now.get(key)):
                    said = f"{row['id']} ({key} {_short(row.get(key))}, not {_short(now.get(key))})"
                    differ.append(said)
            yield {**row, **now}
        if differ:
            many = "score differs" if len(differ) == 1 else "scores differ"
            self.wrong(file, f"{len(differ)} {many} from what {task.scorer} says: {_few(differ)}")

    def _no_scores(self, task: Question, scoring: str) -> str | None:
        """Say why the answers to a task cannot be scored again, if they cannot."""
        if task.scorer is None:
            return "its scorer stands in its data, which is not at hand"
        try:
            check_scorer(task.scorer)
            more = needs_extra(task.scorer, scoring)
        except UndriftError as error:
            return " ".join(str(error).split())
        return f"{task.scorer} needs its data; give --data" if more and not task.examples else None

    def adapter(
        self, folder: Path, index: int, learned: Sequence[str], config: RunConfig
    ) -> dict[str, Any]:
        """Read an adapter whole, and hold its records against the run's; return its record."""
        self.tried(partial(read_config, folder))
        for file in sorted(folder.rglob("*.safetensors")):
            self.tensors += len(self.tried(partial(load_tensors, file)) or ())
        origin = self.tried(partial(origin_of, folder)) or {}
        where = folder / "undrift.json"
        if not origin:
            if not where.exists():
                self.wrong(where, "is missing")
            return {}
        state = self.record(folder / RECORD, MethodState) or {}
        for name in state.get("files", ()):
            if not (folder / name).is_file():
                self.wrong(folder / RECORD, f"names {name}, which is not there")
        fingerprint = self.manifest.get("weights", {}).get("fingerprint")
        names = [note["name"] for note in origin.get("learned", ())]
        if fingerprint is not None and not self.manifest.get("changes"):
            why = "the manifest's is"
            self.same(where, "the base's fingerprint", origin["fingerprint"], fingerprint, why)
        self.same(where, "the method", origin["method"], config.method.name, "the run's is")
        if "after" in origin:
            self.same(where, "the number of its training", origin["after"], index, "its place says")
        if "learned" in origin:
            self.same(where, "what it has learned", names, list(learned), "the run says")
        if "tasks" in state:
            why = "its place says"
            self.same(folder / RECORD, "the number of trainings", state["tasks"], index, why)
        matched = config.match_budget != "none"  # whose rank the run has found
        if origin.get("run"):
            own, run = (
                _without(yaml.safe_load(text), matched)
                for text in (yaml.safe_dump(origin["run"]), config.text())
            )
            for key in sorted({*own, *run} - {"backbone_folder", *self._changed()}):
                self.same(where, f"run.{key}", own.get(key), run.get(key), "the run's is")
        options = {k: v for k, v in origin["options"].items() if not (matched and k == "rank")}
        chosen = {k: v for k, v in config.method.options.items() if not (matched and k == "rank")}
        self.same(where, "options", options, chosen, "the run's are")
        return origin

    def _changed(self) -> set[str]:
        """Name the parts of a configuration that were others for some of the tasks."""
        changes = self.manifest.get("changes", ())
        return {
            name.partition(".")[0]
            for change in changes
            if any(line.startswith("settings: ") for line in change["what"])
            for name in change["before"]
        }

    def settings(self, config: RunConfig) -> None:
        """Hold the manifest against the configuration."""
        file, there = self.files.manifest_file, self.manifest
        if not there:
            return
        protocol, why = there.get("protocol", {}), f"{self.files.config_name} says"
        order = config.order if isinstance(config.order, str) else list(config.order)
        expected = {
            "method": config.method.name,
            "seed": config.seed,
            "order": order,
            "profile": config.profile.name,
            "backbone": config.backbone,
        }
        for key, value in expected.items():
            self.same(file, key, there.get(key), value, why)
        if "match_budget" in there:
            self.same(file, "match_budget", there["match_budget"], config.match_budget, why)
        asked = {
            **config.profile.model_dump(mode="json", exclude={"name"}),
            "reading": config.reading,
            "split": config.eval.split,
            "scoring": config.eval.scoring,
        }
        asked |= {"training": config.train.model_dump(mode="json")}
        for key, value in asked.items():
            if key in protocol:
                now = protocol[key]
                if key == "training":  # a part of it, and the global batch, which follows
                    value = {k: v for k, v in value.items() if k in now}
                    now = {k: v for k, v in now.items() if k in value}
                self.same(file, f"protocol.{key}", now, value, why)
        for key, value in config.method.options.items():
            if key in there.get("settings", {}) and not (
                key == "rank" and config.match_budget != "none"
            ):
                self.same(file, f"settings.{key}", there["settings"][key], value, why)
        if there.get("changes"):
            days = _few([change["date"] for change in there["changes"]])
            self.unchecked(f"what had changed when the run was gone on with by --force ({days})")

    def log(self, file: Path, steps: float | None, every: int) -> None:
        """Read what was logged while a task was learned, and hold it against the steps counted."""
        rows = self.tried(partial(read_lines, file))
        if rows is None:
            return
        logged = [int(row.get("step", 0)) for row in rows]
        if logged != sorted({*logged}):
            self.wrong(file, "its steps do not rise")
        last = logged[-1] if logged else 0
        if steps is not None and not steps - every < last <= steps:
            self.wrong(file, f"ends with step {last}, and the manifest counts {steps:g}")

    def base(self, config: RunConfig) -> None:
        """Compare the base itself, where the user says where it is."""
        recorded = self.manifest.get("weights", {}).get("fingerprint")
        if self.backbone is None or recorded is None:
            self.unchecked("the base: give --backbone to compare its fingerprint")
            return
        now = Backbone.load(self.backbone, config.dtype, "cpu", config.quantize).fingerprint
        if now != recorded:
            said = f"the base has the fingerprint {recorded[:SHORT]}, and {self.backbone!r} is"
            self.wrong(self.files.manifest_file, f"{said} {now[:SHORT]}")
        self.checked("the fingerprint of the base")

    def inputs(self, splits: Mapping[str, Sequence[Example]], folders: Mapping[str, Path]) -> None:
        """Compare rows, pictures and the folder that was gone on from with data.json."""
        if not self.begun:
            return
        noted = {name: at for name, at in folders.items() if name in self.begun["rows"]}
        there = {name: at for name, at in noted.items() if at.is_dir() and any(at.iterdir())}
        for name in noted.keys() - there.keys():
            self.unchecked(f"{name}: {noted[name]} is not there")
        now, paths = digests(splits, there, progress=self.progress)
        before = {name: self.begun["rows"].get(name, {}) for name in now["rows"]}
        for lines in differences(before, now["rows"], paths).values():
            for line in lines:
                self.wrong("data.json", line)
        count = sum(len(rows) for rows in now["rows"].values())
        self.checked(f"{count} rows and their pictures, or files, as in data.json")

    def ids_of(self, name: str) -> list[str] | None:
        """The ids of a task's questions, as they were when the run was begun."""
        rows = self.begun.get("rows", {}).get(f"{name}, test")
        return None if rows is None else list(rows)

    def told(self, files: int) -> None:
        """Say how many answers were scored again, and which were not."""
        self.checked(f"{self.rows} answers in {files} files: ids, questions, scores")
        if self.unscored:
            named = "; ".join(f"{name}: {why}" for name, why in self.unscored.items())
            self.unchecked(f"the scores of {len(self.unscored)} tasks' answers ({named})")

    def strays(self) -> None:
        """Name what is there and belongs to nothing."""
        contents, found = self.files.contents, self.expected()
        known = [f"{name}/{inside}" if inside else name for name, inside in contents.items()]
        ours = re.compile("|".join(f"(?:{each})" for each in known))
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            place = self.place(path)
            top, _, rest = place.partition("/")
            if TEMPORARY in place:
                self.verdict.left_over.append(f"{place}: half written, or by a process at work")
            elif place in (self.files.config_name, LOCK):
                pass
            elif not ours.fullmatch(place):
                self.verdict.left_over.append(f"{place}: not a file of undrift's")
            elif path.suffix == ".part" or "training" in rest.split("/")[:2]:
                if self.finished:
                    self.verdict.left_over.append(f"{place}: of something that is finished")
            elif top in ("eval", "stream") and place not in found:
                self.wrong(place, "belongs to no cell of this run")
            elif top == "tasks" and rest.partition("/")[0] not in self.tasks_there():
                self.wrong(place, "belongs to no task of this run")
        if there := [name for name in _DERIVED if (self.root / name).exists()]:
            self.unchecked(f"what is made from these files or only shown: {', '.join(there)}")


def _without(content: dict[str, Any], matched: bool) -> dict[str, Any]:
    """Leave out the rank that a run with a matched budget has found."""
    if matched:
        content["method"] = {k: v for k, v in content["method"].items() if k != "rank"}
    return content


def _same(one: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return abs(one - other) <= _ROUNDING
    return bool(one == other)


def _inside(place: str) -> bool:
    path = Path(place)
    return not path.is_absolute() and ".." not in path.parts


def _repeats(ids: Sequence[str]) -> bool:
    return len(set(ids)) < len(ids)


def _short(value: Any) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
