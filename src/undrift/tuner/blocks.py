"""The blocks of a language model and the linears in them, found by structure.

What the linears are called does not matter, nor the family: a block is an element of the decoder's
list of modules, and in it stand attention (or what mixes tokens in its place) and the feed-forward
network (FFN). Some linears cannot carry an adapter, because they do not read every token of the
text or because what they give is a choice, which has no gradient.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import nn

from undrift.tuner.linear import is_linear, widths

Kind = Literal["attention", "ffn", "other"]

# What families call the PARTS of a block, as an attribute or a class.
_ATTENTION = re.compile(r"attn|attention|mamba|lstm|recurrent|delta_?net", re.IGNORECASE)
_FFN = re.compile(r"mlp|ffn|feed_?forward|moe|expert|^ff$", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc\w*att", re.IGNORECASE)
_READS_TEXT = re.compile(r"q|o$|o_|out|dense|c_proj", re.IGNORECASE)
_CHOOSES = re.compile(r"router|indexer|topk|^gate$|expert_gate$", re.IGNORECASE)

ROUTER = "routers and gates choose, and stay as they are"
EXPERT = "an expert reads only the tokens sent to it"
CROSS = "keys and values of cross-attention read no text"
BY_WEIGHT = "the mixer multiplies with the weight itself"


@dataclass(frozen=True)
class Linear:
    """One linear in a block.

    Args:
        name: Its name in the model.
        module: It, or the adapter around it.
        block: The name of its block.
        kind: The part of the block it is of; "other" are small parts beside attention and FFN.
        never: Why it cannot carry an adapter; empty if it can.
    """

    name: str
    module: nn.Module
    block: str
    kind: Kind
    never: str


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the blocks of the language model.

    They are the elements of the uppermost lists of modules with linears in the decoder. A model
    with a configuration of its own kind in there, such as a vision tower, is passed over.

    Args:
        model: Any model; the whole of it is searched if it has no `get_decoder`.

    Returns:
        By name; empty where there are none.
    """
    decoder: Any = model
    while hasattr(decoder, "get_decoder") and decoder.get_decoder() not in (decoder, None):
        decoder = decoder.get_decoder()
    inside = {id(block) for each in _lists(decoder) or _lists(model) for block in each}
    return {name: module for name, module in model.named_modules() if id(module) in inside}


def linears(model: nn.Module) -> list[Linear]:
    """Sort all linears in the blocks of the language model.

    Args:
        model: Any model, with adapters or without; one that has no `get_decoder` is one block.

    Returns:
        Them, in the order of the model.
    """
    found, whole = [], {} if hasattr(model, "get_decoder") else {"": model}
    for name, block in (blocks(model) or whole).items():
        paths = list(_paths(block, (("", block),)))
        kinds: list[Kind | None] = [_kind(path) for path in paths]
        beside: Kind = "other" if "ffn" in kinds or has_fused_experts(block) else "ffn"
        for path, kind in zip(paths, kinds, strict=True):
            full = ".".join(filter(None, (name, *(step for step, _ in path))))
            found.append(Linear(full, path[-1][1], name, kind or beside, _never(path)))
    return found


def has_fused_experts(block: nn.Module) -> bool:
    """Whether the FFN of a block has experts that lie together in one tensor, not in linears.

    Args:
        block: One block.

    Returns:
        Whether it has.
    """
    parts = block.named_children()
    return any(_has_experts(name, part) for name, part in parts if not _ATTENTION.search(name))


Path = tuple[tuple[str, nn.Module], ...]  # from the block to a linear, each with its attribute


def _lists(root: nn.Module) -> list[nn.ModuleList]:
    level, own = [root], getattr(root, "config", None)
    while level:
        children = [child for module in level for child in module.children()]
        found = [c for c in children if isinstance(c, nn.ModuleList) and _repeats(c)]
        if found:
            return found
        level = [child for child in children if not _is_another_model(child, own)]
    return []


def _repeats(elements: nn.ModuleList) -> bool:
    """Whether the elements hold linears, and are none."""
    return not any(map(is_linear, elements)) and any(map(is_linear, elements.modules()))


def _is_another_model(module: nn.Module, own: Any) -> bool:
    reads = getattr(module, "main_input_name", None)
    return reads is not None and (
        reads != "input_ids"
        or (own is not None and type(getattr(module, "config", own)) is not type(own))
    )


def _paths(module: nn.Module, path: Path) -> Iterator[Path]:
    for name, child in module.named_children():
        here = (*path, (name, child))
        if is_linear(child):
            yield here
        else:
            yield from _paths(child, here)


def _kind(path: Path) -> Kind | None:
    """The part of the block that a linear is of: the innermost module that says so decides."""
    for name, module in reversed(path[:-1]):
        for word in _words(name, module):
            if _ATTENTION.search(word):
                return "attention"
            if _FFN.search(word):
                return "ffn"
        if _mixes_tokens(module):
            return "attention"
    return None


def _words(name: str, module: nn.Module) -> Iterator[str]:
    yield name
    if not type(module).__name__.endswith(("Layer", "Block")):  # whose names tell of all parts
        yield type(module).__name__


def _mixes_tokens(module: nn.Module) -> bool:
    """Whether it convolves over the tokens, as mixers of state spaces do."""
    return any(isinstance(child, nn.Conv1d) for child in module.children())


def _fused(module: nn.Module) -> list[nn.Parameter]:
    """The tensors of a module that hold one matrix for each of several experts."""
    own = () if isinstance(module, nn.Conv1d) else module.parameters(recurse=False)
    return [each for each in own if each.dim() == 3 and len(each) > 1]


def _has_experts(name: str, module: nn.Module) -> bool:
    """Whether experts lie together in a tensor of a module, or of what is in it."""
    if is_linear(module):
        return False
    matrices = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    if _fused(module) or (name == "experts" and matrices):
        return True
    return any(
        _has_experts("experts" if name == "experts" else inner, child)
        for inner, child in module.named_children()
    )


def _holds_experts(module: nn.Module) -> bool:
    """Whether it holds several modules, each with linears."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) or len(module) < 2:
        return False
    return all(any(map(is_linear, each.modules())) for each in module.children())


def _never(path: Path) -> str:
    """Why a linear cannot carry an adapter; empty if it can."""
    name, linear = path[-1]
    parent = path[-2][1]
    words = [word for step in path[:-1] for word in _words(*step)]
    attends = _kind(path) == "attention"
    choices = {len(tensor) for child in parent.children() for tensor in _fused(child)}
    choices |= {len([*each.children()]) for each in parent.children() if _holds_experts(each)}
    choices |= set() if attends else {1}
    if any(map(_CHOOSES.search, [*words, name])) or widths(linear)[1] in choices:
        return ROUTER
    if any(step == "experts" for step, _ in path[:-1]):
        return EXPERT
    if _mixes_tokens(parent) and name in _by_weight(type(parent)):
        return BY_WEIGHT
    crosses = attends and any(map(_CROSS.search, words))
    return CROSS if crosses and not _READS_TEXT.match(name) else ""


@cache
def _by_weight(kind: type[nn.Module]) -> frozenset[str]:
    """Which children's weights a class uses itself, past the module and so past an adapter."""
    lines = [line for line in inspect.getsource(kind).splitlines() if "init" not in line]
    return frozenset(re.findall(r"self\.(\w+)\.weight\b(?!\.)", "\n".join(lines)))
