"""The commands under torchrun: what one process does, and one of them talks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.runs import assert_same_answers

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
ROOT = Path(__file__).parents[2]
COIN = ROOT / "tests/fixtures/coin"


def command(place: Path, processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of undrift in a folder."""
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    line = [sys.executable, *(start if processes > 1 else []), "-m", "undrift", *map(str, words)]
    extra = {"OMP_NUM_THREADS": "1", "UNDRIFT_CACHE": str(place / "cache"), "COLUMNS": "100"}
    return subprocess.run(line, cwd=place, env=os.environ | extra, capture_output=True, text=True)


MORE = ("--set", "train.max_steps=2", "--json")
README = [
    shlex.split(line)[shlex.split(line).index("undrift") + 1 :]
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("torchrun ")
]
"""What the README says of more than one GPU, from the name of the command on."""


def test_coin_is_learned_asked_and_diagnosed_by_two_as_by_one(tmp_path):
    assert [line[0] for line in README] == ["run", "learn", "eval"]
    tiny = {"DIR": COIN, "llava-hf/llava-1.5-7b-hf": "pocket"}
    rows = [{"id": str(n), "question": f"Form {n}?", "answer": str(n % 2)} for n in range(12)]
    (tmp_path / "forms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        words = [tiny.get(word, word) for word in README[0][: README[0].index("--out")]]
        done = command(tmp_path, processes, *words, "--out", out, *MORE)
        assert done.returncode == 0, done.stderr
        assert (out / "report.html").is_file()
        assert sum(line.startswith('{"out"') for line in done.stdout.splitlines()) == 1
        asked = command(tmp_path, processes, "eval", out, "--task", "VizWiz", "--json")
        assert asked.returncode == 0, asked.stderr
        causes = command(tmp_path, processes, "diagnose", out, "--limit", "2", "--data", COIN,
                         "--json")  # fmt: skip
        assert causes.returncode == 0, causes.stderr
        said[processes] = [json.loads(each.stdout) for each in (asked, causes)]
    assert_same_answers(tmp_path / "2", tmp_path / "1")
    assert said[1][0]["scores"] == said[2][0]["scores"]
    corners = [[cell["corners"] for cell in said[n][1]["causes"]["cells"]] for n in (1, 2)]
    assert corners[0] == corners[1]
    for words in ([str(tmp_path / "2") if w == "runs/coin" else w for w in README[1]], README[2]):
        done = command(tmp_path, 2, *words, *(MORE if words[0] == "learn" else ("--json",)))
        assert done.returncode == 0, done.stderr
    assert {"forms", "VizWiz"} <= set(json.loads(done.stdout.splitlines()[-1])["scores"])


def test_what_takes_one_process_is_not_done_twice(tmp_path):
    done = command(tmp_path, 2, "list", "methods")
    assert done.returncode != 0
    assert done.stderr.count("error: undrift list works in one process") == 1


def test_a_mistake_is_told_once_in_one_line(tmp_path):
    done = command(tmp_path, 2, "run", "coin", "--data", COIN, "--backbone", "pocket",
                   "--set", "train.global_batch=3")  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: train.global_batch is 3 examples a step") == 1
    assert "stopped" not in done.stderr
