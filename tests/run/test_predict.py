"""`undrift predict`: one question or a file of them, to an adapter or to a model without one."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.run.own import write_rows
from undrift.errors import ConfigError, UnknownName
from undrift.run.adapters import find_adapter, open_adapter
from undrift.run.evaluate import ask
from undrift.run.predict import BASE, LONGEST, answer_length, open_model, open_several
from undrift.rundir import read_json, read_lines, write_json


@pytest.fixture
def said(monkeypatch, command_line, tmp_path):
    """Run a command; return status, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    return command_line


@pytest.fixture
def learned(lesson, data, tmp_path):
    """An adapter of two tasks, the second with longer answers."""
    lesson("colours").go()
    lesson("capitals", "colours").go()
    record = find_adapter(tmp_path / "capitals") / "undrift.json"
    content = read_json(record)
    content["learned"][1]["max_new_tokens"] = 9
    write_json(record, content)
    return tmp_path / "capitals"


@pytest.fixture
def questions(data):
    """Five questions without answers, in an order of their own."""
    rows = [
        {"id": number, "image": f"colours/{number}.png", "question": f"which colour {'?' * number}"}
        for number in (4, 1, 3, 2, 5)
    ]
    write_rows(data / "questions.jsonl", rows)
    return data / "questions.jsonl"


def test_a_file_is_answered_in_its_order_as_one_by_one(said, learned, questions, data, tmp_path):
    words = ("predict", learned, "--data", questions, "--batch-size", 2)
    status, out, _ = said(*words, "--out", "answers.jsonl")
    assert status == 0 and out.strip() == "5 answers: answers.jsonl"
    rows = read_lines(tmp_path / "answers.jsonl")
    assert [row["id"] for row in rows] == ["4", "1", "3", "2", "5"]
    assert len({row["answer"] for row in rows}) > 1
    adapter = open_adapter(learned)
    for row in rows:
        picture = data / f"colours/{row['id']}.png"
        assert row["answer"] == ask(adapter, row["question"], (picture,), 9)
    status, out, _ = said(*words)  # without --out they are printed
    assert [json.loads(line) for line in out.splitlines()] == rows
    found = json.loads(said(*words, "--out", "again.jsonl", "--json")[1])
    assert (found["answers"], found["out"]) == (5, "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "answers.jsonl").read_bytes()


def test_an_answers_file_is_never_written_over(said, learned, questions, tmp_path):
    (tmp_path / "answers.jsonl").write_text("mine")
    status, _, err = said("predict", learned, "--data", questions, "--out", "answers.jsonl")
    assert status == 1 and "is there already" in err and err.count("\n") == 1
    assert (tmp_path / "answers.jsonl").read_text() == "mine"


def test_what_cannot_be_asked_is_named_or_left_out(said, learned, questions, data, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    (data / "colours/broken.png").write_bytes(b"no picture")
    rows[1]["image"] = "colours/broken.png"
    write_rows(questions, rows)
    words = ("predict", learned, "--data", questions, "--out", "answers.jsonl")
    status, _, err = said(*words)
    assert status == 1 and "the question '1' cannot be asked" in err and "--skip-bad" in err
    assert not (tmp_path / "answers.jsonl").exists()
    write_rows(questions, [*rows, {"id": 6}])
    status, _, err = said(*words)
    assert status == 1 and "row 6" in err
    status, _, err = said(*words, "--skip-bad")
    assert status == 0 and "row 6" in err and "question '1'" in err
    assert [row["id"] for row in read_lines(tmp_path / "answers.jsonl")] == ["4", "3", "2", "5"]


def test_a_model_without_adapter(said, backbone_folder, backbone, questions, data, tmp_path):
    picture = data / "colours/1.png"
    words = ("--question", "which colour?", "--image", picture, "--max-new-tokens", 6)
    status, out, _ = said("predict", backbone_folder, *words)
    assert status == 0 and out.strip() == ask(open_model(str(backbone_folder)),
                                              "which colour?", (picture,), 6)  # fmt: skip
    words = ("--data", questions, "--out", "bare.jsonl", "--max-new-tokens", 6)
    assert said("predict", backbone_folder, *words)[0] == 0
    assert len(read_lines(tmp_path / "bare.jsonl")) == 5
    assert answer_length(open_model(str(backbone_folder))) == LONGEST
    status, _, err = said("predict", backbone_folder, "--question", "a?", "--task", "colours")
    assert status == 2 and "unknown task 'colours'" in err
    status, _, err = said("predict", backbone_folder, "--question", "a?", "--backbone", "pocket")
    assert status == 2 and "is no adapter" in err


def test_the_base_is_never_an_adapter_that_lies_in_its_folder(learned, backbone_folder, tmp_path):
    model = shutil.copytree(backbone_folder, tmp_path / "model")
    shutil.copytree(find_adapter(learned), model / "adapter")
    adapter, base = open_several([str(learned), BASE], str(model))
    assert adapter.origin and not base.origin and base.folder == model


def test_the_answers_get_as_long_as_those_of_the_task(learned, make_run, tmp_path):
    adapter = open_model(str(learned))
    assert answer_length(adapter) == 9
    assert answer_length(adapter, "colours") == 6
    with pytest.raises(UnknownName, match="did you mean 'colours'"):
        answer_length(adapter, "colour")
    run = make_run("finetune")
    run.go()
    assert answer_length(open_model(str(tmp_path / "run")), "upper") == 6
    record = find_adapter(tmp_path / "run") / "undrift.json"
    content = read_json(record)
    for note in content["learned"]:
        del note["max_new_tokens"]  # as an older undrift wrote it
    write_json(record, content)
    older = open_model(str(tmp_path / "run"))
    assert answer_length(older) == LONGEST
    with pytest.raises(ConfigError, match="give it with --max-new-tokens"):
        answer_length(older, "upper")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one --question"),
        (("--question", "a?", "--data", "b.jsonl"), "give one --question"),
        (("--data", "b.jsonl", "--image", "c.png"), "--image belongs to --question"),
        (("--question", "a?", "--out", "b.jsonl"), "--out is for the answers to --data"),
    ],
)
def test_options_that_do_not_go_together(said, words, message):
    status, out, err = said("predict", "anything", *words)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["same", "steadylora", "osf", "modalprompt", "disco"])
def test_what_is_asked_side_by_side_shares_its_model_and_nothing_else(
    make_run, method, tmp_path, backbone_folder, two
):
    make_run("finetune", out="old", train={"learning_rate": 0.1}).go()
    make_run(method, out="new").go()
    names = [str(tmp_path / "new"), str(tmp_path / "old"), "base"]
    several = open_several(names)
    alone = [open_model(names[0]), open_model(names[1]), open_model(str(backbone_folder))]
    heads = {each.backbone.model.lm_head.weight.data_ptr() for each in several}
    assert len(heads) == 1
    said = []
    for example in two.tasks[0].test:
        asked = (example.question, example.images, 6)
        together = [ask(each, *asked) for each in several]
        assert together == [ask(each, *asked) for each in alone]
        said.append(together)
    assert any(len(set(each)) > 1 for each in said)


def test_models_that_differ_are_loaded_each(make_run, tmp_path):
    make_run("finetune", out="old").go()
    first, second = open_several([str(tmp_path / "old"), "pocket"])
    assert first.backbone.fingerprint != second.backbone.fingerprint
    assert isinstance(ask(second, "hello?", (), 2), str)
