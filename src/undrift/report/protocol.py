"""What decides a run's numbers, flattened from its manifest into keys and values that compare.

A key that a manifest lacks, because an older undrift wrote it, compares as "not recorded".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undrift.rundir.files import SHORT, short_hash

NOT_RECORDED = "not recorded"
NOT_TRAINED = "not trained"
OPTION = "method."  # begins the keys of a method's own options, which other methods have not got
SEED = "seed"
RATE = "training.learning_rate"

_WHOLE = ("benchmark", "order", SEED, "profile", "backbone", "skipped")
_PARTS = {"data": "data", "weights": "weights", "protocol": "", "settings": OPTION}
_MACHINE = ("commit", "versions", "hardware")
_LEFT_OUT = {"data.licence", "weights.parameters"}  # the second counts the adapter's as well


@dataclass(frozen=True)
class Difference:
    """A key in which runs differ.

    Args:
        key: Such as `training.global_batch`.
        values: One for each run, in their order.
    """

    key: str
    values: Sequence[str]


def facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Flatten what decides the numbers, as far as it was recorded.

    Args:
        manifest: The content of manifest.json.

    Returns:
        Values as text by dotted keys: `seed`, `weights.fingerprint`, `scoring`,
        `training.global_batch`, `task.digits.scorer`, `method.rank` ... The prompt template is
        there as its hash.
    """
    found = {key: _words(manifest[key]) for key in _WHOLE if key in manifest}
    for part, prefix in _PARTS.items():
        for key, value in _flat(manifest.get(part, {}), prefix.removesuffix(".")):
            found[key] = value[:SHORT] if key.endswith("fingerprint") else value
    if "prompt" in found:
        found["prompt_hash"] = short_hash(found.pop("prompt"))
    rate = found.pop(f"{OPTION}learning_rate", None)
    if rate is not None:
        found[RATE] = rate
    return {key: value for key, value in found.items() if key not in _LEFT_OUT}


def made_with(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Flatten what should not decide the numbers and may: code, versions, machine.

    Args:
        manifest: The content of manifest.json.

    Returns:
        Values as text by dotted keys, such as `versions.torch`.
    """
    return dict(_flat({key: manifest[key] for key in _MACHINE if key in manifest}))


def differences(sides: Sequence[Mapping[str, str]]) -> list[Difference]:
    """List the keys in which runs differ.

    Args:
        sides: The facts of each run.

    Returns:
        One entry a key. A method's option is only compared between the runs whose methods have it,
        and how training was done between those that were trained.
    """
    keys = dict.fromkeys(key for side in sides for key in side)
    found = []
    for key in keys:
        values = [side.get(key, NOT_RECORDED) for side in sides]
        no_matter = (NOT_TRAINED, NOT_RECORDED) if key.startswith(OPTION) else (NOT_TRAINED,)
        compared = [value for value in values if value not in no_matter]
        if len(set(compared)) > 1:
            found.append(Difference(key, values))
    return found


def untrained(facts: Mapping[str, str]) -> dict[str, str]:
    """Return the facts of a run that has trained nothing: seed, options and training say so."""
    moot = (SEED, OPTION, RATE.partition(".")[0])
    return {key: NOT_TRAINED if key.startswith(moot) else v for key, v in facts.items()}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Walk through mappings; a list of named things counts as a mapping by their names."""
    if prefix == "tasks":
        prefix, value = "task", {task["name"]: task for task in value}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    elif not prefix.endswith(".name"):
        yield prefix, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "none" if value is None else str(value)
