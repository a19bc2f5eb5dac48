"""YAML of users, within bounds: of length, of depth, and of what its aliases stand for.

The text is gone through once before anything is made of it. An alias (`*name`) counts for all that
it stands for, so that nine lines cannot become a billion texts. Numbers must be finite, and texts
such as a file or a screen can take. A key that is there twice is refused: YAML would keep the last
value, and the first, perhaps a whole block, would be gone without a word.
"""

from __future__ import annotations

import math
import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from undrift.errors import ConfigError, brief
from undrift.untrusted import half_character, read_text, values_in, why

MAX_BYTES = 2**18
MAX_DEPTH = 30
MAX_VALUES = 50_000  # every alias counted as what it stands for

_AS_WRITTEN = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # the keys `<<` and `=`

# libyaml's is about six times faster; PyYAML's wheels bring it, what is built by hand may lack it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """YAML 1.1 takes 1e-3 for a text; this takes it for a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # No two ways to read the same digits: else a long number takes the square of its length.
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Args:
        path: The file.

    Returns:
        Its value; None if it holds nothing.

    Raises:
        ConfigError: If it cannot be read, is no YAML, has a key twice, or goes beyond a bound.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {why(error)}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """Read a YAML text.

    Args:
        text: The text.
        origin: What it is, for the message.

    Returns:
        Its value; None if it holds nothing.

    Raises:
        ConfigError: If it is no YAML, has a key twice, or goes beyond a bound.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{origin} has more than {MAX_BYTES:,} characters; write less")
    try:
        _measure(text, origin)
        value = yaml.load(text, _Loader)  # a SafeLoader that also reads 1e-3
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {_said(error)}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # a date that there is none of, a number of 5,000 digits, `!!int` before no number
        raise ConfigError(f"{origin} holds a value that cannot be read: {error}") from error
    _check(value, origin)
    return value


def _measure(text: str, origin: str) -> None:
    """Refuse what is too deep, stands for too much or has a key twice; no value is made of it."""
    deep = f"{origin} has more than {MAX_DEPTH} lists and mappings inside one another"
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(deep)
    keys = _Loader("")
    sizes: dict[yaml.Node, tuple[int, int] | None] = {}  # None while a node is gone through

    def size(node: yaml.Node) -> tuple[int, int]:
        """Values that a node stands for, and how many are inside one another."""
        if node not in sizes:
            sizes[node] = None
            if isinstance(node, yaml.MappingNode):
                _refuse_twice(node, keys, origin)
            inner = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            of_inner = [size(one) for one in inner if isinstance(one, yaml.Node)]
            values, heights = zip((0, 0), *of_inner, strict=True)
            sizes[node] = 1 + sum(values), 1 + max(heights)
        if (known := sizes[node]) is None:
            raise ConfigError(f"{origin} holds a list or mapping that holds itself")
        return known

    root = yaml.compose(text, _Loader)
    values, height = (0, 0) if root is None else size(root)
    if height > MAX_DEPTH:
        raise ConfigError(deep)
    if values > MAX_VALUES:
        raise ConfigError(
            f"{origin} holds more than {MAX_VALUES:,} values, counting what aliases stand for"
        )


def _refuse_twice(mapping: yaml.MappingNode, keys: Any, origin: str) -> None:
    """Refuse a mapping that itself has a key twice; one that `<<` brings may be there as well."""
    lines: dict[Any, int] = {}
    for node, _ in mapping.value:
        if not isinstance(node, yaml.ScalarNode):
            continue  # no list or mapping can be a key: that is told when a value is made
        # By what it stands for: `yes` and `true` are one key, and so are `a` and "a".
        key = node.value if node.tag in _AS_WRITTEN else keys.construct_object(node)
        line = node.start_mark.line + 1
        if key in lines:
            where = f"lines {lines[key]} and {line}" if line != lines[key] else f"line {line}"
            raise ConfigError(
                f"{origin} has the key {brief(node.value)} twice, in {where}; leave one of them out"
            )
        lines[key] = line


def _said(error: yaml.YAMLError) -> str:
    """Write what YAML's parser says in one line."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    return problem if mark is None else f"{problem}, line {mark.line + 1}, column {mark.column + 1}"


def _check(value: Any, origin: str) -> None:
    """Refuse numbers that are none, and texts that cannot be written."""
    for one in values_in(value):
        if isinstance(one, float) and not math.isfinite(one):
            raise ConfigError(f"{origin} holds {one}; expected a finite number")
        if isinstance(one, int) and abs(one) >= 10**300:
            raise ConfigError(f"{origin} holds a number of more than 300 digits")
        if isinstance(one, str) and ("\0" in one or half_character(one)):
            raise ConfigError(
                f"{origin} holds a text with a NUL or with half a character (a lone surrogate)"
            )
