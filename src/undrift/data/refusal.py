"""What a processor or a model refuses of one example, told with the example and its pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from undrift.data.pictures import open_picture
from undrift.errors import DataError, UndriftError

REFUSALS = (  # whatever a processor of some family raises
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
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


class Alone:
    """A picture of which it is not known whose it is.

    Args:
        path: Its file.
    """

    id = ""

    def __init__(self, path: Path) -> None:
        self.images = (path,)


E = TypeVar("E", bound=Shown)


@contextmanager
def naming(
    who: str,
    batch: Sequence[E],
    alone: Callable[[E], object],
    plain: Callable[[], object],
    about: str = "",
) -> Iterator[None]:
    """Within this context, what fails because of one example is told with its name.

    Where a plain picture fails as well, that is said: it is a setting then.

    Args:
        who: What may refuse it.
        batch: The examples among which it is.
        alone: Does with one example what is done with all of them.
        plain: Does it with a plain picture of ordinary size.
        about: A regular expression: what else has failed goes through as it is.

    Yields:
        Nothing.

    Raises:
        DataError: If one of them is refused. An error of ours, memory that is used up, and what no
            example does alone go through as they are.
    """
    try:
        yield
    except REFUSALS as error:
        if not re.search(about, str(error), re.IGNORECASE):
            raise
        found = _blamed(who, batch, error, alone, plain)
        if found is error:
            raise
        raise found from error


def _blamed(
    who: str,
    batch: Sequence[E],
    error: Exception,
    alone: Callable[[E], object],
    plain: Callable[[], object],
) -> Exception:
    if isinstance(error, UndriftError | torch.OutOfMemoryError):
        return error
    for example in batch:
        own = _raised(lambda example=example: alone(example)) if len(batch) > 1 else error
        if isinstance(own, UndriftError):
            return own
        if own is None:
            continue
        shown = ", ".join(_picture(path) for path in example.images) or "no picture"
        said = refuses(who, f"example {example.id!r} ({shown})" if example.id else shown, own)
        if isinstance(_raised(plain), UndriftError | None):
            return DataError(f"{said}; leave it out (--skip-bad), or take another picture")
        return a_setting(said)
    return error


def refuses(who: str, what: str, error: Exception) -> str:
    """Say that something was refused.

    Args:
        who: What refused it.
        what: What was refused.
        error: What was raised.

    Returns:
        The message, with the first line of the error's own.
    """
    first = (str(error).strip() or repr(error)).splitlines()[0]
    return f"the backbone's {who} refuses {what}: {type(error).__name__}: {first}"


def a_setting(said: str) -> DataError:
    """Make the error for what is refused of a plain picture, too.

    Args:
        said: What was refused, from `refuses`.

    Returns:
        The error.
    """
    width, height = PLAIN
    return DataError(
        f"{said}; it refuses a plain picture of {width} x {height} as well: that is a setting of "
        "the backbone's processor (processor_config.json, preprocessor_config.json), not of one "
        "picture"
    )


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
