"""What a run is: one frozen, validated configuration, put together from layers.

Later layers win: the defaults here, the benchmark's preset (its own settings, then those for the
method's file, then those for the method's full name), the user's YAML, flags, `--set`. An unknown
key is an error that offers the nearest known one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from undrift import bounded_yaml
from undrift.errors import ConfigError, RunDirError, unknown
from undrift.registry import DEFAULT_METHOD, METHODS
from undrift.rundir.files import known_format
from undrift.untrusted import half_character, is_regular, read_text, strange_kind, why

Layer = Mapping[str, Any]
"""A part of a configuration: nested mappings."""
Model = TypeVar("Model", bound=BaseModel)

_PRESETS = files("undrift") / "presets"
_STEM = re.compile(r"[\w-]{1,100}")
_DEEPEST = 10  # parts of a dotted key
_THREADS_A_CPU = 16
LEAST_STEPS = 100
"""So many steps, at least, `epochs: auto` gives a task, see docs/decisions.md."""
MOST_SEED = 2**32 // 1000 - 1
"""A task's seed is a thousand of these and its number, and numpy takes 32 bits."""
DO_NOT_MATTER = {"data", "out", "threads", "device", "report_to", "watch_routes"}
"""Never in run.yaml: no number depends on them."""


def _kinds(annotation: Any) -> set[Any]:
    """List the types that a field is made of, such as int and None, or tuple and float."""
    parts = [part for part in get_args(annotation) if get_origin(annotation) is not Literal]
    return {annotation}.union(*map(_kinds, parts)) if parts else {annotation}


