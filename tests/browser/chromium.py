"""The chromium that the tests of pages open, and how."""

from __future__ import annotations

import os
import shutil

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def found_chromium() -> str:
    """The path of the one that $CHROMIUM names, or else of the system's."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.fail("no chromium; install one, or let CHROMIUM be its path")
    return shutil.which(path) or path
