"""SHA256SUMS of a run: digests that tie its adapters and answers to what was written then.

One line a file, as `sha256sum` writes it, so that `sha256sum -c SHA256SUMS` in the run's folder
checks it as well. A file is entered once, before the mark that says that it is done; what was
entered stays as long as the file is there, so that resuming a run does not vouch for what somebody
else has written meanwhile.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from undrift.rundir.files import atomic_write, damaged, our_turn, text_of

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def summed(root: Path, patterns: Iterable[str]) -> list[str]:
    """List the files of a run that are entered, by their places in it.

    Args:
        root: The run's folder.
        patterns: What its files are called, as `Path.glob` takes them.

    Returns:
        Places with `/`, sorted.
    """
    found = (path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    return sorted({path.relative_to(root).as_posix() for path in found})


def write_sums(root: Path, patterns: Iterable[str], anew: Iterable[str] = ()) -> None:
    """Enter the files that have no digest yet, and drop those that are gone.

    Args:
        root: The run's folder.
        patterns: As for `summed`.
        anew: Files that are written more than once, entered as they are now.
    """
    with our_turn() as ours:
        if ours:
            known = read_sums(root) if (root / SUMS).is_file() else {}
            kept = {place: digest for place, digest in known.items() if place not in set(anew)}
            lines = (
                f"{kept.get(place) or sum_of(root / place)}  {place}\n"
                for place in summed(root, patterns)
            )
            atomic_write(root / SUMS, "".join(lines))


def read_sums(root: Path) -> dict[str, str]:
    """Return the digests in a run's SHA256SUMS, by the files' places in it."""
    file = root / SUMS
    found: dict[str, str] = {}
    for number, line in enumerate(text_of(file).splitlines(), 1):
        said = _LINE.fullmatch(line)
        if said is None or said[2] in found:
            raise damaged(file, f"line {number}: expected a digest and the name of another file")
        found[said[2]] = said[1]
    return found


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
