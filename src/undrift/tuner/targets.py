"""Which linears of a model are adapted, found by structure, and why the others are not.

What the linears are called does not matter, nor the family: a block is an element of the decoder's
list of modules, and in it stand attention (or what mixes tokens in its place) and the feed-forward
network (FFN). Some linears cannot carry an adapter, because they do not read every token of the
text or because what they give is a choice, which has no gradient.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.tuner.peft_internals import BaseTunerLayer, Conv1D

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

PARTS = ("ffn", "attention", "all", "all-linear")
OUTSIDE = "it is not in a block of the language model"


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
    with a configuration of its own kind in there, such as a vision tower, is passed over. The whole
    of a model is searched if it has no `get_decoder`.
    """
    decoder: Any = model
    while hasattr(decoder, "get_decoder") and decoder.get_decoder() not in (decoder, None):
        decoder = decoder.get_decoder()
    inside = {id(block) for each in _lists(decoder) or _lists(model) for block in each}
    return {name: module for name, module in model.named_modules() if id(module) in inside}


def linears(model: nn.Module) -> list[Linear]:
    """List the linears in a language model's blocks; without `get_decoder` all is one block."""
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
    """Whether the FFN of a block has experts that lie together in one tensor, not in linears."""
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


# ---------------------------------------------------------------- what is adapted


@dataclass(frozen=True)
class Targets:
    """The linears to adapt.

    Args:
        names: Their names in the model.
        expression: The same as a regular expression, for `target_modules` of any PEFT
            configuration.
        transposed: Whether they are `Conv1D` (GPT-2), whose weights lie the other way round.
    """

    names: tuple[str, ...]
    expression: str
    transposed: bool


def find_targets(model: nn.Module, targets: str | Sequence[str]) -> Targets:
    """Find the linears to adapt, in the blocks of the language model only.

    Args:
        model: Any model, with adapters or without.
        targets: "ffn", "attention", "all" (or PEFT's "all-linear"), a list of names or ends of
            names, or a regular expression over full names.

    Returns:
        The linears. An expression may match others as well, which are then left out; `adapted`
        names them.

    Raises:
        ConfigError: If there is no such part, or a name or the expression matches nothing that can
            be adapted. The message says what there is.
    """
    check_targets(targets)
    found = linears(model)
    if not isinstance(targets, str):
        chosen = [each for target in targets for each in _named(model, found, target)]
    elif targets in PARTS:
        chosen = [e for e in found if not e.never and targets in (e.kind, "all", "all-linear")]
    else:
        pattern = _pattern("targets", targets)
        chosen = [e for e in found if not e.never and pattern.fullmatch(e.name)]
    if not chosen:
        raise _nothing(model, found, targets)
    names = tuple(dict.fromkeys(each.name for each in chosen))
    transposed = any(isinstance(base_of(each.module), Conv1D) for each in chosen)
    return Targets(names, _expression(model, names, targets), transposed)


def settle_targets(model: nn.Module, config: Any) -> Targets:
    """Find the linears that a PEFT configuration means, and store them in it as an expression.

    PEFT chooses layers only where the targets are a list, so what narrows them (`exclude_modules`,
    `layers_to_transform`, `layers_pattern`) is worked into the expression and taken out. What
    matches nothing is a ConfigError.
    """
    asked = "ffn" if config.target_modules is None else config.target_modules
    found = find_targets(model, asked)
    names = found.names
    layers, excluded = config.layers_to_transform, config.exclude_modules
    if layers is not None:
        inside = _in_layers(model, layers, getattr(config, "layers_pattern", None))
        names = tuple(name for name in names if name in inside)
    if excluded:
        without = _excluded(model, excluded)
        names = tuple(name for name in names if name not in without)
    if not names:
        raise ConfigError(
            f"layers_to_transform {layers} and exclude_modules {excluded} leave none of the "
            f"targets {asked!r} of {type(model).__name__}"
        )
    if names != found.names:
        found = replace(found, names=names, expression=_expression(model, names, "all"))
    config.target_modules = found.expression
    config.exclude_modules = config.layers_to_transform = None
    if hasattr(config, "layers_pattern"):
        config.layers_pattern = None
    return found


