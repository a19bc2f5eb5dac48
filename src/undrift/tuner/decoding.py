"""Whether a call of a language model reads a prompt or goes on with an answer.

Told by what the call is given, not by what the argument is called: transformers has named its cache
`past_key_values`, `cache_params` and `cache`, and models of other people have names of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Cache


def goes_on(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call goes on behind tokens that were read before.

    A cache that is there and empty, or preallocated, has read nothing: the call reads a prompt. So
    does every call without a cache, whatever it was given before.

    Args:
        args: The positional arguments of the call.
        kwargs: Its keyword arguments.

    Returns:
        Whether a cache among them, wherever it stands, holds tokens.
    """
    return any(_holds_tokens(value) for value in (*args, *kwargs.values()))


def kept(output: Mapping[str, Any]) -> dict[str, Any]:
    """Find the cache in what a model has answered, to be given to its next call.

    Args:
        output: The model's output.

    Returns:
        It, by its name in the output, which is its name in the call too; nothing where there is
        none.
    """
    return {name: value for name, value in output.items() if _holds_tokens(value)}


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments of a call their names.

    Args:
        module: What is called.
        args: The positional arguments of the call.
        kwargs: Its keyword arguments.

    Returns:
        All of them by name.
    """
    if not args:
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def _holds_tokens(value: Any) -> bool:
    """Tell whether this is a cache with something in it."""
    if value is None or isinstance(value, Tensor):
        return False
    if isinstance(value, tuple | list):
        return _is_past(value)
    if isinstance(value, Cache) or hasattr(value, "get_seq_length"):
        try:
            return bool(value.get_seq_length())
        except ValueError:  # of linear attention alone, which keeps a state and counts nothing
            return bool(value.has_previous_state())
    state = getattr(value, "has_previous_state", False)  # caches of state space models' own
    return bool(state() if callable(state) else state) or bool(getattr(value, "seqlen_offset", 0))


def _is_past(value: tuple[Any, ...] | list[Any]) -> bool:
    """Tell a cache in the old form, a tuple of keys and values for each layer, with tokens in it.

    Lists of pictures and pairs of position embeddings are no caches: their parts are not pairs of
    four dimensions (batch, heads, length, size of a head).
    """
    layers = [layer for layer in value if layer is not None]
    return bool(layers) and all(
        isinstance(layer, tuple | list)
        and len(layer) > 1
        and all(isinstance(part, Tensor) and part.dim() == 4 for part in layer[:2])
        and layer[0].shape[:2] == layer[1].shape[:2]
        and layer[0].shape[-2] > 0
        for layer in layers
    )
