"""What the files of a run, of an adapter and of `undrift learn` and `eval` hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    model_validator,
)

from undrift.rundir.files import read_lines
from undrift.rundir.record import Name, Number, Place, Record, check

Share = Annotated[float, Field(gt=0, lt=1)]


class Change(Record):
    """What had changed when a run was gone on with by --force."""

    date: str
    what: list[str]
    before: dict[str, Any]
    after: dict[str, Any]
    learned_before: list[str]


class _BenchmarkNote(Record):
    name: Name
    digest: str
    benchmark: Name
    data: Place | None
    reading: dict[str, Any]
    skip_bad: bool
    profile: dict[str, Any]
    split: Literal["test", "validation"]


class _FilesNote(Record):
    name: Name
    digest: str
    test: Place | None = None
    train: Place | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: NonNegativeInt | None = None
    images: Place
    scorer: str
    max_new_tokens: PositiveInt
    booleans: str = ""
    skip_bad: bool

    @model_validator(mode="after")
    def _has_source(self) -> _FilesNote:
        if self.test is None and None in (self.train, self.held_out, self.seed):
            raise ValueError("expected `test`, or `train` with `held_out` and `seed`")
        return self


def _kind(note: Any) -> str:
    return "benchmark" if isinstance(note, Mapping) and "benchmark" in note else "files"


_Note = Annotated[
    Annotated[_BenchmarkNote, Tag("benchmark")] | Annotated[_FilesNote, Tag("files")],
    Discriminator(_kind),
]


class Origin(Record):
    """undrift.json beside an adapter: how it was made, and what it has learned."""

    backbone: Place
    backbone_folder: Place | None = None
    fingerprint: str
    dtype: str
    quantize: Literal["none", "8bit", "4bit"] = "none"
    method: str
    options: dict[str, Any]
    benchmark: Name
    after: NonNegativeInt = 0
    learned: list[_Note] = Field(default=[])
    run: dict[str, Any] = Field(default={})
    changes: list[Change] = Field(default=[])

    @model_validator(mode="after")
    def _each_once(self) -> Origin:
        names = [note.name for note in self.learned]
        if len(set(names)) < len(names):
            raise ValueError("learned: two tasks have one name")
        return self


class Matrix(Record):
    """matrix.json of a run."""

    tasks: list[Name] = Field(min_length=1)
    zero_shot: list[Number] | None
    matrix: list[list[Number]] = Field(min_length=1)
    metrics: dict[str, Number]

    @model_validator(mode="after")
    def _fits(self) -> Matrix:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: two have one name")
        rows = [*self.matrix, self.zero_shot or []]
        if len(self.matrix) > len(self.tasks) or any(len(row) > len(self.tasks) for row in rows):
            raise ValueError("the matrix is larger than its tasks")
        if "last" not in self.metrics:
            raise ValueError("metrics.last is missing")
        return self


class _AskedTask(Record):
    name: Name
    scorer: str
    train: NonNegativeInt | None = None
    test: NonNegativeInt | None = None
    max_new_tokens: PositiveInt | None = None


class _Protocol(Record):
    tasks: list[_AskedTask] = Field(default=[])


class _Fingerprint(Record):
    fingerprint: str


class _Budget(Record):
    trainable: NonNegativeInt
    active: int
    stored: int
    state_bytes: NonNegativeInt
    steps: Number = None
    seconds: Number = None
    cpu_seconds: Number = None
    tokens: Number = None
    peak_bytes: Number = None
    resting: dict[str, float] | None = None


class Manifest(Record):
    """manifest.json of a run or of one more task."""

    method: str
    benchmark: str
    order: str | list[str]
    seed: NonNegativeInt
    profile: str
    backbone: str
    settings: dict[str, Any] = Field(default={})
    adapted: str = ""
    protocol: _Protocol = _Protocol()
    data: _Fingerprint | None = None
    weights: _Fingerprint | None = None
    commit: str | None = None
    versions: dict[str, str] = Field(default={})
    hardware: dict[str, str | int | None] = Field(default={})
    match_budget: str = "none"
    budget: list[_Budget] = Field(default=[])
    seconds: dict[str, float] = Field(default={})
    skipped: NonNegativeInt = 0
    changes: list[Change] = Field(default=[])


class Begun(Record):
    """data.json: what a run was begun with, see `undrift.run.input_changes`."""

    rows: dict[str, dict[str, Annotated[list[str], Field(min_length=1)]]]
    files: dict[str, Annotated[list[int | str], Field(min_length=1, max_length=4)]]
    base: dict[str, list[int]]


class Summary(Record):
    """summary.json of `undrift compare --out`."""

    methods: dict[str, dict[str, Any]]
    margins: list[dict[str, Any]]
    differences: dict[str, Any]


class Findings(Record):
    """What `undrift doctor --out` writes."""

    benchmark: str
    data: str | None
    sound: bool
    tasks: dict[str, Any]
    findings: list[dict[str, Any]]


class _StudyRun(Record):
    label: str
    method: str
    seed: NonNegativeInt
    order: str | list[str]
    last: Number
    learning_rate: Number


class _Changed(Record):
    task: Name
    before: float
    after: float
    examples: NonNegativeInt
    new: bool
    changed: bool


class Result(Record):
    """result.json of `undrift learn`."""

    tasks: list[_Changed] = Field(min_length=1)


class Answer(Record):
    """A line of `eval`: a question, what was said to it, what it is worth."""

    id: str
    question: str
    answers: list[str] = Field(min_length=1)
    prediction: str
    strict: Number
    caseless: Number
    official: Number = None
    lenient: Number = None
    form: Number = None

    @model_validator(mode="before")
    @classmethod
    def _both(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and ("lenient" in value) != ("form" in value):
            raise ValueError("expected `lenient` and `form` together")
        return value

    @model_validator(mode="after")
    def _judged(self) -> Answer:
        if self.strict is not None and self.caseless is None:
            raise ValueError("caseless: expected a number where `strict` is one")
        return self


class Said(Record):
    """A line of what a cell that is not finished has noted."""

    id: str
    prediction: str


class Identified(Record):
    """What a method tells about its answers, beside a file of them."""

    identified: Number = None


class StudyResults(Record):
    """The JSON file of a study's results."""

    command: str
    chosen: dict[str, float] = Field(default={})
    runs: list[_StudyRun]


class _Kept(Record):
    id: str
    question: str
    answers: list[str] = Field(min_length=1)
    images: list[Place]
    system: str = ""

    @model_validator(mode="after")
    def _answered(self) -> _Kept:
        if not all(answer.strip() for answer in self.answers):
            raise ValueError("answers: one is empty")
        return self


class Memory(Record):
    """What a method with replay remembers of the tasks it has learned."""

    seen: NonNegativeInt
    tasks: list[list[_Kept]]


class Asked(Record):
    """asked.json of `undrift eval --out`: which adapter, and which files it has written."""

    adapter: str
    files: list[Name] = Field(default=[])


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Read a file of answers, a line each.

    Args:
        path: The file.

    Returns:
        The lines.

    Raises:
        RunDirError: If it cannot be read, is empty, or a line lacks something.
    """
    rows = read_lines(path)
    check(path, rows, _ANSWERS)
    return rows


_ANSWERS = TypeAdapter(Annotated[list[Answer], Field(min_length=1)])
