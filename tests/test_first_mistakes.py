"""What goes wrong the first time: one line that says what to do, and what it says works."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.run.own import write_task
from tests.run.tiny import save_tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.slow,
]
SMALL = ("--max-new-tokens", 6, "--set", "train.max_steps=2", "--set", "train.batch_size=4")
COLOURS = ("--data", "colours.jsonl", "--held-out", 0.25, *SMALL)


@pytest.fixture
def undrift(tmp_path, monkeypatch, command_line):
    """Run a command in a folder with a tiny model and two tasks; return status, output, errors."""
    save_tiny(tmp_path / "model")
    write_task(tmp_path, "colours")
    write_task(tmp_path, "capitals")
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    return command_line


@pytest.fixture
def learned(undrift):
    """An adapter in v1."""
    assert undrift("learn", "model", *COLOURS, "--out", "v1", "--quiet")[0] == 0
    return undrift


def refused(run, *words) -> str:
    """Return the one line with which a command ends."""
    status, _, err = run(*words)
    lines = [line for line in err.splitlines() if "error:" in line or "Traceback" in line]
    assert status in (1, 2) and len(lines) == 1, err
    return lines[0]


def test_a_wrong_folder(learned):
    said = refused(learned, "eval", ".", "--quiet")
    place = re.search(r"there is one in (\S+)$", said)[1]
    assert learned("eval", place, "--quiet")[0] == 0


def test_a_missing_adapter(learned):
    said = refused(learned, "eval", "v2", "--quiet")
    place = re.search(r"there is one in (\S+)$", said)[1]
    assert Path(place).resolve() == Path("v1").resolve() and learned("eval", place)[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_no_cuda(undrift):
    words = ("learn", "model", *COLOURS, "--out", "v1")
    said = refused(undrift, *words, "--device", "cuda")
    devices = re.search(r"there are: (.*)$", said)[1].split(", ")
    assert devices == ["auto", "cpu"] and not Path("v1").exists()
    assert undrift(*words, "--device", devices[1])[0] == 0


def test_an_unknown_key(undrift):
    words = ("learn", "model", *COLOURS, "--out", "v1", "--set")
    said = refused(undrift, *words, "learning_rate=0.01")
    key = re.search(r"did you mean '(\S+)'\?", said)[1]
    assert not Path("v1").exists() and undrift(*words, f"{key}=0.01")[0] == 0


def test_a_file_for_a_folder(learned):
    said = refused(learned, "eval", "v1/adapter/adapter_model.safetensors")
    assert learned("eval", re.search(r"lies in: (\S+)$", said)[1])[0] == 0


def test_a_folder_for_a_file(undrift):
    said = refused(undrift, "learn", "model", "--data", "colours", "--out", "v1", *SMALL)
    assert "colours/train.json does not exist" in said and not Path("v1").exists()


def test_no_test_set_and_too_few_rows(undrift):
    status, _, err = undrift("learn", "model", "--data", "colours.jsonl", "--out", "v1", *SMALL)
    assert status == 0
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert any("is asked 1 question" in line and "--held-out 0.3" in line for line in warnings)
    assert any("2 steps" in line and "--set train.max_steps=" in line for line in warnings), err
    option = re.search(r"--set (train\.max_steps=\d+)", " ".join(warnings))[1]
    words = ("--held-out", 0.3, "--max-new-tokens", 6, "--set", option)
    status, _, err = undrift("learn", "model", "--data", "colours.jsonl", "--out", "v2", *words)
    assert status == 0 and "steps" not in " ".join(re.findall("^warning: .*", err, re.MULTILINE))


def test_data_that_were_moved(learned):
    shutil.rmtree("v1/tests")
    Path("new").mkdir()
    shutil.move("colours.jsonl", "new/colours.jsonl")
    shutil.move("colours", "new/colours")
    said = refused(learned, "eval", "v1")
    option = re.search(r"(--test-of colours=)FILE", said)[1]
    status, _, err = learned("eval", "v1", *f"{option}new/colours.jsonl".split())
    assert status == 0 and "are not those of when it was learned" in err  # all rows, not two


def test_questions_that_changed(undrift):
    words = ("learn", "model", "--test", "colours-test.jsonl", "--out", "v1", *COLOURS[:2], *SMALL)
    assert undrift(*words)[0] == 0
    rows = [json.loads(line) for line in Path("colours-test.jsonl").read_text().splitlines()]
    rows[0]["answer"] = "grey"
    Path("colours-test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(undrift, *words)
    assert "1 changed" in said and "--force" in said
    assert undrift(*words, "--force")[0] == 0


def test_another_base(learned, tmp_path):
    save_tiny(tmp_path / "other", seed=9)
    said = refused(learned, "eval", "v1", "--backbone", "other")
    option = re.search(r"give its own with (--backbone)", said)[1]
    assert learned("eval", "v1", option, "model")[0] == 0
