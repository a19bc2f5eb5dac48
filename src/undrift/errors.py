"""The exception tree: everything undrift raises on purpose, on one screen.

```
UndriftError
├── ConfigError (also ValueError)       a setting that cannot be used
│   └── UnknownName                     a method, benchmark, key ... that does not exist
├── MissingExtra (also ImportError)     an optional dependency is not installed
├── DataError                           examples, pictures or answers that cannot be used
├── RunDirError                         a run directory that cannot be written, read or resumed
├── AdapterMismatch                     an adapter saved for another base or another shape
└── TrainingDiverged                    the loss is not a number any more
```

Every message says what happened, what was expected and what to do, in one line: a name in it that
holds a line break, an escape sequence or half a character is written with escapes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Controls, line and paragraph separators, what turns the direction of a text, lone surrogates.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 100  # characters of a name in a message


def one_line(text: str) -> str:
    r"""Write a text on one line, and what a terminal takes for a command as `\n` or `\x1b`."""
    return _NOT_SHOWN.sub(lambda found: ascii(found.group())[1:-1], text)


class UndriftError(Exception):
    """The base class: `except UndriftError` catches all of them.

    Its text is its first argument, on one line; further arguments are lines below it.
    """

    def __str__(self) -> str:
        return "\n".join(one_line(str(line)) for line in self.args)


class ConfigError(UndriftError, ValueError):
    """A setting has a value that cannot be used."""


class UnknownName(ConfigError):
    """A name (of a method, benchmark, scorer, key ...) that does not exist."""


class MissingExtra(UndriftError, ImportError):
    """An optional dependency is missing; the message holds the pip command that mends it."""


class DataError(UndriftError):
    """Examples, pictures or answers that cannot be used."""


class RunDirError(UndriftError):
    """A run directory that cannot be written, read or resumed."""


class AdapterMismatch(UndriftError):
    """An adapter was saved for another base model or another shape."""


class TrainingDiverged(UndriftError):
    """The loss stopped being a finite number."""


def unknown(kind: str, name: str, known: Iterable[str], meant: Sequence[str] = ()) -> UnknownName:
    """Make (not raise) the error for a name that does not exist, offering the nearest known one.

    Such as `unknown method 'smae'; did you mean 'same'? known: finetune, joint, moelora, same`.
    Where it is known what was `meant`, that is offered.
    """
    names = sorted(known)
    name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    offered = list(meant) or [folded[each] for each in near]
    guess = f"; did you mean {' or '.join(map(repr, offered))}?" if offered else ";"
    listing = ", ".join(names) if names else "(none)"
    return UnknownName(f"unknown {kind} {name!r}{guess} known: {listing}")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtra:
    """Make (not raise) the error for a package that an `extra` of undrift would have brought.

    `purpose` is what needs it, the subject of a sentence; the message holds the pip command.
    """
    return MissingExtra(
        f"{purpose} needs {package}, which is not installed; run: pip install 'undrift[{extra}]'",
        name=package,
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of others says, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(value: object) -> str:
    """Write a value for a message as Python does, its first 60 characters."""
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:60]}..."