def _holds_truth(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value
    many = isinstance(value, Mapping | list | tuple)
    return any(map(_holds_truth, inner)) if many else isinstance(value, bool)


class Frozen(BaseModel):
    """The base of what is read from YAML: nothing in it changes, and no key is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what would be taken for 1 or 0, such as YAML's yes and no."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if {int, float} & kinds and not {bool, Any} & kinds and _holds_truth(value):
            raise ValueError(
                "expected a number, and YAML takes yes, no, on and off for true, false"
            )
        return value


class MethodConfig(Frozen):
    """Which method, and its options.

    Args:
        name: Such as "same", or "same-paper" for a named setting of it.
        options: The method's own keys; in YAML they stand beside `name`.
    """

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "options" not in value:
            rest = {key: option for key, option in value.items() if key != "name"}
            return {"name": value.get("name"), "options": rest}
        return value


class TrainConfig(Frozen):
    """How each task is trained.

    Args:
        learning_rate: Peak rate; the method's own if not given.
        train_projector: Train the multimodal projector beside the adapter; pictures are then run
            through the vision tower at every step.
        projector_learning_rate: The projector's own peak rate.
        global_batch: Examples a step, of all processes together; batch_size * accumulation if not
            given.
        batch_size: Examples that a process takes at once, at most.
        accumulation: Micro-batches a step, where `global_batch` is not given.
        epochs: Passes over a task's examples; "auto", as `undrift learn` has it by itself, for as
            many whole ones as make 100 steps, and one where that has more.
        max_steps: Steps a task, instead of `epochs`.
        warmup_ratio: Share of the steps in which the rate rises.
        weight_decay: AdamW's.
        scheduler: How the rate falls.
        max_grad_norm: Longer gradients are shortened; 0 for never.
        activation_checkpointing: Compute activations again in the backward pass, to save memory.
        checkpoint_steps: Steps between two snapshots inside a task; 0 for none.
        log_steps: Steps between two lines of train.jsonl.
    """

    learning_rate: PositiveFloat | None = None
    train_projector: bool = False
    projector_learning_rate: PositiveFloat = 2e-5
    global_batch: PositiveInt | None = None
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    epochs: PositiveFloat | Literal["auto"] = 1.0
    max_steps: PositiveInt | None = None
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    max_grad_norm: NonNegativeFloat = 1.0
    activation_checkpointing: bool = False
    checkpoint_steps: NonNegativeInt = 200
    log_steps: PositiveInt = 10

    @model_validator(mode="after")
    def _one_of_two(self) -> TrainConfig:
        if self.global_batch is not None and self.accumulation > 1:
            raise ValueError(
                "accumulation follows from global_batch and batch_size; leave one of the two out, "
                "or set train.accumulation=1"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what runs from before this key have not got, so that they go on."""
        content = write(self)
        return {k: v for k, v in content.items() if k != "global_batch" or v is not None}

    @property
    def examples_a_step(self) -> int:
        """How many examples a step takes."""
        return self.global_batch or self.batch_size * self.accumulation

    def passes(self, examples: int) -> float:
        """Return the epochs that a task of so many examples gets."""
        if self.epochs != "auto":
            return self.epochs
        return math.ceil(LEAST_STEPS / max(1, math.ceil(examples / self.examples_a_step)))

    def steps(self, examples: int) -> int:
        """Return the steps that a task of so many examples gets."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.passes(examples) * math.ceil(examples / self.examples_a_step))


class EvalConfig(Frozen):
    """How answers are generated.

    Args:
        batch_size: Prompts at a time.
        split: Which examples are asked: "test", or "validation" where settings are chosen.
        scoring: Whose rules say what is right on a published benchmark: the public code's "coin",
            "hide" or "prism", the data sets' own, "official" (as VQAv2's and VizWiz's first was,
            "official-2015"), or content only, "lenient". All of them are kept with every
            prediction.
    """

    batch_size: PositiveInt = 16
    split: Literal["test", "validation"] = "test"
    scoring: Literal["coin", "hide", "prism", "official", "official-2015", "lenient"] = "coin"


class StreamConfig(Frozen):
    """The stream of a run without boundaries; nothing here counts in another run.

    Args:
        points: At so many evenly spaced steps all tasks seen so far are asked, the last at the end.
        blend: Which share of a task's visit is mixed with the visits beside it: at 0 the tasks
            change sharply, at 1 two are mixed at any time, above that more.
    """

    points: PositiveInt = 10
    blend: NonNegativeFloat = 1.0


class Profile(Frozen):
    """How much of a benchmark a run uses.

    Args:
        name: For messages and tables.
        train_share: Share of every task's training examples.
        test_share: Share of every task's test examples.
        limit: At most so many training and so many test examples a task, chosen by their ids: the
            same ones on every machine, however the files are sorted.
        fraction: Share of every task's training and test examples, chosen in the same way.
        draw: Another number chooses other examples for `limit` and `fraction`.
        cells: Which cells of the matrix are measured. "all": zero-shot, every task seen, and the
            next one for forward transfer; "seen": the same without the next one; "ends": the task
            just learned, and every task at the end.
    """

    name: str
    train_share: float = Field(default=1.0, gt=0, le=1)
    test_share: float = Field(default=1.0, gt=0, le=1)
    limit: PositiveInt | None = None
    fraction: float | None = Field(default=None, gt=0, le=1)
    draw: NonNegativeInt = 0
    cells: Literal["all", "seen", "ends"] = "all"


PROFILES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lite": {"train_share": 0.5, "test_share": 0.5, "cells": "ends"},
    "demo": {"train_share": 0.5, "test_share": 0.5, "cells": "seen"},
}


class RunConfig(Frozen):
    """Everything about one run.

    Args:
        benchmark: Its name.
        reading: Options of the benchmark's own, such as `instructions: Diverse` for coin.
        skip_bad: Leave out rows and pictures that cannot be used, and list them, instead of
            stopping at the first.
        method: The method and its options.
        match_budget: Give the method the rank at which it costs what `finetune` costs at
            `experts * rank`: in parameters stored, "total", or in those that a token is multiplied
            with, "active", or in bytes on disk, "state". Whatever grows is meant as it is after the
            last task. "none" leaves the rank alone.
        seed: Decides initial weights, order of examples and sketches.
        order: "default", a name the benchmark knows, or task names.
        boundaries: "tasks", one training a task; or "none", one training over a stream in which
            the tasks blend and return, and the method is told no task and no end of one.
        stream: What that stream is like, and how often it is asked about.
        backbone: "pocket", a folder, or a Hub name, as it was typed.
        backbone_folder: Where that folder lies, from anywhere; a run notes it by itself.
        dtype: "auto", or a torch dtype's name.
        quantize: "none", or "8bit" or "4bit" for a frozen language model kept by bitsandbytes.
        remember: What a method's history begins with: "none"; the base's own answers to the
            benchmark's "prompts", or undrift's own where it has none; its "weights"; or a folder
            that `undrift remember` has written.
        profile: How much of the benchmark is used.
        train: How tasks are trained.
        eval: How answers are generated.
        data: The benchmark's folder.
        out: The run's folder.
        threads: Threads of the CPU; torch's own choice if not given.
        device: "auto", "cpu", "cuda" ...
        report_to: Who is told the metrics while a task is learned: "tensorboard", "trackio",
            "wandb" or another that transformers knows.
        watch_routes: Steps between two looks at where the routers send the inputs of earlier
            tasks; 0 for never. What they see is logged, and the time they take is not the task's.
    """

    benchmark: str
    reading: dict[str, Any] = {}
    skip_bad: bool = False
    method: MethodConfig = MethodConfig(name=DEFAULT_METHOD)
    match_budget: Literal["none", "total", "active", "state"] = "none"
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    order: str | tuple[str, ...] = "default"
    boundaries: Literal["tasks", "none"] = "tasks"
    stream: StreamConfig = StreamConfig()
    backbone: str = "pocket"
    backbone_folder: Path | None = None
    dtype: str = "auto"
    quantize: Literal["none", "8bit", "4bit"] = "none"
    remember: str = "none"
    profile: Profile = Profile(name="full")
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    data: Path | None = None
    out: Path | None = None
    threads: PositiveInt | None = None
    device: str = "auto"
    report_to: tuple[str, ...] = ()
    watch_routes: NonNegativeInt = 0

    @field_validator("report_to", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take "tensorboard,wandb" as well."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
            return value  # for pydantic to refuse
        names = [name.strip() for part in parts for name in part.split(",")]
        return tuple(dict.fromkeys(name for name in names if name not in ("", "none")))

    @field_validator("threads")
    @classmethod
    def _usual_threads(cls, value: int | None) -> int | None:
        return value if value is None else check_threads(value)

    @property
    def folder(self) -> Path:
        """Where the run goes: `out`, or a name made of what was chosen."""
        if self.out is not None:
            return self.out
        order = self.order if isinstance(self.order, str) else "own-order"
        matched = f"match-{self.match_budget}"
        begun = f"remember-{Path(self.remember).name}"
        words = (order, self.profile.name, matched, "stream" if self.is_stream else "full", begun)
        usual = ("default", "full", "match-none", "remember-none")
        extra = [word for word in words if word not in usual]
        name = "-".join([self.benchmark, self.method.name, *extra, f"s{self.seed}"])
        return Path("runs") / name

    @property
    def is_stream(self) -> bool:
        """Whether the method is told of no boundaries."""
        return self.boundaries == "none"

    @property
    def base(self) -> str:
        """Where the backbone is loaded from, see `located`."""
        return located(self.backbone, self.backbone_folder)

    def text(self, *, whole: bool = False) -> str:
        """Return the text of run.yaml: what decides the run's numbers, and where its base lies.

        Args:
            whole: All else that was asked for as well, such as `data` and `out`.

        Returns:
            YAML.
        """
        content = self.model_dump(mode="json", exclude=None if whole else DO_NOT_MATTER)
        if whole:
            content = {k: v for k, v in content.items() if v is not None or k not in DO_NOT_MATTER}
        content["method"] = {"name": self.method.name, **self.method.options}
        for key in ("match_budget", "remember"):
            if content[key] == "none":  # as in the runs from before there was a choice
                del content[key]
        if not self.is_stream:  # likewise
            del content["boundaries"], content["stream"]
        if self.backbone_folder is None:
            del content["backbone_folder"]
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def check_threads(threads: int) -> int:
    """Refuse so many threads that a system would rather end the process than begin them.

    Args:
        threads: Of the CPU.

    Returns:
        The same.

    Raises:
        ConfigError: If they are more than this machine could use by far.
    """
    there = os.cpu_count() or 1
    if threads > _THREADS_A_CPU * there:
        raise ConfigError(
            f"{threads} threads are too many for the {there} CPUs of this machine, where more than "
            f"{there} make nothing faster; give at most {_THREADS_A_CPU * there}"
        )
    return threads


def located(name: str, folder: str | Path | None) -> str:
    """Say where a backbone that was recorded is loaded from.

    Args:
        name: As it was typed, a relative folder perhaps.
        folder: Where that folder was; None of a Hub name, or in an older record.

    Returns:
        The folder; the name if the folder is gone and the name leads to one from here.
    """
    if folder is None or (
        not Path(folder).is_dir() and os.path.isdir(os.path.expanduser(name))  # noqa: PTH111, PTH112
    ):
        return name
    return str(folder)


def resolve(*layers: Layer) -> RunConfig:
    """Put a configuration together.

    Args:
        *layers: Nested mappings in order of rising weight; the preset is put below them.

    Returns:
        The configuration.

    Raises:
        ConfigError: If a value cannot be used.
        UnknownName: If a key, method or profile does not exist.
    """
    asked: dict[str, Any] = {}
    for layer in map(spelled_out, layers):
        asked = merged(_without_replaced(asked, layer), layer)
    if "benchmark" not in asked:
        raise ConfigError("no benchmark given; `undrift list benchmarks` names them")
    method = asked.get("method", {}).get("name", DEFAULT_METHOD)
    stem, _ = METHODS.split(method)
    preset: dict[str, Any] = dict(load_preset(asked["benchmark"]))
    by_method: Layer = preset.pop("methods", {})
    profiles: Layer = preset.pop("profiles", {})
    own = [spelled_out(by_method.get(name, {})) for name in dict.fromkeys((stem, method))]
    content = merged(spelled_out(preset), *own, {"method": {"name": method}}, asked)
    content["profile"] = _profile(content.get("profile", {}), merged(PROFILES, profiles))
    return validated(RunConfig, content)


def merged(*layers: Layer) -> dict[str, Any]:
    """Merge nested mappings; where both sides are mappings they are merged, else the last wins."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            there: Any = out.get(key)
            if isinstance(there, Mapping) and isinstance(value, Mapping):
                out[key] = merged(there, value)
            else:
                out[key] = value
    return out


