"""The page of the whole circle: its commands are run, and say what stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/tutorials/circle.md"
TABLE = "┏┃┡│└━"


def shape(page: str) -> list[str]:
    """Return what is said on every machine: a sentence up to its first number, a table's words."""
    lines = []
    for line in page.splitlines():
        if line in ("yes", "no"):
            line = "an answer"
        elif line[:1] in TABLE or line.startswith("{") or " bytes  " in line:
            line = re.sub(r'[-+\d.,]+|[━─┏┓┡┩└┘╇┳┴│┃┼]|"(yes|no)"', " ", line)
        elif not line.startswith(("$", "    ")):
            line = re.split(r"[-+]?\d", line)[0]
        if line := " ".join(line.split()):
            lines.append(line)
    return lines


@pytest.mark.slow
def test_the_circle_is_what_the_page_says(tmp_path):
    spec = importlib.util.spec_from_file_location("play_page", ROOT / "scripts/play_page.py")
    play_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(play_page)
    page = PAGE.read_text()
    now = play_page.played(page, tmp_path)
    assert shape(now) == shape(page)
    said = re.findall(r"^all 12 answers are the adapter's own$", now, re.MULTILINE)
    others = re.findall(r"^(\d+) of 12 are others than the bare base's$", now, re.MULTILINE)
    assert len(said) == len(others) == 2 and min(map(int, others)) > 0
    assert (tmp_path / "production/v2/report.html").is_file()
    assert not (tmp_path / "mine").exists()
