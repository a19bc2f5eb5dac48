"""Names that may become part of a path, whoever has written them."""

from __future__ import annotations

import re

RULE = (
    "a name is made of letters, digits, '_', '.' and '-', beginning with a letter or a digit, and "
    "is none that Windows keeps for devices"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of a file or folder, and of nothing outside it.

    Args:
        text: Anything.

    Returns:
        Whether it follows RULE; a final period, which Windows drops, does not.
    """
    plain = _NAME.fullmatch(text) is not None and not text.endswith(".")
    return plain and _DEVICE.fullmatch(text) is None
