"""Packages of an extra: a test without them is skipped, but not where all are said to be there."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest

EVERY_EXTRA = "UNDRIFT_EVERY_EXTRA"  # set by `make test-extras`


def needed(name: str) -> Any:
    """Import a package, or skip the file that needs it."""
    if os.environ.get(EVERY_EXTRA):
        return import_module(name)
    return pytest.importorskip(name, reason=f"needs {name}; make test-extras installs it")