def load_preset(benchmark: str) -> Layer:
    """Read the preset of a benchmark; empty if it has none."""
    if not isinstance(benchmark, str) or not _STEM.fullmatch(benchmark):
        return {}  # no benchmark is called so, which others will say
    file = _PRESETS / f"{benchmark}.yaml"
    return parse_mapping(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else {}


def presets() -> list[str]:
    """Name the runs that undrift ships with, such as "llava-1.5-7b/coin-paper.yaml"."""
    folders = (folder for folder in _PRESETS.iterdir() if folder.is_dir())
    return sorted(f"{folder.name}/{file.name}" for folder in folders for file in folder.iterdir())


def run_file(name: str) -> Path:
    """Find a run's YAML file: a path of the user's, or else a name in `presets`."""
    if is_regular(Path(name)) or strange_kind(Path(name)):  # the latter is refused by its reader
        return Path(name)
    if name not in presets():
        raise unknown("file or preset", name, presets())
    return Path(str(_PRESETS / name))


def load_yaml(path: Path) -> Layer:
    """Read a user's YAML file, which must hold a mapping."""
    content = bounded_yaml.load_yaml(path)
    try:
        return _mapping(known_format(path, content), str(path))
    except RunDirError as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def parse_mapping(text: str, origin: str) -> Layer:
    """Parse YAML that must hold a mapping; `origin` is where it comes from, for the message."""
    return _mapping(bounded_yaml.parse_yaml(text, origin), origin)


def _mapping(content: Any, origin: str) -> Layer:
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{origin} must hold `key: value` lines, not {type(content).__name__}")
    return content


def overrides(settings: Iterable[str]) -> Layer:
    """Turn texts such as `train.epochs=2`, given with `--set`, into a nested mapping."""
    out: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {setting[:100]!r}: expected KEY=VALUE, such as method.delta=0.95"
            )
        parts = key.strip().split(".")
        if len(parts) > _DEEPEST or half_character(key):
            raise ConfigError(f"--set {setting[:100]!r}: no key is called so")
        nested: Any = parse_mapping(f"value: {value}", f"--set {setting[:100]!r}").get("value")
        for part in reversed(parts):
            nested = {part: nested}
        out = merged(out, spelled_out(nested))
    return out


