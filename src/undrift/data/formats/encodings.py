"""Text files in UTF-8 or UTF-16, with or without a byte order mark, as bytes of UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from json import detect_encoding
from pathlib import Path
from typing import BinaryIO

from undrift.errors import DataError
from undrift.untrusted import open_regular, read_regular, why


@contextmanager
def utf8(path: Path) -> Iterator[BinaryIO]:
    """Open a text file; one of UTF-8 is never in memory as a whole.

    Args:
        path: The file.

    Yields:
        Its text as UTF-8 without a byte order mark, not yet checked.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with open_regular(path) as file:
            encoding = detect_encoding(file.peek(4)[:4])
            if encoding.startswith("utf-8"):
                if encoding == "utf-8-sig":
                    file.read(len(codecs.BOM_UTF8))
                yield file
                return
        text = read_regular(path).decode(encoding)
        yield BytesIO(text.removeprefix("\ufeff").encode())
    except UnicodeDecodeError as error:
        said = f"it begins as {error.encoding.upper()}, and is not at byte {error.start:,}"
        raise DataError(f"cannot read {path}: {said}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from error
