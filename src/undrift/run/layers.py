"""From layers to a configuration: presets, YAML, flags, `--set`.

Later layers win: the defaults in config.py, the benchmark's preset (its own settings, then those
for the method's file, then those for the method's full name), the user's YAML, flags, `--set`.
An unknown key is an error that offers the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from undrift.data import bounded_yaml
from undrift.errors import ConfigError, RunDirError, unknown
from undrift.registry import METHODS
from undrift.run.config import PROFILES, RunConfig
from undrift.rundir.files import known_format
from undrift.untrusted import half_character, is_regular, read_text, strange_kind, why

Layer = Mapping[str, Any]

_STEM = re.compile(r"[\w-]{1,100}")
_DEEPEST = 10  # parts of a dotted key


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
    for layer in map(spelled, layers):
        asked = merged(_without_replaced(asked, layer), layer)
    if "benchmark" not in asked:
        raise ConfigError("no benchmark given; `undrift list benchmarks` names them")
    method = asked.get("method", {}).get("name", "same")
    stem, _ = METHODS.split(method)
    preset: dict[str, Any] = dict(load_preset(asked["benchmark"]))
    by_method: Layer = preset.pop("methods", {})
    profiles: Layer = preset.pop("profiles", {})
    own = [spelled(by_method.get(name, {})) for name in dict.fromkeys((stem, method))]
    content = merged(spelled(preset), *own, {"method": {"name": method}}, asked)
    content["profile"] = _profile(content.get("profile", {}), merged(PROFILES, profiles))
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise explained(error, RunConfig) from error


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
    file = files("undrift") / "presets" / f"{benchmark}.yaml"
    return parse(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else {}


def presets() -> list[str]:
    """Name the runs that undrift ships with, such as "llava-1.5-7b/coin-paper.yaml"."""
    root = files("undrift") / "presets"
    folders = (folder for folder in root.iterdir() if folder.is_dir())
    return sorted(f"{folder.name}/{file.name}" for folder in folders for file in folder.iterdir())


def run_file(name: str) -> Path:
    """Find a run's YAML file: one of the user's, or else one that undrift ships with.

    Args:
        name: A path, or a name in `presets`.

    Returns:
        The file.

    Raises:
        UnknownName: If there is neither; the nearest preset is named.
    """
    if is_regular(Path(name)) or strange_kind(Path(name)):  # the latter is refused by its reader
        return Path(name)
    if name not in presets():
        raise unknown("file or preset", name, presets())
    return Path(str(files("undrift") / "presets" / name))


def load_yaml(path: Path) -> Layer:
    """Read a user's configuration.

    Args:
        path: A YAML file.

    Returns:
        Its content.

    Raises:
        ConfigError: If it cannot be read or is no mapping.
    """
    content = bounded_yaml.load_yaml(path)
    try:
        return _mapping(known_format(path, content), str(path))
    except RunDirError as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def parse(text: str, origin: str) -> Layer:
    """Parse YAML that holds a mapping.

    Args:
        text: The YAML.
        origin: For the message.

    Returns:
        The mapping.

    Raises:
        ConfigError: If it is no YAML, or no mapping.
    """
    return _mapping(bounded_yaml.parse_yaml(text, origin), origin)


def _mapping(content: Any, origin: str) -> Layer:
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{origin} must hold `key: value` lines, not {type(content).__name__}")
    return content


def overrides(settings: Iterable[str]) -> Layer:
    """Turn `train.epochs=2` texts into a layer.

    Args:
        settings: What was given with `--set`.

    Returns:
        A nested mapping.

    Raises:
        ConfigError: If one lacks its `=`.
    """
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
        nested: Any = parse(f"value: {value}", f"--set {setting[:100]!r}").get("value")
        for part in reversed(parts):
            nested = {part: nested}
        out = merged(out, spelled(nested))
    return out


def read_order(value: str) -> str | tuple[str, ...]:
    """Read `--order`: the name of an order, or a file with one task name a line (or a YAML list).

    Args:
        value: What was given.

    Returns:
        The name, or the task names.

    Raises:
        ConfigError: If the file names no task, or cannot be read.
    """
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


def spelled(layer: Layer) -> dict[str, Any]:
    """Write `method: same` and `profile: lite` as mappings, so that layers can be merged.

    Args:
        layer: A layer.

    Returns:
        A copy of it.

    Raises:
        ConfigError: If one of the two is neither a name nor a mapping.
    """
    out = dict(layer)
    for key in {"method", "profile"} & out.keys():
        given: Any = {"name": out[key]} if isinstance(out[key], str) else out[key]
        if not isinstance(given, Mapping) or not isinstance(given.get("name", ""), str):
            raise ConfigError(
                f"{key}: expected a name, or a mapping with one (got {repr(given)[:100]})"
            )
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


def explained(error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """Turn pydantic's report into one message, with the nearest key for an unknown one.

    Args:
        error: The report.
        model: What was to be made.

    Returns:
        The exception to raise.
    """
    for problem in error.errors():
        if problem["type"] == "extra_forbidden":
            place = [str(part) for part in problem["loc"]]
            prefix = ".".join(place[:-1])
            fields = _fields(model, problem["loc"][:-1])
            known = [f"{prefix}.{field}" if prefix else field for field in fields]
            return unknown("key", ".".join(place), known)
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return ConfigError(f"{place}: {problem['msg'].lower()} (got {repr(problem['input'])[:100]})")


def _fields(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """List the keys that a place inside a model can have."""
    for part in place:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            model = next(filter(_is_model, (annotation, *get_args(annotation))))
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
