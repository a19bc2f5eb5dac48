"""Whatever is typed counts, or is refused in one line that says what to do; nothing is dropped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.run.own import LAYER, write_rows, write_task
from tests.run.tiny import save_tiny
from undrift.data.benchmarks.folder import OwnTask
from undrift.run.learn import Learn, start_from
from undrift.run.remember import answered
from undrift.rundir import read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LEARN = ("learn", "model", "--data", "colours.jsonl", "--out", "new", "--max-new-tokens", 6)
AGAIN = ("learn", "v1", *LEARN[2:], "--name", "again", "--dry-run")
EXPORT = ("export", "v1", "--to", "peft", "--out", "new")
EVAL = ("eval", "v1", "--benchmark", "folder", "--data", "colours.jsonl")
PREDICT = ("predict", "v1", "--question", "which?")
MANY = 16 * (os.cpu_count() or 1) + 1
REMEMBER = ("remember", "model", "--out", "new")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, a task, and an adapter of both."""
    root = tmp_path_factory.mktemp("made")
    save_tiny(root / "model")
    write_task(root, "colours")
    (root / "epochs.yaml").write_text("train: {epochs: 7}")
    own = OwnTask("colours", root / "colours.jsonl", root, test=root / "colours-test.jsonl",
                  max_new_tokens=6)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRIFT_CACHE", str(root / "cache"))
        Learn(start_from(str(root / "model"), LAYER), own, root / "v1").go()
    return root