def check_used(config: RunConfig, settings: Layer) -> None:
    """Refuse what was given with `--set` and counts for nothing beside the rest.

    What says the default again, as a configuration that was printed does, is no such thing.

    Args:
        config: What it has become a part of.
        settings: From `overrides`.

    Raises:
        ConfigError: If there is such a setting; the message names what it needs.
    """
    train, usual = config.train, RunConfig(benchmark=config.benchmark)
    steps = f"train.max_steps=null (it is {train.max_steps})"
    for key, used, need in (
        ("stream", config.is_stream, "boundaries=none"),
        ("train.epochs", train.max_steps is None, steps),
        ("train.projector_learning_rate", train.train_projector, "train.train_projector=true"),
        ("train.warmup_ratio", train.scheduler != "constant", "another train.scheduler"),
    ):
        given: Any = settings
        for part in key.split("."):
            given = given.get(part) if isinstance(given, Mapping) else None
        value = attrgetter(key)
        if given is not None and not used and value(config) != value(usual):
            raise ConfigError(
                f"the setting {key} counts only with {need}; set that as well, or leave it out"
            )


def read_order(value: str) -> str | tuple[str, ...]:
    """Read `--order`: an order's name, or a file with a task name a line (or a YAML list)."""
    path = Path(value)
    if not is_regular(path) and not strange_kind(path):
        return value
    try:
        lines = read_text(path, bounded_yaml.MAX_BYTES).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the order file {path}: {why(error)}") from error
    names = tuple(name for line in lines if (name := line.strip().removeprefix("- ").strip()))
    if not names:
        raise ConfigError(f"the order file {path} names no task; write one name a line")
    return names


