"""Tokens with a meaning of their own: those that stand for pictures, those that begin and end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from tokenizers import Tokenizer

_MEDIA = re.compile(
    r"(^|_)(image|images|img|picture|video|audio|vision|visual|media|patch|tile|bo[iav]|eo[iav])_"
)
_KEYS = re.compile(r"_(token|token_id|token_ids|token_index)$")


def media_tokens(processor: Any, config: Any = None) -> dict[int, str]:
    """Find the tokens that stand for pictures, videos and sounds, or that stand around them.

    Args:
        processor: A model's processor, whose attributes name them, such as `image_token`.
        config: The model's configuration, whose numbers name them, such as `video_token_id`; a
            number counts where the tokenizer has a special token there.

    Returns:
        The tokens by id; `<ref>`, `<box>` and the like, which answers may hold, are none of them.
    """
    tokenizer = processor.tokenizer
    named = {**tokenizer.special_tokens_map, **vars(processor)}
    found = dict[int, str]()
    for value in _media_values(named):
        token = tokenizer.convert_tokens_to_ids(value) if isinstance(value, str) else value
        text = tokenizer.convert_ids_to_tokens(token) if isinstance(token, int) else None
        if text is not None and (not isinstance(value, str) or text == value):
            found[token] = text
    added = getattr(tokenizer, "added_tokens_decoder", {})
    for value in _media_values({} if config is None else config.to_dict()):
        if isinstance(value, int) and value in added:
            found[value] = str(added[value])
    return found


def _media_values(named: dict[str, Any]) -> Iterable[Any]:
    for key, value in named.items():
        if _KEYS.search(key) and _MEDIA.search(key):
            for one in value if isinstance(value, list | tuple) else (value,):
                yield one if isinstance(one, int) or one is None else str(one)


def end_tokens(tokenizer: Any, stop_ids: Iterable[int]) -> frozenset[int]:
    """Return the tokens that an answer cannot hold: where it ends, where a text begins, padding.

    Args:
        tokenizer: The tokenizer.
        stop_ids: Tokens that end an answer.

    Returns:
        Their ids; never that of what the tokenizer does not know.
    """
    own = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset({*stop_ids, *own}) - {None, tokenizer.unk_token_id}


def spelled_out(tokenizer: Any, ids: Collection[int]) -> Callable[[str], list[int]] | None:
    """Make a tokenizer that takes the names of some special tokens for the plain text they are.

    Args:
        tokenizer: The tokenizer.
        ids: The tokens that it does not know any more; it knows the other special ones.

    Returns:
        What turns a text into ids; None where the tokenizer is not one of the library `tokenizers`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["id"] in ids
    made = Tokenizer.from_str(json.dumps(content))
    made.encode_special_tokens = True  # "special" tokens are encoded as any other text
    made.no_padding()
    made.no_truncation()
    return lambda text: made.encode(text, add_special_tokens=False).ids


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and behind a text of its own accord."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