@pytest.fixture
def undrift(made, tmp_path, monkeypatch, command_line):
    """Run a command in a copy of that folder; return status, output, errors."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path / "here")

    return command_line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            (*LEARN, "--test", "colours-test.jsonl", "--held-out", 0.5),
            "--held-out is for asking a part of --data, where no --test is given; leave it out",
        ),
        ((*LEARN, "--guard-scorer", "letter"), "--guard-scorer is for the questions of --guard"),
        ((*LEARN, "--test-of", "x=y"), "--test-of is for tasks that an adapter has learned, and "),
        ((*LEARN, "--without", "x"), "--without is for tasks that an adapter has learned, and mod"),
        ((*LEARN, "--name", ""), "nothing is given after --name; give a value"),
        ((*LEARN, "--name="), "nothing is given after --name; give a value"),
        ((*LEARN, "--threads", MANY), f"{MANY} threads are too many for the "),
        ((*LEARN, "--seed", 2**32), "seed: input should be less than or equal to"),
        (
            (*LEARN, "--set", "train.max_steps=3", "--set", "train.epochs=7"),
            "train.epochs counts only with train.max_steps=null (it is 3); set that as well",
        ),
        ((*AGAIN, "--set", "train.epochs=7"), "only with train.max_steps=null (it is 3)"),
        ((*AGAIN, "--config", "epochs.yaml"), "only with train.max_steps=null (it is 3)"),
        (
            ("run", "folder", "--data", "colours.jsonl", "--set", "stream.points=3"),
            "the setting stream counts only with boundaries=none",
        ),
        ((*EXPORT, "--without", "typo"), "unknown task of the adapter 'typo'; known: colours"),
        ((*EXPORT, "--task", "typo"), "unknown task of the adapter 'typo'; known: colours"),
        ((*EXPORT, "--rank", 4), "--rank is for the LoRA that --distil fits; leave it out"),
        ((*EXPORT, "--converters", "nope"), "--converters is for --to gguf; leave it out"),
        ((*EXPORT, "--images", "nope"), "--images is for the rows of --questions FILE"),
        (
            (*EXPORT, "--limit", 0, "--test-of", "typo=x", "--without", "y", "--batch-size", 16),
            "--batch-size, --without and --test-of are for questions, and --limit 0 asks none;",
        ),
        (
            (*EXPORT, "--limit", 0, "--questions", "colours.jsonl"),
            "--questions is for questions, and --limit 0 asks none",
        ),
        (
            (*EXPORT, "--questions", "colours.jsonl", "--test-of", "typo=x"),
            "--test-of is for what was learned, and --questions FILE asks other rows",
        ),
        (
            (*EXPORT, "--task", "colours", "--without", "colours"),
            "--without is for all that was learned, and --task asks one task alone",
        ),
        ((*EVAL, "--test-of", "colours=x"), "--test-of is for what was learned"),
        (("eval", "v1", "--skip-bad"), "--skip-bad is for a benchmark, and what was learned is"),
        ((*EVAL, "--set", "train.epochs=9"), "--set train.epochs is not read where an adapter is"),
        ((*EVAL, "--set", "method.rank=3"), "--set method.rank is not read where an adapter is"),
        ((*EVAL, "--set", "eval.scoring=lenient"), "asked; give --scoring"),
        ((*EVAL, "--set", "profile.train_share=0.5"), "profile.train_share is not read"),
        ((*EVAL, "--set", "eval.split=validation"), "has zero validation examples"),
        ((*PREDICT, "--images", "nope", "--skip-bad", "--batch-size", 32),
         "--images, --batch-size and --skip-bad are for the rows of --data; leave them out"),
        ((*PREDICT[:-1], ""), "nothing is given after --question"),
        ((*REMEMBER, "--weights", "--images", "nope", "--max-new-tokens", 32),
         "--images and --max-new-tokens are for prompts, and --weights needs none"),
        ((*REMEMBER, "--images", "nope"), "--images is for the prompts of --data"),
    ],
)  # fmt: skip
def test_what_would_not_be_used_is_refused(undrift, words, said):
    status, out, err = undrift(*words)
    assert status in (1, 2) and err.count("\n") == 1 and said in err, (out, err)
    assert not Path("new").exists()


def test_test_questions_that_are_not_asked_are_not_said_to_lie_elsewhere(undrift, tmp_path):
    from undrift.rundir import read_json, write_json

    record = Path("v1/adapter/undrift.json")
    content = read_json(record)
    content["learned"].append({**content["learned"][0], "name": "more"})
    write_json(record, content)
    moved = ("--test-of", "more=colours-test.jsonl")
    status, _, err = undrift("eval", "v1", "--task", "colours", *moved)
    assert status == 2 and "--test-of: more is not asked; leave it out" in err
    status, _, err = undrift(*EXPORT, "--without", "more", *moved)
    assert status == 2 and "--test-of: more is not asked; leave it out" in err


def test_a_part_is_held_out_of_a_folder_with_test_rows_where_that_is_asked_for(undrift):
    birds = Path("birds")
    birds.mkdir()
    Path("colours").rename(birds / "colours")
    Path("colours.jsonl").rename(birds / "train.jsonl")
    Path("colours-test.jsonl").rename(birds / "test.jsonl")
    words = ("learn", "model", "--data", "birds", "--out", "new", "--dry-run")
    assert "4 questions in birds/test.jsonl" in undrift(*words)[1]
    assert "2 questions held out of 8 (--held-out 0.25)" in undrift(*words, "--held-out", 0.25)[1]
    assert "8 questions, all of them learned as well" in undrift(*words, "--held-out", 0)[1]


def test_a_name_of_ours_and_of_a_folder_is_not_guessed(undrift, monkeypatch):
    Path("v1").rename("pocket")
    for words in (("learn", "pocket", *LEARN[2:]), ("predict", "pocket", "--question", "which?")):
        status, _, err = undrift(*words)
        assert status == 2 and "give ./pocket for the folder" in err and err.count("\n") == 1
    status, out, err = undrift("predict", "./pocket", "--question", "which?")
    assert status == 0, err
    Path("pocket").rename("v1")
    Path("model").rename("smollm2")
    status, _, err = undrift("predict", "smollm2", "--question", "which?")
    assert status == 2 and "give ./smollm2 for the folder" in err
    Path("pocket").mkdir()  # of data, perhaps: no model, no adapter
    words = ("--data", "colours.jsonl", "--out", "new", "--dry-run")
    status, out, err = undrift("learn", "pocket", *words)
    assert status == 0 and "learned with nearlora on pocket" in out, err


def test_programs_are_told_that_questions_have_changed(undrift):
    words = ("eval", "v1", "--json", "--test-of", "colours=colours-test.jsonl")
    found = json.loads(undrift(*words, "--quiet")[1])
    assert "changed" not in [note["event"] for note in found["notes"]]
    rows = read_lines(Path("colours-test.jsonl"))
    write_rows(Path("colours-test.jsonl"), [{**row, "answer": "grey"} for row in rows])
    status, out, err = undrift(*words)
    assert (status, err) == (0, "")
    (told,) = (each for each in json.loads(out)["notes"] if each["event"] == "changed")
    assert told["task"] == "colours" and "are not those of when it was learned" in told["text"]


def test_programs_are_told_what_was_left_out(undrift):
    rows = [json.loads(line) for line in Path("colours.jsonl").read_text().splitlines()]
    Path("colours/broken.png").write_bytes(b"no picture")
    rows[1]["image"] = "colours/broken.png"
    write_rows(Path("some.jsonl"), [*rows, {"id": "last"}])
    words = ("predict", "v1", "--data", "some.jsonl", "--skip-bad", "--json")
    status, out, err = undrift(*words)
    lines = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "") and [line.get("event") for line in lines[:2]] == ["skipped"] * 2
    assert lines[0]["where"] == "some.jsonl, row 9" and lines[1]["where"] == "question '1'"
    assert all(line["reason"] for line in lines[:2]) and len(lines[2:]) == 7
    status, out, err = undrift(*words, "--out", "answers.jsonl", "--quiet")
    found = json.loads(out)
    assert (status, found["skipped"], found["answers"]) == (0, 2, 7), err
    words = ("eval", "v1", "--data", "some.jsonl", "--benchmark", "folder", "--skip-bad", "--json")
    status, out, err = undrift(*words)
    assert status == 0, err
    (told,) = (each for each in json.loads(out)["notes"] if each["event"] == "skipped")
    assert told["count"] == 2


def test_prompts_are_not_answered_for_linears_that_are_nowhere(undrift, monkeypatch):
    monkeypatch.setattr(f"{answered.__module__}.answers", lambda *_: pytest.fail("it was asked"))
    status, _, err = undrift(*REMEMBER, "--targets", "nope")
    assert status == 2 and "no target 'nope'" in err and not Path("new").exists()


def test_what_remember_leaves_out_is_told_to_programs(undrift):
    status, out, err = undrift(*REMEMBER, "--json")
    assert status == 0, err
    assert "remembered" in [note["event"] for note in json.loads(out)["notes"]]


def test_a_plain_lora_is_told_all_that_it_needs(undrift):
    Path("v1/adapter/undrift.json").unlink()
    words = ("export", "v1", "--to", "merged", "--out", "new")
    status, _, err = undrift(*words)
    assert status == 2 and err.count("\n") == 1
    assert "--backbone" in err and "--questions FILE" in err and "--limit 0" in err
    assert "--backbone" not in undrift(*words, "--backbone", "model")[2]


@pytest.mark.parametrize("command", ["compare", "report", "diagnose"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not say what was run (no `"),
        ("- a list\n", "does not say what was run (no `"),
        ("format: 99\n", "newer undrift"),
    ],
)
@pytest.mark.parametrize("name", ["run.yaml", "learn.yaml"])
def test_what_says_nothing_of_a_run_is_not_compared(undrift, command, text, said, name):
    Path("v1/learn.yaml").rename(f"v1/{name}")
    Path(f"v1/{name}").write_text(text)
    status, _, err = undrift(command, "v1")
    assert status in (1, 2) and said in err and f"v1/{name}" in err and err.count("\n") == 1


def test_an_adapter_too_large_for_memory_is_not_told_to_take_smaller_batches(undrift):
    words = (*LEARN, "--dry-run", "--set", f"method.rank={10**12}")
    status, _, err = undrift(*words)
    assert status == 1 and "out of memory" in err and "set a smaller method.rank" in err
    assert "batch_size" not in err and "goes on" not in err


def test_nor_is_a_base_too_large_for_memory(undrift, monkeypatch):
    from undrift.run import load_model

    def full(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(load_model.transformers.AutoConfig, "from_pretrained", full)
    status, _, err = undrift("predict", "model", "--question", "which?")
    assert status == 1 and "the base alone does not fit; take a smaller one" in err
    status, _, err = undrift("eval", "v1")
    assert "the base alone does not fit" in err and "batch-size" not in err