def spelled_out(layer: Layer) -> dict[str, Any]:
    """Copy a layer with `method: same` and `profile: lite` written as mappings, to be merged."""
    out = dict(layer)
    for key in {"method", "profile"} & out.keys():
        given: Any = {"name": out[key]} if isinstance(out[key], str) else out[key]
        if not isinstance(given, Mapping) or not isinstance(given.get("name", ""), str):
            raise ConfigError(
                f"{key}: expected a name, or a mapping with one (got {repr(given)[:100]})"
            )
        options = given.get("options") if key == "method" else None
        if isinstance(options, Mapping):  # as `MethodConfig` has them, not beside the name
            beside = {name: value for name, value in given.items() if name != "options"}
            if twice := [name for name in options if name in beside]:
                raise ConfigError(
                    f"method: {twice[0]} stands beside the name and below `options`; leave one out"
                )
            given = {**options, **beside}
        out[key] = given
    return out


def _without_replaced(below: Layer, above: Layer) -> Layer:
    """Leave out what belongs to a method, profile or backbone that the layer above replaces."""
    return {
        key: value
        for key, value in below.items()
        if not (key == "backbone_folder" and "backbone" in above)
        and (
            key not in ("method", "profile")
            or above.get(key, {}).get("name", value.get("name")) == value.get("name")
        )
    }


def _profile(given: Layer, known: Mapping[str, Layer]) -> dict[str, Any]:
    name = given.get("name", "full")
    if name not in known:
        raise unknown("profile", name, known)
    return merged(known[name], given, {"name": name})


def validated(kind: type[Model], content: Any) -> Model:
    """Check a configuration; of an unknown key the nearest known one is named.

    Args:
        kind: What is to be made.
        content: Nested mappings.

    Returns:
        An instance of `kind`.

    Raises:
        ConfigError: If a value cannot be used.
        UnknownName: If a key does not exist.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        for problem in problems:
            if problem["type"] == "extra_forbidden":
                key = ".".join(map(str, problem["loc"]))
                prefix = key[: key.rfind(".") + 1]
                known = [prefix + field for field in _fields(kind, problem["loc"][:-1])]
                if kind is not RunConfig:
                    raise unknown("key", key, known) from error
                from undrift.run.setting_keys import unknown_setting  # which reads this file

                raise unknown_setting(key, known, content) from error
        place = ".".join(map(str, problems[0]["loc"]))
        said = problems[0]["msg"].removeprefix("Value error, ")
        got = repr(problems[0]["input"])[:100]
        raise ConfigError(f"{place}: {said[:1].lower()}{said[1:]} (got {got})") from error


def _fields(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """List the keys that a place inside a model can have."""
    for part in place:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            model = next(filter(_is_model, (annotation, *get_args(annotation))))
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
