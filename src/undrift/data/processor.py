"""A model's processor: its special tokens, its tensors behind a prompt, what it refuses.

A tensor that says a wrong thing of an answer's tokens would be silent: PaliGemma's `token_type_ids`
of 0, for one, let every token see all others, the answer that is to be learned among them. So what
is not known is refused.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from undrift.data.picture_decoding import open_picture
from undrift.errors import ConfigError, DataError, UndriftError

IGNORED = -100  # the label that cross entropy leaves out

# By name, (the tensor, tokens to add) to what is added; all of them have a dimension of tokens.
_TAILS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mm_token_type_ids": lambda marks, more: marks.new_zeros(len(marks), more),  # 0 is text
    "moe_mm_token_type_ids": lambda marks, more: marks.new_zeros(len(marks), more),
    "image_embeds_position_mask": lambda marks, more: marks.new_zeros(len(marks), more),
    "image_patches_indices": lambda marks, more: marks.new_full((len(marks), more), -1),
    # which pictures a token reads: those of the token before it
    "cross_attention_mask": lambda mask, more: mask[:, -1:].expand(-1, more, *mask.shape[2:]),
    "image_attention_mask": lambda mask, more: mask[:, -1:].expand(-1, more, *mask.shape[2:]),
    "position_ids": lambda ids, more: ids[..., -1:] + torch.arange(1, more + 1, dtype=ids.dtype),
}
_OF_PICTURES = ("pixel_", "aspect_ratio_", "image_", "images", "qformer_", "num_", "spatial_")

REFUSALS = (  # whatever a processor of some family raises
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
PLAIN = (224, 224)  # a picture that every model takes

_MEDIA = re.compile(
    r"(^|_)(image|images|img|picture|video|audio|vision|visual|media|patch|tile|bo[iav]|eo[iav])_"
)
_KEYS = re.compile(r"_(token|token_id|token_ids|token_index)$")


def text_only(processor: Any) -> bool:
    """Tell whether this is a tokenizer, that of a text-only model, instead of a processor."""
    return not hasattr(processor, "tokenizer")


def tokenizer_of(processor: Any) -> Any:
    """Return a processor's tokenizer; a tokenizer is its own."""
    return processor if text_only(processor) else processor.tokenizer


# ------------------------------------------------------------ special tokens


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
    """Return the tokens that an answer cannot hold: where it ends, where a text begins, padding."""
    own = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset({*stop_ids, *own}) - {None, tokenizer.unk_token_id}


def spelled_out(tokenizer: Any, ids: Collection[int]) -> Callable[[str], list[int]] | None:
    """Make a tokenizer that takes the names of the special tokens `ids` for plain text.

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


def tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and behind a text of its own accord."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


# ------------------------------------------------------------ tensors


def lengthened(
    made: Mapping[str, Any], answers: Sequence[Sequence[int]], pad: int, processor: Any
) -> dict[str, Any]:
    """Put answers behind prompts, padded on the right, and labels on the answers.

    Args:
        made: What a processor made of the prompts, padded on the left: `input_ids` (B, L) and more.
        answers: Token ids, one list a prompt.
        pad: The token for padding.
        processor: Who made it.

    Returns:
        The tensors with all their dimensions of tokens lengthened, and `labels`.

    Raises:
        ConfigError: If there is a tensor with something for each token, and it is not known what
            an answer's tokens have there.
    """
    room, shape = max(map(len, answers)), made["input_ids"].shape
    tail = torch.tensor([[*answer, *[pad] * (room - len(answer))] for answer in answers])
    there = torch.tensor([[1] * len(a) + [0] * (room - len(a)) for a in answers])
    out = dict(made)
    for name, value in made.items():
        dim = _tokens_at(name, value, shape)
        if dim is None:
            continue
        if name in ("input_ids", "attention_mask"):
            more = tail if name == "input_ids" else there
        elif name == "token_type_ids":
            more = torch.full_like(tail, _type_of_answers(value, processor))
        elif name in _TAILS:
            more = _TAILS[name](value, room)
        else:
            raise ConfigError(
                f"the backbone's {type(processor).__name__} gives {name!r} for each token of a "
                "prompt, and undrift does not know what an answer's tokens have there; use another "
                "backbone, or ask for this one"
            )
        out[name] = torch.cat([value, more.to(value.dtype)], dim=dim)
    labels = tail.masked_fill(there == 0, IGNORED)
    out["labels"] = torch.cat([torch.full(shape, IGNORED), labels], dim=1)
    return out


def shortened(made: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Take the last `count` tokens off a processor's tensors."""
    shape, out = made["input_ids"].shape, dict(made)
    for name, value in made.items():
        dim = _tokens_at(name, value, shape)
        if dim is not None and count:
            out[name] = value.narrow(dim, 0, value.shape[dim] - count)
    return out


