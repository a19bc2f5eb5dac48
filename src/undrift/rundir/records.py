"""What our JSON files hold (runs, adapters, snapshots, studies, diagnoses), checked when read.

Each file holds a record, and a record is checked before it is used. A value of another kind is
refused and never turned into what was expected, a missing key is refused, and a key that is not
known is left alone: a later version may have added it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from undrift.rundir.files import (
    NAME_RULE,
    SNAPSHOT,
    damaged,
    is_name,
    parsed,
    read_json,
    read_lines,
    short,
    text_of,
)


def _checked_name(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"no name of a file: {NAME_RULE}")
    return value


def _plain_path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("no path")
    return value


Name = Annotated[str, AfterValidator(_checked_name)]
"""What becomes a part of a path."""

Place = Annotated[str, AfterValidator(_plain_path)]
"""A path that is read and never written."""

Number = float | None


class Record(BaseModel):
    """The base of all: nothing is converted, what is not known is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def read_record(path: Path, kind: type[Record]) -> dict[str, Any]:
    """Return the content of one of our JSON files, without the format; errors name the key."""
    value = read_json(path)
    check(path, value, TypeAdapter(kind))
    return value


def check(
    path: Path,
    value: Any,
    adapter: TypeAdapter[Any],
    place: Sequence[str | int] = (),
    *,
    as_json: bool = False,
) -> None:
    """Hold a value of a file against what it should be.

    Args:
        path: The file, for the message.
        value: The value.
        adapter: What it should be.
        place: Where in the file it stands.
        as_json: Take lists for tuples and objects for classes, as JSON has nothing else.

    Raises:
        RunDirError: If it is something else; the first fault is told.
    """
    try:
        if as_json:
            adapter.validate_json(json.dumps(value), strict=True)
        else:
            adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        tags = {"benchmark", "files", "function-after"}
        parts = [str(part) for part in (*place, *problem["loc"]) if part not in tags]
        said = problem["msg"].removeprefix("Value error, ").lower()
        got = "" if problem["type"] == "missing" else f" (got {short(problem['input'])})"
        where = ".".join(parts)
        raise damaged(path, f"{where}: {said}{got}" if where else f"{said}{got}") from error


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
    max_new_tokens: PositiveInt | None = None  # an older record does not say
    benchmark: Name
    data: Place | None
    reading: dict[str, Any]
    skip_bad: bool
    profile: dict[str, Any]
    split: Literal["test", "validation"]
    seen_from_here: dict[str, Place] = Field(default={})
    examples: dict[Literal["train", "test"], NonNegativeInt] = Field(default={})


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
    seen_from_here: dict[str, Place] = Field(default={})
    examples: dict[Literal["train", "test"], NonNegativeInt] = Field(default={})

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
    settings: dict[str, Any] = Field(default={})  # all options; adapters of before do not say
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


class _Resumed(Record):
    """What a run was gone on with, where that was another than before.

    Attributes:
        date: In UTC.
        after: How many tasks were finished.
    """

    date: str
    after: NonNegativeInt
    commit: str | None = None
    versions: dict[str, str] = Field(default={})
    hardware: dict[str, str | int | None] = Field(default={})


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
    resumed: list[_Resumed] = Field(default=[])


LEARNED_FROM = "the adapter that is gone on from"
"""Where `Begun.rows` has the files of that adapter."""


class General(Record):
    """general.json of a run: what the base could do, and what it can after the last task.

    Attributes:
        fingerprint: Of what was asked.
        before: The parts, as `undrift.run.general_ability.measure` gives them, of the base; empty
            until they are measured.
        after: Those after the last task, once it is learned.
        loss: Of general ability, in percent.
    """

    fingerprint: str
    before: dict[str, float]
    after: dict[str, float] | None = None
    loss: Number = None


class Remembered(Record):
    """remembered.json: what a base reads before any task, see `undrift.run.remember`.

    Attributes:
        source: "prompts" or "weights".
        backbone: Its name.
        fingerprint: Of its weights.
        prompts: How many it was asked.
        measured: Whether the eigenvalues are those of inputs; those of weights have no such unit.
        linears: For every linear the one whose history it reads.
    """

    source: str
    backbone: str
    fingerprint: str
    prompts: NonNegativeInt
    measured: bool
    linears: Annotated[dict[str, str], Field(min_length=1)]


class _Point(Record):
    step: PositiveInt
    scores: list[Number]


class _Mix(Record):
    step: PositiveInt
    shares: list[Annotated[float, Field(ge=0, le=1)]]


class Stream(Record):
    """stream.json of a run without boundaries.

    Attributes:
        tasks: Their names, in the order of their first visits.
        steps: Of the whole stream.
        points: After so many steps, the score of each task in percent; None before it was seen.
        mix: Up to so many steps, since the entry before, the share of each task.
        metrics: As `undrift.scoring.over_time` gives them.
    """

    tasks: list[Name] = Field(min_length=1)
    steps: PositiveInt
    points: list[_Point] = Field(min_length=1)
    mix: list[_Mix] = Field(min_length=1)
    metrics: dict[str, Number]

    @model_validator(mode="after")
    def _fits(self) -> Stream:
        if any(len(each.scores) != len(self.tasks) for each in self.points) or any(
            len(each.shares) != len(self.tasks) for each in self.mix
        ):
            raise ValueError("expected a value for every task")
        for name, entries in (("points", self.points), ("mix", self.mix)):
            steps = [each.step for each in entries]
            if steps != sorted(set(steps)) or steps[-1] != self.steps:
                raise ValueError(f"{name}: expected rising steps up to the last")
        return self


