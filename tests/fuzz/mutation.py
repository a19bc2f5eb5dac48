"""Valid files made invalid a little: a value of another kind, a key gone, bytes cut or turned."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from hypothesis import strategies as st

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 8, 10**9, 2**63, 10**19, 0.5, -0.0, 1e308, "", "8", "a", "../../x",
    "/etc/passwd", "nul", "\u00e9", "x" * 300, "(a+)+$", [], [[]], {}, {"a": 1}, [None], [1, "2"],
]  # fmt: skip
TEXTS = [
    "", "{", "[]", "null", "7", '"text"', "NaN", "[1e999]", "[" * 3000, '{"a":' * 3000, "9" * 5000,
    '{"a": 1, "a": 2}', '{"a": "\\ud800"}', '{"format": 2}', '{"format": true}', "\ufeff{}", "{}\0",
]  # fmt: skip


def mutated(value: Any, random: Random) -> Any:
    """Change one to three places of a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return random.choice(STRANGE)
        holder, key = random.choice(places)
        how = random.randrange(4)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[random.choice(["format", "a", "", key + "x"])] = holder[key]
        elif how == 2:
            other, place = random.choice(places)
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = copy.deepcopy(random.choice(STRANGE))
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def spoilt(content: bytes, random: Random) -> bytes:
    """Cut, turn, double or replace bytes."""
    how = random.randrange(6)
    at, size = random.randrange(len(content) + 1), random.randint(1, 16)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + content[at + size :]
    if how == 2:
        return content[:at] + random.randbytes(size) + content[at:]
    if how == 3:
        return random.randbytes(random.randint(0, 64))
    near = min(at, 400) if how == 4 else at  # the header decides most
    turned = bytearray(content)
    for place in range(near, min(near + size, len(turned))):
        turned[place] ^= 1 << random.randrange(8)
    return bytes(turned)


def as_text(value: Any, random: Random) -> bytes:
    """A JSON file that was changed: mostly in its values, sometimes in its bytes."""
    how = random.randrange(8)
    if how == 0:
        return random.choice(TEXTS).encode(errors="surrogatepass")
    if how == 1:
        return spoilt(json.dumps(value).encode(), random)
    return json.dumps(mutated(value, random)).encode()


seeds = st.integers(0, 2**48)
