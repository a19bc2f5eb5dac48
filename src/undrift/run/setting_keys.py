"""Every key of a run's configuration: what `undrift list settings` shows and `--set` takes.

Nothing is listed by hand: keys, defaults and values are those of `RunConfig`, of the methods'
`Config` and of the benchmarks' own options; what they mean is read from the same docstrings.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from undrift.errors import ConfigError, UndriftError, UnknownName, unknown
from undrift.registry import BENCHMARKS, DEFAULT_METHOD, METHODS
from undrift.run.config import RunConfig
from undrift.run.progress import calm

GIVEN_BY_A_RUN = {"root", "progress", "only", "bad"}
"""Parameters of a benchmark that a run fills in by itself."""
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:^(?: .*)?\n?)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}\**(\w+)(?: \([^)]*\))?: (.*(?:\n {8}.*|\n(?=\n* {8}))*)", re.MULTILINE)
_EQUATION = re.compile(r"\[((?:Eq\.|App\.)[^\]]*)\]")
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
}
_NEW = object()
_SIGNS = {Gt: "above {}", Ge: "at least {}", Lt: "below {}", Le: "at most {}"}
_LIMITS = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}


@dataclass(frozen=True)
class Setting:
    """A key of a configuration.

    Args:
        key: As `--set` takes it, such as "train.learning_rate".
        group: Under which heading it is listed, such as "train" or "method same".
        default: What it is where nothing is said.
        values: What it may be, in words.
        about: What it means, with its unit and the number of its equation.
    """

    key: str
    group: str
    default: Any
    values: str
    about: str

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition(".")[2]

    @property
    def equations(self) -> list[str]:
        """The equations of the paper that it stands in."""
        return _EQUATION.findall(self.about)


def all_settings() -> list[Setting]:
    """List the keys of a run, of every benchmark's reading and of the methods, by group."""
    found = list(run_settings())
    for name in BENCHMARKS.names():
        found += reading_settings(name)
    return found + method_keys()


def run_settings() -> Iterator[Setting]:
    """Yield the keys of a run that belong neither to a method nor to a benchmark."""
    defaults = {name: field.default for name, field in RunConfig.model_fields.items()}
    parts = {name: value for name, value in defaults.items() if isinstance(value, BaseModel)}
    yield from _of_model(RunConfig, "run", "", {**defaults, "benchmark": None})
    for name, part in parts.items():
        yield from _of_model(type(part), name, f"{name}.", dict(part))


def _of_model(
    model: type[BaseModel], group: str, prefix: str, defaults: Mapping[str, Any]
) -> Iterator[Setting]:
    about = documented(model)
    for name, field in model.model_fields.items():
        default = defaults[name]
        if not isinstance(default, BaseModel | dict):  # whose keys are listed for themselves
            values = _values(field.annotation, field.metadata)
            yield Setting(f"{prefix}{name}", group, default, values, about.get(name, ""))


def reading_settings(benchmark: str) -> list[Setting]:
    """List the options of a benchmark: the keys below `reading`."""
    try:
        load = BENCHMARKS.load(benchmark)
    except UndriftError:  # another package's, which hurts only who asks for it by name
        return []
    about, kinds = documented(load), _declared(load)
    return [
        Setting(
            f"reading.{name}",
            f"reading {benchmark}",
            parameter.default,
            _values(kinds.get(name)),
            about.get(name, ""),
        )
        for name, parameter in inspect.signature(load).parameters.items()
        if name not in GIVEN_BY_A_RUN
    ]


def check_reading(benchmark: str, reading: Mapping[str, Any]) -> None:
    """Refuse options that a benchmark has not got, and values of another kind than it declares.

    Args:
        benchmark: Its name.
        reading: The options, by their names without `reading.`.

    Raises:
        UnknownName: If there is no such benchmark, or it has no such option.
        ConfigError: If it has no options at all, or a value is of another kind.
    """
    load = BENCHMARKS.load(benchmark)
    known = [key for key in inspect.signature(load).parameters if key not in GIVEN_BY_A_RUN]
    kinds = _declared(load)
    for key, value in reading.items():
        if not known:
            raise ConfigError(
                f"the benchmark {benchmark!r} has no options; leave out reading.{key}"
            )
        if key not in known:
            allowed = [f"reading.{name}" for name in known]
            raise unknown_setting(f"reading.{key}", allowed, {"benchmark": benchmark})
        try:  # as JSON, where a list may be a tuple and a text a path, and true is no number
            text = json.dumps(value, default=str)
            TypeAdapter(kinds.get(key, Any)).validate_json(text, strict=True)
        except PydanticSchemaGenerationError:  # a class that no configuration can hold: not ours
            continue
        except ValidationError as error:
            raise ConfigError(
                f"reading.{key}: expected {_values(kinds[key])} (got {repr(value)[:100]})"
            ) from error


def _declared(load: Callable[..., Any]) -> dict[str, Any]:
    """What a benchmark's parameters are declared to be; nothing where that cannot be looked up."""
    try:
        return get_type_hints(load)
    except NameError:  # another package's, of a name that it imports for type checkers alone
        return {}


