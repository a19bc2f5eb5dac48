"""The real program on a real file system that is full, then has room again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.commands import commands, make_place
from undrift.rundir import read_json

SCRIPT = r"""
mount -t tmpfs -o size=$SIZE tmpfs "$PLACE" || exit 77
cd "$PLACE"
mkdir tmp
"$@" > "$SAID" 2>&1
echo $? > "$STATUS"
mount -o remount,size=64m "$PLACE" || exit 77
"$@" || exit 1
cp out/matrix.json "$MATRIX"
find . -name '*.writing'
"""


def on_tmpfs(size: str, work: Path, line: list[str]) -> tuple[int, str, dict]:
    """Run a command with so much room, then with enough; return what the first one said."""
    place = work / "mounted"
    place.mkdir()
    names = {"SAID": "said", "STATUS": "status", "MATRIX": "matrix.json"}
    environment = {
        **os.environ,
        **{name: str(work / file) for name, file in names.items()},
        "SIZE": size,
        "PLACE": str(place),
        "TMPDIR": str(place / "tmp"),
        "UNDRIFT_CACHE": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh", *line],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no tmpfs of one's own can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = (work / "said").read_text()
    return int((work / "status").read_text()), said, read_json(work / "matrix.json")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    make_place(tmp_path)
    line = [sys.executable, "-m", "undrift", *commands(tmp_path)["run"].words]
    matrices = []
    for size in ("8k", "120k", "400k", "64m"):
        (tmp_path / size).mkdir()
        status, said, matrix = on_tmpfs(size, tmp_path / size, line)
        matrices.append(matrix)
        if size == "64m":
            assert status == 0
        else:
            assert status == 1 and "Traceback" not in said
            (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
            assert "No space left on device; free some space" in error
    assert all(json.dumps(matrix) == json.dumps(matrices[-1]) for matrix in matrices)
