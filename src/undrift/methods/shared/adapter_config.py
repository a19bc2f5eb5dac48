"""The two files of an adapter, held against each other before PEFT builds anything from them.

An adapter is somebody else's file. PEFT takes what adapter_config.json says at its word: a rank of
10**9 is allocated, a pattern that never ends is matched. So every value must be of the kind that
PEFT's own configuration declares, sizes must be those of the tensors that are there, and patterns
must be of a form that cannot run for ever.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
from pydantic import TypeAdapter

import undrift.tuner.pool_lora
import undrift.tuner.soft_prompt  # noqa: F401 (both tell PEFT about their types)
from undrift.errors import RunDirError
from undrift.methods.shared.tensor_files import shapes_of
from undrift.rundir import damaged, text_of
from undrift.rundir.files import parsed, short
from undrift.rundir.records import check
from undrift.tuner.peft_internals import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

Shapes = Mapping[str, tuple[int, ...]]

_LEADING = {
    "moe_lora_A": ("num_experts", "r"),
    "pool_lora_A": ("num_new", "r"),
    "soft_prompt_P": ("length",),
}
"""Which values the first dimensions of a tensor must be, by the last part of its name."""

_OF_TYPE = {"MOE_LORA": "moe_lora_A", "POOL_LORA": "pool_lora_A", "SOFT_PROMPT": "soft_prompt_P"}
_SIZES = (
    "r rank init_r target_r num_experts num_new num_past length width tasks columns max_components "
    "num_virtual_tokens encoder_hidden_size token_dim num_layers num_attention_heads block_size "
    "oft_block_size boft_block_size boft_block_num n_frequency kappa_pattern"
).split()
_ROOM = 4096  # sizes that no tensor shows, such as the columns of a sketch, may be so large
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
_BY_PATTERN = ("rank_pattern", "alpha_pattern")
_LONGEST = 100  # characters of a module's name, about
_WAYS = 1e8  # four parts of any length


def read_config(directory: Path) -> dict[str, Any]:
    """Read adapter_config.json, and hold it against the shapes of the tensors beside it.

    Args:
        directory: The adapter's folder.

    Returns:
        Its content; what PEFT reads after this has the right kinds and sizes.

    Raises:
        RunDirError: If it is damaged or does not belong to the tensors, or these are not there.
    """
    weights = directory / SAFETENSORS_WEIGHTS_NAME
    if not weights.exists():
        raise _without_weights(directory)
    file = directory / CONFIG_NAME
    content = parsed(file, text_of(file))
    if not isinstance(content, dict):
        raise damaged(file, f"expected an object, not {short(content)}")
    kind = content.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(str(each.value) for each in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise damaged(file, f"peft_type: {short(kind)} is none that is known here ({known})")
    adapters = _kinds(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)])
    for key in content.keys() & adapters.keys():
        check(file, content[key], adapters[key], (key,), as_json=True)
    for pattern in _patterns(content):
        if why := endless(pattern):
            raise damaged(file, f"the pattern {short(pattern)} {why}; list the names of modules")
    _check_sizes(file, kind, content, shapes_of(weights))
    return content


def endless(pattern: str) -> str:
    """Say why a regular expression might run for ever, or cannot be used at all.

    Args:
        pattern: The expression.

    Returns:
        Half a sentence; empty if it ends soon on every name of a module.
    """
    if len(pattern) > 100_000:
        return f"is {len(pattern)} characters long"
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern)
            tree = re._parser.parse(pattern)  # type: ignore[attr-defined]
        ways = _ways(tree)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        return f"is no regular expression ({error})"
    return "" if ways <= _WAYS else "can match one name in too many ways, and might never end"


def _ways(tree: Iterable[Any]) -> float:
    """Bound in how many ways an expression can be laid along a name: what backtracking tries."""
    found = 1.0
    for operation, given in tree:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = int(given[0]), min(int(given[1]), _LONGEST), _ways(given[2])
            often = max(1, most - least + 1)
            found *= often * (1.0 if body == 1 else body**most if most <= 30 else float("inf"))
        elif name == "BRANCH":
            found *= sum(map(_ways, given[1]))
        elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            found *= _ways(given[-1])
        elif name == "ATOMIC_GROUP":
            found *= _ways(given)
        elif name == "GROUPREF_EXISTS":
            found *= sum(_ways(each) for each in given[1:] if each is not None)
    return found


def _patterns(content: Mapping[str, Any]) -> list[str]:
    found = [content[key] for key in _PATTERNS if isinstance(content.get(key), str)]
    layers = content.get("layers_pattern")
    found += [
        each for each in (layers if isinstance(layers, list) else ()) if isinstance(each, str)
    ]
    found += [key for name in _BY_PATTERN for key in (content.get(name) or ())]
    return found


@cache
def _kinds(config: Any) -> dict[str, TypeAdapter[Any]]:
    """Say what each value must be, as PEFT or our own configuration declares it."""
    hints = get_type_hints(config)
    for key in ("lora_alpha", "alpha"):  # PEFT says a whole number, and multiplies with any
        if hints.get(key) is int:
            hints[key] = float
    patterns = {"rank_pattern": dict[str, int] | None, "alpha_pattern": dict[str, float] | None}
    hints |= {key: kind for key, kind in patterns.items() if key in hints}
    return {key: TypeAdapter(kind) for key, kind in hints.items()}


def _check_sizes(file: Path, kind: str, content: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse sizes that the tensors do not have: they would be allocated before that is seen."""
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, value in content.items():
        if key in _SIZES:
            values = value.values() if isinstance(value, dict) else (value,)
            limit = max(largest, len(shapes), _ROOM if key in ("columns", "max_components") else 0)
            if any(isinstance(each, int) and not 0 <= each <= limit for each in values):
                raise damaged(file, f"{key}: {short(value)} is more than its tensors have")
    found = False
    for name, shape in shapes.items():
        last = name.rpartition(".")[2]
        if last in _LEADING and kind in _OF_TYPE:
            found = found or last == _OF_TYPE[kind]
            expected = tuple(content.get(key, 0) for key in _LEADING[last])
            if shape[: len(expected)] != expected:
                said = " x ".join(f"{key} {content.get(key)}" for key in _LEADING[last])
                raise damaged(file, f"it says {said}, and {name} is {shape}")
    if kind in _OF_TYPE and not found:
        raise damaged(
            file, f"peft_type: {kind}, and no tensor beside it is called {_OF_TYPE[kind]}"
        )
    if kind == "LORA":
        _check_lora(file, content, shapes)
    whole = [name for name in shapes if "lora_" not in name and "soft_prompt" not in name]
    for name in content.get("modules_to_save") or ():
        if not any(f".{name}." in f".{each}" for each in whole):
            raise damaged(file, f"modules_to_save: no tensor beside it is of {name!r}")


def _check_lora(file: Path, content: Mapping[str, Any], shapes: Shapes) -> None:
    """Hold the ranks of a LoRA against its factors."""
    marks = ("lora_A", "lora_embedding_A")
    ranks = {s[0] for n, s in shapes.items() if s and any(mark in n.split(".") for mark in marks)}
    asked = {content.get("r", 8), *(content.get("rank_pattern") or {}).values()}
    plain = not content.get("target_parameters") and not content.get("monteclora_config")
    if (ranks and plain and not asked & ranks) or any(rank < 1 for rank in asked):
        said = ", ".join(map(str, sorted(ranks)))
        raise damaged(file, f"r: {content.get('r', 8)}, and its factors have rank {said}")


def _without_weights(directory: Path) -> RunDirError:
    if (directory / WEIGHTS_NAME).is_file():
        return RunDirError(
            f"{directory} holds its adapter pickled ({WEIGHTS_NAME}), which is never loaded, since "
            f"opening it runs code; save it again as {SAFETENSORS_WEIGHTS_NAME} with a version of "
            "PEFT that you trust it to"
        )
    return RunDirError(f"{directory} holds no {SAFETENSORS_WEIGHTS_NAME}; name an adapter folder")
