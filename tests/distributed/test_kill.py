"""Commands killed, or without room on the disk, at points that the commit's hash draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
ROOT = Path(__file__).parents[2]


def commit() -> str:
    """Return the hash of the commit; a fixed text where there is no git."""
    asked = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            asked, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


@pytest.mark.parametrize(("how", "points"), [((), 20), (("--fault",), 12)], ids=["kill", "fault"])
def test_commands_that_ended_anywhere_go_on(how, points):
    line = [sys.executable, "-m", "tests.kill", *how, "--points", str(points), "--seed", commit()]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert f"{points} points" in done.stdout