def method_settings(name: str) -> list[Setting]:
    """List all options of one method, as its setting has them: the keys below `method`.

    Args:
        name: Such as "same", or "same-paper".

    Returns:
        The settings.

    Raises:
        UnknownName: If there is no such method or setting.
    """
    stem, setting = METHODS.split(name)
    made = METHODS.load(stem)
    return _of_config(made.Config, f"method {name}", asdict(made(setting).config))


def method_keys() -> list[Setting]:
    """List the options that every method has, then what each adds, or begins with otherwise."""
    from undrift.methods.base import Config

    shared = {field.name: field.default for field in fields(Config)}
    found: list[Setting] = []
    for name in METHODS.names():
        try:
            own = method_settings(name)
        except UndriftError:
            continue
        found += [each for each in own if each.default != shared.get(each.name, _NEW)]
    return _of_config(Config, "methods, all", shared) + found


def _of_config(kind: type, group: str, defaults: Mapping[str, Any]) -> list[Setting]:
    kinds, about = get_type_hints(kind), documented(kind)
    return [
        Setting(
            f"method.{field.name}",
            group,
            defaults[field.name],
            _values(kinds[field.name], said=field.metadata.get("allowed", ("",))[0]),
            about.get(field.name, ""),
        )
        for field in fields(kind)
    ]


def documented(thing: Any) -> dict[str, str]:
    """Read what a class, its bases included, or a function says of its arguments, by name."""
    found: dict[str, str] = {}
    for each in reversed(thing.__mro__) if isinstance(thing, type) else (thing,):
        text = inspect.cleandoc(each.__doc__ or "")
        for section in _SECTION.findall(text):
            for name, about in _ENTRY.findall(section):
                found[name] = " ".join(about.split())
    return found


def _values(kind: Any, metadata: Sequence[Any] = (), said: str = "") -> str:
    """Say in words what a value may be."""
    bounds = ((getattr(each, _LIMITS[type(each)]), sign) for each, sign in _signed(metadata))
    limits = [sign.format(n if isinstance(n, int) else f"{n:g}") for n, sign in bounds]
    if get_origin(kind) in (Union, UnionType):
        parts = [_values(part, metadata) for part in get_args(kind) if part is not NoneType]
        return " or ".join([said or ", ".join(parts), *["null"] * (NoneType in get_args(kind))])
    if hasattr(kind, "__metadata__"):  # Annotated
        return _values(get_args(kind)[0], [*kind.__metadata__, *metadata], said)
    if said:
        return said
    if get_origin(kind) is Literal:
        return ", ".join(str(value) for value in get_args(kind))
    if get_origin(kind) in (tuple, list):
        return "a list"
    word = _WORDS.get(kind, "a path" if kind is not None else "")
    return " ".join([word, " and ".join(limits)]).strip()


def _signed(metadata: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    for each in metadata:
        if type(each) in _SIGNS:
            yield each, _SIGNS[type(each)]


# ------------------------------------------------------------ a key that does not exist


def unknown_setting(key: str, known: Iterable[str], content: Mapping[str, Any]) -> UnknownName:
    """Make (not raise) the error for a key that does not exist, with the full keys it may mean.

    Args:
        key: As it was given, such as "learning_rate".
        known: The keys that stand in the same place.
        content: The configuration that it was given in: it names the method and the benchmark.

    Returns:
        The error.
    """
    listed = sorted(known)
    place = key.rpartition(".")[0]
    near = meant(key, [*listed, *(setting.key for setting in run_settings())])
    near = near or meant(key, _chosen_keys(content))
    here = [name for name in near if name.rpartition(".")[0] == place]
    kind = f"key of {_method(content)}" if place == "method" else "key"
    return unknown(kind, key, listed, here or near)


def meant(key: str, keys: Iterable[str]) -> list[str]:
    """Find the keys that a shortened one may stand for: same end, first letters, or beginning.

    Args:
        key: Such as "learning_rate", "lr" or "epoch".
        keys: Full keys.

    Returns:
        Those of the first rule that finds any, such as "train.learning_rate".
    """
    asked = key.rpartition(".")[2].lower().replace("-", "_")
    ends = {each: each.rpartition(".")[2] for each in keys if each != key}
    rules = (
        lambda end: end == asked,
        lambda end: "_" in end and "".join(part[:1] for part in end.split("_")) == asked,
        lambda end: len(asked) > 2 and (end.startswith(asked) or asked.startswith(end)),
        lambda end: difflib.SequenceMatcher(None, asked, end).ratio() > 0.85,
    )
    for rule in rules:
        if found := [each for each, end in ends.items() if rule(end)]:
            return found
    return []


def _method(content: Mapping[str, Any]) -> str:
    """Say which method a configuration names; the default where it names none."""
    method = content.get("method", {})
    return method.get("name", DEFAULT_METHOD) if isinstance(method, Mapping) else method


def _chosen_keys(content: Mapping[str, Any]) -> list[str]:
    """Name the keys of the method and of the benchmark that a configuration names."""
    benchmark = content.get("benchmark")
    found: list[Setting] = []
    calm(None)  # methods import what talks
    try:
        found += method_settings(_method(content))
        found += reading_settings(benchmark) if isinstance(benchmark, str) else []
    except UndriftError:  # a name that does not exist either: the other mistake is told first
        pass
    return [setting.key for setting in found]
