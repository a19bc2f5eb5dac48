"""`undrift learn` as it is typed: what it prints, and how it exits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.run.own import write_task
from tests.run.tiny import save_tiny
from undrift import cli
from undrift.rundir import read_json, read_lines, write_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = ("--max-new-tokens", 6, "--set", "train.max_steps=2", "--set", "train.batch_size=4")


@pytest.fixture
def undrift(tmp_path, monkeypatch, capsys):
    """Run a command in a folder with a tiny model and two tasks; return status, output, errors."""
    save_tiny(tmp_path / "model")
    write_task(tmp_path, "colours")
    write_task(tmp_path, "capitals")
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["undrift", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_two_lessons_are_learned_asked_and_judged(undrift, tmp_path):
    first = ("learn", "model", "--data", "colours.jsonl", "--out", "v1", *SMALL)
    status, out, err = undrift(*first, "--held-out", 0.25)
    assert status == 0, err
    assert "colours (new)" in out and "v1/adapter" in out
    second = ("learn", "v1", "--data", "capitals.jsonl", "--test", "capitals-test.jsonl")
    second = (*second, "--out", "v2", *SMALL)
    status, out, err = undrift(*second, "--json", "--quiet", "--watch-routes", 2)
    assert status == 0, err
    tasks = json.loads(out)["tasks"]
    assert [(row["task"], row["new"]) for row in tasks] == [("colours", False), ("capitals", True)]

    assert "routes/overlap/colours" in read_lines(tmp_path / "v2/train.jsonl")[-1]
    result = read_json(tmp_path / "v2/result.json")  # a drop of ten points, planted
    result["tasks"][0] |= {"before": 90.0, "after": 80.0}
    write_json(tmp_path / "v2/result.json", result)
    assert undrift(*second, "--max-drop", 10)[0] == 0
    status, out, err = undrift(*second, "--max-drop", 9.9)
    assert status == 3
    assert "90.0" in out and "-10.0" in out
    assert "fell by more than 9.9 points: colours by 10.0" in err

    status, out, err = undrift("eval", "v2", "--json")
    assert status == 0, err
    assert list(json.loads(out)["scores"]) == ["colours", "capitals"]
    status, out, _ = undrift("eval", "v2", "--task", "capitals", "--limit", 1, "--out", "asked")
    assert status == 0 and "colours" not in out
    assert len(Path("asked/capitals.jsonl").read_text().splitlines()) == 1

    notes = Path("asked/capitals.part")  # an examination that was cut off goes on ...
    notes.write_text('["8", "noted before the cut"]\n')
    assert undrift("eval", "v2", "--task", "capitals", "--out", "asked")[0] == 0
    assert "noted before the cut" in Path("asked/capitals.jsonl").read_text()
    notes.write_text('["8", "noted before the cut"]\n')
    assert undrift("eval", "v1", "--task", "colours", "--out", "asked")[0] == 0
    assert not notes.exists()  # ... and one of another adapter is forgotten


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model", "--data", "colour.jsonl"), "the nearest name is 'colours.jsonl'"),
        (("modell", "--data", "colours.jsonl"), "unknown backbone 'modell'"),
        (("model", "--data", "colours.jsonl", "--scorer", "exakt"), "did you mean 'exact'"),
        (("model", "--data", "colours.jsonl", "--name", "../x"), "cannot be called '../x'"),
        (("model", "--data", "colours.jsonl", "--set", "train.epoch=1"), "'train.epochs'"),
        (("model", "--data", "colours.jsonl", "--method", "smae"), "did you mean 'same'"),
        (("model", "--data", "colours.jsonl", "--held-out", "1"), "held_out is 1.0"),
    ],
)
def test_a_mistake_is_one_line(undrift, words, message):
    status, _, err = undrift("learn", *words, "--out", "v1")
    assert status in (1, 2) and message in err
    assert "Traceback" not in err and not Path("v1").exists()
