"""What a processor or a model refuses of one example, told with the example and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from undrift.data.pictures import open_picture
from undrift.errors import DataError, UndriftError

REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip  # whatever a processor of some family raises
PLAIN = (224, 224)  # a picture that every model takes


class Shown(Protocol):
    """An example as far as it is named."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def images(self) -> Sequence[Path]:
        """Its pictures."""
        ...


E = TypeVar("E", bound=Shown)


def refusal(
    who: str,
    batch: Sequence[E],
    error: Exception,
    alone: Callable[[E], object],
    plain: Callable[[], object],
) -> Exception:
    """Find the example that was refused, and whether any other would be.

    Args:
        who: What refused it.
        batch: The examples among which it is.
        error: What was raised.
        alone: Does with one example what failed.
        plain: Does it with a plain picture of ordinary size.

    Returns:
        A DataError that names it; `error` itself where it is one of ours, out of memory, or where
        every example passes alone.
    """
    if isinstance(error, UndriftError | torch.OutOfMemoryError):
        return error
    for example in batch:
        own = _raised(lambda example=example: alone(example)) if len(batch) > 1 else error
        if isinstance(own, UndriftError):
            return own
        if own is None:
            continue
        shown = ", ".join(_picture(path) for path in example.images) or "no picture"
        said = f"the backbone's {who} refuses example {example.id!r} ({shown}): {_first_line(own)}"
        if isinstance(_raised(plain), UndriftError | None):
            return DataError(f"{said}; leave it out (--skip-bad), or take another picture")
        width, height = PLAIN
        return DataError(
            f"{said}; it refuses a plain picture of {width} x {height} as well: that is a setting "
            "of the backbone's processor (processor_config.json, preprocessor_config.json), not of "
            "this picture"
        )
    return error


def _raised(do: Callable[[], object]) -> Exception | None:
    try:
        do()
    except REFUSALS as error:
        return error
    except UndriftError as error:
        return error
    return None


def _picture(path: Path) -> str:
    try:
        width, height = open_picture(path).size
    except DataError as error:
        return str(error)
    return f"{path}, {width} x {height}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
