"""What files of others may hold: any JSON, any text, valid rows with something wrong in them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# Half characters, controls, other scripts' digits, letters that grow in upper or lower case.
characters = st.one_of(
    st.characters(), st.sampled_from("\ud800\udfff\0\n\x1b\u2028\u202e²٣İßŉ'\"[]{}")
)
texts = st.text(characters, max_size=12)
numbers = st.one_of(
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.sampled_from([0, -0.0, 1e308, 5e-324, 10**299, 10**300, 2**63, True]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)


def _deep(args: tuple[int, Any, bool]) -> Any:
    depth, value, lists = args
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


deep = st.tuples(st.sampled_from([3, 50, 99, 101, 300]), scalars, st.booleans()).map(_deep)
anything = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ),
    deep,
)


@st.composite
def spoiled(draw: st.DrawFn, valid: st.SearchStrategy[Any]) -> Any:
    """Take a valid value, and put anything in the place of some of its parts."""
    value = json.loads(json.dumps(draw(valid)))
    for _ in range(draw(st.integers(0, 3))):
        at, key = value, None
        places: list[tuple[Any, Any]] = []
        waiting = [value]
        while waiting:
            at = waiting.pop()
            keys = at.keys() if isinstance(at, dict) else range(len(at))
            places += [(at, key) for key in keys]
            waiting += [at[key] for key in keys if isinstance(at[key], dict | list)]
        if not places:
            break
        at, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "drop", "add", "repeat"])):
            case "replace":
                at[key] = draw(anything)
            case "drop":
                del at[key]
            case "add" if isinstance(at, dict):
                at[draw(texts)] = draw(anything)
            case _ if isinstance(at, list):
                at.append(at[key])
    return value


@st.composite
def json_bytes(draw: st.DrawFn, value: Any) -> bytes:
    """Write a value as JSON, perhaps with a few bytes changed, lost or put in between."""
    ascii_only = draw(st.booleans())
    content = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(content))


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Change nothing, mostly; else a few bytes."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(content)))
        new = draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"[" * 2000, b"9" * 5000])))
        content = content[:at] + new + content[at + draw(st.sampled_from([0, 1, len(content)])) :]
    return content
