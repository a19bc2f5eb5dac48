"""`undrift learn` as it is typed: what it prints, and how it exits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.run.own import write_task
from tests.run.tiny import save_tiny
from undrift.run import answer
from undrift.rundir import read_json, read_lines, write_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = ("--max-new-tokens", 6, "--set", "train.max_steps=2", "--set", "train.batch_size=4")


@pytest.fixture
def undrift(tmp_path, monkeypatch, command_line):
    """Run a command in a folder with a tiny model and two tasks; return status, output, errors."""
    save_tiny(tmp_path / "model")
    write_task(tmp_path, "colours")
    write_task(tmp_path, "capitals")
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    return command_line


def test_two_lessons_are_learned_asked_and_judged(undrift, tmp_path):
    first = ("learn", "model", "--method", "same", "--data", "colours.jsonl", "--out", "v1", *SMALL)
    status, out, err = undrift(*first, "--held-out", 0.25)
    assert status == 0, err
    assert "colours (new)" in out and "v1/adapter" in out
    assert "v1 has learned colours" in (tmp_path / "v1/report.html").read_text()
    second = ("learn", "v1", "--data", "capitals.jsonl", "--test", "capitals-test.jsonl")
    second = (*second, "--out", "v2", *SMALL)
    status, out, err = undrift(*second, "--json", "--quiet", "--watch-routes", 2)
    assert status == 0, err
    tasks = json.loads(out)["tasks"]
    assert [(row["task"], row["new"]) for row in tasks] == [("colours", False), ("capitals", True)]

    status, out, err = undrift("report", "v1", "v2", "--out", "page.html", "--no-figures")
    assert status == 0, err
    assert out.startswith("v2 has learned capitals") and "written: page.html" in out
    status, out, err = undrift("diagnose", "v2", "--json")
    assert status == 0, err
    assert json.loads(out)["causes"]["cells"][0]["name"] == "colours"
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


@pytest.mark.slow
def test_eval_asks_no_finished_task_again_but_others(undrift, monkeypatch):
    for name, start in (("colours", "model"), ("capitals", "v1")):
        words = ("learn", start, "--data", f"{name}.jsonl", "--held-out", 0.5, *SMALL)
        out = "v1" if start == "model" else "v2"
        assert undrift(*words, "--out", out)[0] == 0
    whole = undrift("eval", "v2", "--json", "--out", "whole")[1]
    real, calls = answer.answers, []

    def counted(session, examples, *given):
        calls.append(len(examples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(session, examples, *given)

    monkeypatch.setattr(answer, "answers", counted)
    assert undrift("eval", "v2", "--json", "--out", "asked")[0] == 130
    assert undrift("eval", "v2", "--json", "--out", "asked")[1] == whole
    assert undrift("eval", "v2", "--json", "--out", "asked")[1] == whole
    assert len(calls) == 3  # what is finished stays
    calls[:] = [0]
    assert undrift("eval", "v2", "--limit", 1, "--out", "asked")[0] == 130
    assert undrift("eval", "v2", "--out", "asked")[0] == 0
    assert len(Path("asked/colours.jsonl").read_text().splitlines()) > 1


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


@pytest.mark.foreign("3.9")
@pytest.mark.foreign("3.28")
def test_one_row_without_a_picture_is_learned_if_that_is_meant(undrift, tmp_path):
    row = {"question": "Is it red?", "answer": True}
    Path("facts.json").write_text(json.dumps(row))
    words = ("learn", "model", "--data", "facts.json", "--out", "v1", *SMALL)
    status, _, err = undrift(*words, "--booleans", "yes-no")
    assert status == 1 and "--test FILE" in err and "--held-out 0" in err
    status, _, err = undrift(*words, "--held-out", 0)
    assert status == 1 and "--booleans yes-no" in err
    status, out, err = undrift(*words, "--held-out", 0, "--booleans", "yes-no")
    assert status == 0, err
    said = " ".join(err.split())
    assert "no question of facts shows a picture, though model takes pictures" in said
    assert "nothing of facts is held out: its scores are of what it was trained on" in said
    status, out, err = undrift("eval", "v1", "--json")  # found again, and read in the same way
    assert status == 0 and list(json.loads(out)["scores"]) == ["facts"], err


@pytest.mark.foreign("3.32")
def test_a_tasks_folder_is_learned(undrift, tmp_path):
    task = tmp_path / "birds"
    task.mkdir()
    (tmp_path / "colours").rename(task / "colours")
    (tmp_path / "colours.jsonl").rename(task / "train.jsonl")
    (tmp_path / "colours-test.jsonl").rename(task / "test.jsonl")
    status, out, err = undrift("learn", "model", "--data", "birds", "--out", "v1", *SMALL, "--json")
    assert status == 0, err
    (row,) = json.loads(out.splitlines()[-1])["tasks"]
    assert (row["task"], row["examples"]) == ("birds", 4)


def test_without_a_terminal_it_says_what_it_plans_and_how_far_it_is(undrift):
    words = ("learn", "model", "--data", "colours.jsonl", "--out", "v1", *SMALL)
    status, _, err = undrift(*words)
    assert status == 0, err
    assert "plan: colours, learned with nearlora on model" in err
    assert "1 question held out of 8 (--held-out 0.1)" in err
    assert "warning: colours gets 2 steps, and fewer than 50 seldom teach anything" in err
    assert re.search(r"learning colours: 2 of 2, loss [\d.]+, rate [\d.e-]+, 0:\d\d taken", err)
    status, out, err = undrift(*words[:-1], "train.batch_size=2", "--out", "v2", "--quiet")
    assert (status, out, err) == (0, "", "")


def test_test_questions_beside_the_training_file_are_asked(undrift):
    Path("colours.jsonl").rename("train.jsonl")
    Path("colours-test.jsonl").rename("test.jsonl")
    words = ("learn", "model", "--data", "train.jsonl", *SMALL, "--dry-run")
    status, out, err = undrift(*words, "--out", "v1")
    assert status == 0, err
    assert "4 questions in test.jsonl, beside the training file" in out
    status, out, _ = undrift(*words, "--held-out", 0.25, "--out", "v1")
    assert status == 0 and "2 questions held out of 8 (--held-out 0.25)" in out
    Path("test.csv").write_text("question,answer\n")
    status, _, err = undrift(*words, "--out", "v1")
    assert status == 1 and "holds test.csv and test.jsonl; say with --test which" in err
    assert not Path("v1").exists()


def test_a_dry_run_prints_what_is_taken_back_and_writes_nothing(undrift):
    there = sorted(Path().rglob("*"))
    words = ("learn", "model", "--data", "colours.jsonl", "--out", "v1")
    status, out, err = undrift(*words, *SMALL, "--seed", 4, "--dry-run")
    assert (status, err) == (0, "")
    assert out.startswith("# plan: colours, learned with nearlora on model\n")
    assert sorted(p for p in Path().rglob("*") if p.parts[0] != "cache") == there
    Path("settings.yaml").write_text(out)
    status, again, err = undrift(
        *words, "--config", "settings.yaml", "--max-new-tokens", 6, "--dry-run"
    )
    assert status == 0 and again == out, err
    status, said, _ = undrift(*words, *SMALL, "--dry-run", "--json")
    found = json.loads(said)
    assert found["plan"]["steps"] == 2 and found["config"]["train"]["max_steps"] == 2
    assert undrift(*words, *SMALL, "--dry-run", "--quiet")[1] == ""
    status, _, err = undrift("learn", "modell", *words[2:], "--dry-run")
    assert status == 2 and "unknown backbone 'modell'" in err


def test_a_guard_is_shown_and_counts_as_a_drop(undrift, tmp_path):
    words = ("learn", "model", "--data", "colours.jsonl", "--out", "v1", *SMALL)
    words = (*words, "--guard", "capitals-test.jsonl")
    status, out, err = undrift(*words, "--json", "--quiet")
    assert status == 0, err
    assert [row["task"] for row in json.loads(out)["guards"]] == ["capitals-test"]
    result = read_json(tmp_path / "v1/result.json")
    result["guards"][0] |= {"before": 90.0, "after": 80.0, "drop": 10.0}
    write_json(tmp_path / "v1/result.json", result)
    status, out, err = undrift(*words, "--max-drop", 9)
    assert status == 3 and "fell by more than 9 points: capitals-test by 10.0" in err
    assert "capitals-test (guard)" in out and "-10.0" in out


def test_a_run_says_what_it_would_do_and_takes_its_configuration_back(undrift):
    Path("tasks.yaml").write_text("- {name: colours, train: colours.jsonl, max_new_tokens: 6}\n")
    words = ("run", "folder", "--data", ".", "--backbone", "model", "--out", "r", *SMALL[2:])
    status, out, err = undrift(*words, "--dry-run")
    assert (status, err) == (0, "")
    assert "#   colours: 7 examples, 7 pictures, 1 question, 2 steps" in out
    assert "# warning: colours gets 2 steps" in out and not Path("r").exists()
    Path("run.yaml").write_text(out)
    assert undrift("run", "run.yaml", "--dry-run")[1] == out
    status, _, err = undrift("run", "run.yaml", "--json")
    assert status == 0 and Path("r/matrix.json").is_file(), err
    assert '"event": "plan"' not in err


@pytest.mark.parametrize("broken", ["model/tokenizer.json", "model/model.safetensors"])
def test_a_model_that_cannot_be_loaded_leaves_no_folder(undrift, broken):
    Path(broken).write_text("{")
    status, _, err = undrift("learn", "model", "--data", "colours.jsonl", "--out", "v1", *SMALL)
    assert (
        status == 2
        and "cannot load the backbone" in err
        and "Traceback" not in err
        and not Path("v1").exists()
    )
    words = ("run", "folder", "--data", "colours.jsonl", "--backbone", "model", "--out", "r")
    status, _, err = undrift(*words)
    assert (
        status == 2
        and "cannot load the backbone" in err
        and "Traceback" not in err
        and not Path("r").exists()
    )