class Begun(Record):
    """data.json: what a run was begun with, see `undrift.run.input_changes`."""

    rows: dict[str, dict[str, Annotated[list[str], Field(min_length=1)]]]
    files: dict[str, Annotated[list[int | str], Field(min_length=1, max_length=4)]]
    base: dict[str, list[int]]


class Holder(Record):
    """undrift.lock: which process works in a folder, on which host, since when."""

    host: str
    pid: PositiveInt
    since: str


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


class _Guarded(Record):
    task: Name
    before: float
    after: float
    examples: NonNegativeInt
    drop: float


class Result(Record):
    """result.json of `undrift learn`."""

    tasks: list[_Changed] = Field(min_length=1)
    guards: list[_Guarded] = Field(default=[])


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
    facts: Identified | None = None  # of a batch, on its last line


class Identified(Record):
    """What a method tells about its answers, beside a file of them."""

    identified: Number = None
    base: Number = None  # answered by it, being near no task
    prompts: NonNegativeInt = 0


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
    asked: dict[str, str] = Field(default={})  # by task, a digest of the questions


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of answers; an empty file or an incomplete line is refused."""
    rows = read_lines(path)
    check(path, rows, _ANSWERS)
    return rows


_ANSWERS = TypeAdapter(Annotated[list[Answer], Field(min_length=1)])


TRAINER_STATE = "trainer_state.json"
_NOT_A_NUMBER = re.compile(r"(?<=[\s\[,:])(-?Infinity|NaN)(?=[\s,\]}])")

_Word = Annotated[int, Field(ge=0, lt=2**32)]


class _Group(Record):
    params: list[NonNegativeInt]


class Optimizer(Record):
    """optimizer.json: the groups of parameters, and what is a number and no tensor."""

    groups: list[_Group] = Field(min_length=1)
    numbers: dict[str, dict[str, Any]]


class Schedule(Record):
    """schedule.json: where the learning rate has come to."""

    base_lrs: list[float] = Field(min_length=1)
    last_epoch: NonNegativeInt


class Random(Record):
    """random.json: what the generators keep beside their words."""

    numpy: Annotated[list[int | float], Field(min_length=3, max_length=3)]
    python: Annotated[list[int | list[_Word] | float | None], Field(min_length=3, max_length=3)]


class _TrainerState(BaseModel):
    """What transformers' Trainer writes of its counters, with whatever else it may write."""

    model_config = ConfigDict(strict=True, extra="ignore")

    epoch: float
    global_step: NonNegativeInt
    max_steps: NonNegativeInt
    num_train_epochs: NonNegativeInt
    num_input_tokens_seen: NonNegativeInt = 0
    total_flos: float = 0
    train_batch_size: NonNegativeInt | None = None
    best_metric: Number = None
    log_history: list[dict[str, float | int | None]]
    stateful_callbacks: dict[str, Any] = Field(default={})


def check_trainer_state(folder: Path) -> None:
    """Refuse a snapshot whose trainer's counters are damaged, or of another step than its name."""
    file = folder / TRAINER_STATE
    value = parsed(file, _NOT_A_NUMBER.sub("null", text_of(file)))  # a gradient may be infinite
    check(file, value, TypeAdapter(_TrainerState))
    step = SNAPSHOT.fullmatch(folder.name)
    if step is None or int(step[1]) != value["global_step"]:
        raise damaged(file, f"it is of step {value['global_step']}")


class _Cell(Record):
    task: PositiveInt
    name: Name
    after: PositiveInt
    before: PositiveInt | None = None


class _RoutesCell(_Cell):
    overlap: float
    js: float
    tv: float
    top1: float
    entropy: float
    spread: float
    balance: float
    use: list[list[float]]


class _MovedCell(_Cell):
    moved: float


class _Corner(Record):
    strict: Number
    lenient: Number
    form: Number = None


class _Corners(Record):
    old_old: _Corner
    old_new: _Corner
    new_old: _Corner
    new_new: _Corner


class _Lost(Record):
    strict: float
    lenient: float


class _CausesCell(_Cell):
    parts: str
    corners: _Corners
    lost: _Lost
    router: float
    expert: float
    form: float


class _RerouteCell(Record):
    after: PositiveInt
    strict: Number
    lenient: Number
    as_is: Number
    entropy: float


class _Part(Record):
    applies: bool
    why: str
    probe: NonNegativeInt | None = None
    asked: dict[str, int | None] = Field(default={})


class Routes(_Part):
    """routes.json of `undrift diagnose`."""

    linears: list[str] = Field(default=[])
    experts: NonNegativeInt = 0
    cells: list[_RoutesCell]

    @model_validator(mode="after")
    def _every_linear(self) -> Routes:
        if any(len(cell.use) != len(self.linears) for cell in self.cells):
            raise ValueError("cells: expected the use of every linear")
        return self


class Experts(_Part):
    """experts.json of `undrift diagnose`."""

    cells: list[_MovedCell]


class Causes(_Part):
    """causes.json of `undrift diagnose`."""

    cells: list[_CausesCell]


class Reroute(_Part):
    """reroute.json of `undrift diagnose --reroute`."""

    task: PositiveInt | None = None
    name: Name | None = None
    cells: list[_RerouteCell]


class Entropy(Record):
    """What is noted beside the answers of a model whose routers were trained anew."""

    entropy: float


PARTS: Mapping[str, type[Record]] = {
    "routes": Routes,
    "experts": Experts,
    "causes": Causes,
    "reroute": Reroute,
}
"""The answers of `undrift diagnose`, by the file's name."""
