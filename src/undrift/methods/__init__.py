"""One file is one method; its stem is its name. `base.Method` says what a method may do."""

from __future__ import annotations