def _tokens_at(name: str, value: Any, shape: torch.Size) -> int | None:
    """Find the dimension of a tensor in which there is something for each token."""
    if not isinstance(value, Tensor):
        return None
    if name == "position_ids":  # (B, L), (1, L) or (axes, B, L)
        return value.dim() - 1 if value.shape[-1] == shape[1] else None
    known = name in _TAILS or not name.startswith(_OF_PICTURES)
    return 1 if known and value.shape[:2] == shape else None


def _type_of_answers(types: Tensor, processor: Any) -> int:
    """Tell which `token_type_ids` an answer's tokens have.

    Where a processor takes a suffix, as PaliGemma's, 0 is the prefix in which all tokens see each
    other and 1 the suffix, in which none sees a later one. Elsewhere 0 is text, and 1 a picture.
    """
    if "suffix" in inspect.signature(type(processor).__call__).parameters:
        return 1
    if types[:, -1].any():
        raise ConfigError(
            f"the backbone's {type(processor).__name__} gives the end of a prompt token_type_ids "
            "other than 0, and undrift does not know what they mean for an answer"
        )
    return 0


# ------------------------------------------------------------ refusals


class Alone(NamedTuple):
    """Pictures of which it is not known whose they are."""

    images: tuple[Path, ...]
    id: str = ""


@contextmanager
def naming(
    who: str,
    batch: Sequence[Any],
    alone: Callable[[Any], object],
    plain: Callable[[], object],
) -> Iterator[None]:
    """Within this context, what fails because of one example is told with its name; see `blame`.

    An error of ours, memory that is used up, and what no example does alone go through as they are.
    """
    try:
        yield
    except REFUSALS as error:
        blame(who, batch, error, alone, plain)
        raise


def blame(
    who: str,
    batch: Sequence[Any],
    error: Exception,
    alone: Callable[[Any], object],
    plain: Callable[[], object],
    about: str = "",
) -> None:
    """Raise an error that names the example at fault, if one of a batch is.

    Where a plain picture fails as well, the message says so: it is a setting then.

    Args:
        who: What may refuse it.
        batch: The examples among which it is, each with an `id` and `images`.
        error: What was raised for the batch.
        alone: Does with one example what was done with all of them.
        plain: Does it with a plain picture of ordinary size.
        about: A regular expression: an error that it is not found in is none of an example's.

    Raises:
        DataError: If one of them is refused.
    """
    ours = isinstance(error, UndriftError | torch.OutOfMemoryError)
    if ours or not re.search(about, str(error), re.IGNORECASE):
        return
    for example in batch:
        own = _raised(lambda example=example: alone(example)) if len(batch) > 1 else error
        if isinstance(own, UndriftError):
            raise own from error
        if own is None:
            continue
        shown = ", ".join(_picture(path) for path in example.images) or "no picture"
        message = refuses(who, f"example {example.id!r} ({shown})" if example.id else shown, own)
        if isinstance(_raised(plain), UndriftError | None):
            advice = "leave it out (--skip-bad), or take another picture"
            raise DataError(f"{message}; {advice}") from error
        raise setting_error(message) from error


def refuses(who: str, what: str, error: Exception) -> str:
    """Say that something was refused, with the first line of the error's own message."""
    first = (str(error).strip() or repr(error)).splitlines()[0]
    return f"the backbone's {who} refuses {what}: {type(error).__name__}: {first}"


def setting_error(message: str) -> DataError:
    """Make the error for what is refused of a plain picture, too; `message` is from `refuses`."""
    width, height = PLAIN
    return DataError(
        f"{message}; it refuses a plain picture of {width} x {height} as well: that is a setting "
        "of the backbone's processor (processor_config.json, preprocessor_config.json), not of one "
        "picture"
    )


def _raised(do: Callable[[], object]) -> Exception | None:
    try:
        do()
    except (*REFUSALS, UndriftError) as error:
        return error
    return None


def _picture(path: Path) -> str:
    try:
        width, height = open_picture(path).size
    except DataError as error:
        return str(error)
    return f"{path}, {width} x {height}"
