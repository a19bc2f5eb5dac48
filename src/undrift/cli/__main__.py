"""`python -m undrift.cli`, which is what a study starts."""

from __future__ import annotations

from undrift.cli import main

main()