def adapted(model: nn.Module, targets: str | Sequence[str]) -> str:
    """Say in one line which linears of a model carry an adapter, which do not, and why not.

    Args:
        model: A model with adapters.
        targets: What was asked for.

    Returns:
        Such as "adapted: 24 linears (gate_proj, up_proj, down_proj) in 8 of 8 blocks of
        model.language_model; not adapted: attention (targets: ffn), lm_head, model.vision_tower".
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore
    found, home = linears(base), blocks(base)
    have = [each for each in found if isinstance(each.module, BaseTunerLayer)]
    rest = [each for each in found if not isinstance(each.module, BaseTunerLayer)]
    if not have:
        return "adapted: no linears"
    asked = targets if isinstance(targets, str) else ", ".join(targets)
    left = []
    for kind in dict.fromkeys(each.kind for each in rest if not each.never):
        part = [each for each in rest if each.kind == kind and not each.never]
        whole = kind != "other" and not any(each.kind == kind for each in have)
        left.append(f"{kind if whole else _ends(part)} (targets: {asked})")
    fused = sum(map(has_fused_experts, home.values()))
    if fused:
        ffns = len(
            {e.block for e in found if e.kind == "ffn"}
            | {n for n, b in home.items() if has_fused_experts(b)}
        )
        left.append(f"fused experts in {fused} of {ffns} FFNs (they are no linears)")
    left += [
        f"{_ends(each for each in rest if each.never == why)} ({why})"
        for why in dict.fromkeys(each.never for each in rest if each.never)
    ]
    left += _outside(base, home)
    place = next(iter(home)).rpartition(".")[0].rpartition(".")[0] if home else ""
    where = f"{len({each.block for each in have})} of {len(home)} blocks of {place or 'the model'}"
    said = f"adapted: {len(have)} linears ({_ends(have)}) in {where}"
    return said + (f"; not adapted: {', '.join(left)}" if left else "")


def _in_layers(
    model: nn.Module, layers: int | Collection[int], pattern: str | Collection[str] | None
) -> set[str]:
    """The linears in the blocks of these numbers, in lists of these names."""
    asked = {layers} if isinstance(layers, int) else set(layers)
    ends = [pattern] if isinstance(pattern, str) else sorted(pattern or [""])
    found: dict[int, set[str]] = {}
    for each in linears(model):
        home, _, number = each.block.rpartition(".")
        if number.isdigit() and any(not end or _ends_in(home, end) for end in ends):
            found.setdefault(int(number), set()).add(each.name)
    if not asked <= set(found):
        where = f" in lists called {', '.join(ends)}" if pattern else ""
        there = f"numbers {min(found)} to {max(found)}" if found else "no numbers"
        raise ConfigError(
            f"layers_to_transform {layers}: the blocks of the language model of "
            f"{type(model).__name__}{where} have {there}"
        )
    return set().union(*(found[number] for number in asked))


def _excluded(model: nn.Module, excluded: str | Collection[str]) -> set[str]:
    """The linears that an expression, or names and ends of names, exclude."""
    everything = [name for name, module in model.named_modules() if is_linear(module)]
    if isinstance(excluded, str):
        pattern = _pattern("exclude_modules", excluded)
        found = {excluded: set(filter(pattern.fullmatch, everything))}
    else:
        found = {end: {n for n in everything if _ends_in(n, end)} for end in sorted(excluded)}
    for each in found:
        if not found[each]:
            raise ConfigError(
                f"exclude_modules {each!r} matches no linear of {type(model).__name__}; give a "
                "list of names or ends of names, or a regular expression over full names"
            )
    return set().union(*found.values())


def _named(model: nn.Module, found: Sequence[Linear], target: str) -> list[Linear]:
    """The linears of one name or end of a name that can be adapted."""
    matched = [each for each in found if _ends_in(each.name, target)]
    free = [each for each in matched if not each.never]
    if not free:
        raise _nothing(model, matched or found, target)
    return free


def _nothing(
    model: nn.Module, found: Sequence[Linear], targets: str | Sequence[str]
) -> ConfigError:
    """What to say where nothing is left to adapt."""
    name, kind = type(model).__name__, targets if isinstance(targets, str) else ""
    matched = {} if kind in PARTS else _matches(model, targets)
    never = {each.name: each.never for each in found}
    if matched:
        place, module = next(iter(matched.items()))
        why = (
            never.get(place, OUTSIDE)
            if is_linear(module)
            else (f"it is a {type(module).__name__}, and adapters go on linear layers")
        )
        return ConfigError(f"target {targets!r} of {name}: {place} cannot be adapted, {why}")
    free = [each for each in found if not each.never]
    if not free:
        return ConfigError(
            f"{name} has no blocks of a language model with linears that can be adapted; use "
            "another backbone"
        )
    fused = any(map(has_fused_experts, blocks(model).values()))
    more = "; its FFNs are fused experts, which hold no linears" if fused else ""
    kinds = " and ".join(dict.fromkeys(each.kind for each in free if each.kind != "other"))
    ends = _ends(sorted(free, key=lambda each: each.name.rpartition(".")[2]))
    return ConfigError(
        f"no target {targets!r} in the language model of {name}{more}; there are the linears of "
        f"its {kinds} ({ends}): choose among them, or targets: all"
    )


def _matches(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """Modules of any kind that names or an expression match."""
    ends = [targets] if isinstance(targets, str) else targets
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(targets, str) and name and re.fullmatch(targets, name))
        or any(name and _ends_in(name, end) for end in ends)
    }


def _pattern(setting: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{setting} {expression!r} is no regular expression ({error})") from error


def _ends_in(name: str, end: str) -> bool:
    """Whether a module has this name, or this end of one."""
    return f".{name}".endswith(f".{end}")


def _outside(model: nn.Module, home: Iterable[str]) -> list[str]:
    """The largest parts of a model with linears and without a block."""
    found: list[str] = []
    for name, module in model.named_modules():
        if any(name == each or name.startswith(f"{each}.") for each in (*found, *home)):
            continue
        holds_blocks = any(not name or each.startswith(f"{name}.") for each in home)
        if not holds_blocks and any(map(is_linear, module.modules())):
            found.append(name)
    return found


def _ends(found: Iterable[Linear]) -> str:
    return ", ".join(dict.fromkeys(each.name.rpartition(".")[2] for each in found))


def _expression(model: nn.Module, names: Sequence[str], targets: str | Sequence[str]) -> str:
    """The shortest expression that matches these linears and nothing else."""
    generic = "|".join(dict.fromkeys(map(_any_index, names)))
    everything = [name for name, _ in model.named_modules()]
    given = [targets] if isinstance(targets, str) and targets not in PARTS else []
    for expression in (*given, generic):
        if {name for name in everything if re.fullmatch(expression, name)} == set(names):
            return expression
    return "|".join(map(re.escape, names))


def _any_index(name: str) -> str:
    """`layers.0.mlp.up_proj` as an expression for that linear in every layer."""
    return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))


def check_targets(targets: Any) -> None:
    """Refuse targets that are neither words nor a list of them with a ConfigError."""
    listed = isinstance(targets, (list, tuple, set, frozenset))
    if not isinstance(targets, str) and not (listed and all(isinstance(e, str) for e in targets)):
        raise ConfigError(
            f"targets {targets!r}: give ffn, attention, all, a list of names, or an expression"
        )


# ---------------------------------------------------------------- linears of any kind


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear of any kind: plain, quantised, transposed or wrapped."""
    base = base_of(module)
    sizes = (getattr(base, "in_features", None), getattr(base, "out_features", None))
    return isinstance(base, Conv1D) or all(isinstance(size, int) for size in sizes)


def base_of(module: nn.Module) -> nn.Module:
    """Take the adapter off a linear."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def frozen_weight(name: str, linear: nn.Module) -> Tensor:
    """Read the frozen weight of a linear, adapted or not.

    Args:
        name: The linear's, for the message.
        linear: Of any kind.

    Returns:
        (d_out, d_in), as it is kept.

    Raises:
        ConfigError: If it is quantised.
    """
    base: Any = base_of(linear)
    W: Tensor = base.weight.detach()
    W = W.mT if isinstance(base, Conv1D) else W
    if not W.is_floating_point() or W.dtype.itemsize < 2 or tuple(W.shape) != widths(linear)[::-1]:
        raise ConfigError(
            f"the frozen weight of {name} is quantised, and is to be read as numbers; load the "
            "base without quantisation, or take a method, or --remember, that does not read it"
        )
    return W


def widths(linear: nn.Module) -> tuple[int, int]:
    """Return d_in and d_out of a linear of any kind."""
    base: Any = base_of(linear)
    if isinstance(base, Conv1D):
        return base.nx, base.nf
    return int(base.in_features), int(base.out_features)
