"""What several methods share."""

from __future__ import annotations
