"""The protocol that a run records, and that a comparison can set side by side."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from undrift.report import difference_section, grouped, load
from undrift.report.results import facts
from undrift.run import manifest
from undrift.run.progress import Progress
from undrift.rundir import read_json
from undrift.rundir.files import short_hash

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def test_what_decides_the_numbers_is_recorded(make_run, tmp_path, backbone):
    short = {"name": "lite"}
    make_run("zeroshot", method={"experts": 8, "rank": 8}, profile=short).go()
    make_run(
        "finetune", out="other", profile=short, train={"accumulation": 2, "max_steps": 1}, seed=1
    ).go()
    written = read_json(tmp_path / "other" / "manifest.json")
    protocol = written["protocol"]
    assert protocol["training"]["global_batch"] == 8 and protocol["training"]["max_steps"] == 1
    assert protocol["prompt_hash"] == short_hash(backbone.processor.chat_template)
    assert protocol["pictures"]["size"] == {"height": 12, "width": 12}
    assert protocol["pictures"]["do_pad"] is False
    assert protocol["text_padding"] == "left"
    assert (protocol["cells"], protocol["train_share"], protocol["limit"]) == ("ends", 0.5, None)
    found = facts(written)
    for key in (
        *("backbone", "weights.fingerprint", "weights.dtype", "data.fingerprint", "seed"),
        *("prompt_hash", "pictures.do_pad", "text_padding", "decoding", "scoring"),
        *("training.global_batch", "training.epochs", "training.learning_rate"),
        *("task.lower.max_new_tokens", "task.lower.scorer"),
    ):
        assert key in found
    runs = [load(tmp_path / name) for name in ("run", "other")]
    assert not runs[0].trained and runs[1].trained
    assert difference_section(grouped(runs)).rows == ()  # how one trains is the other's own affair


class Told(Progress):
    """Keeps the lines that are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, kind, text, **values) -> None:
        if kind == "adapted":
            self.lines.append(text)


@pytest.mark.foreign("6.5")
def test_a_run_and_a_lesson_say_once_what_is_adapted_and_record_it(make_run, lesson, tmp_path):
    told = Told()
    make_run(profile={"name": "lite"}, train={"max_steps": 1}, progress=told).go()
    expected = (
        "adapted: 6 linears (gate_proj, up_proj, down_proj) in 2 of 2 blocks of "
        "model.language_model; not adapted: attention (targets: ffn), model.vision_tower, "
        "model.multi_modal_projector, lm_head"
    )
    assert told.lines == [expected]
    assert read_json(tmp_path / "run/manifest.json")["adapted"] == expected
    learned = Told()
    lesson("colours", progress=learned).go()
    assert learned.lines == [expected]


def test_what_goes_on_with_something_else_is_noted_beside_what_it_began_with(
    make_run, tmp_path, monkeypatch
):
    def run(torch: str) -> dict:
        monkeypatch.setattr(manifest, "_version", lambda p: torch if p == "torch" else "1")
        make_run("finetune", train={"max_steps": 1}).go()
        (tmp_path / "run/tasks/02-upper/DONE").unlink()
        return read_json(tmp_path / "run/manifest.json")

    assert "resumed" not in run("2.1") and "resumed" not in run("2.1")
    for _ in range(2):  # once, however often it is gone on with
        kept = run("2.2")
        assert kept["versions"]["torch"] == "2.1"
        (resumed,) = kept["resumed"]
        assert resumed["versions"]["torch"] == "2.2" and resumed["after"] == 1
    assert [each["versions"]["torch"] for each in run("2.1")["resumed"]] == ["2.2", "2.1"]


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Callable[..., str]:
    """A repository that stands for undrift's own, with one commit; it runs git there."""
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    names |= {key.replace("AUTHOR", "COMMITTER"): value for key, value in names.items()}
    environment = {**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull}

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "__init__.py").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    monkeypatch.setattr(manifest, "_SOURCE", tmp_path)
    return git


def test_the_commit_is_that_of_the_source(repository, tmp_path, monkeypatch):
    known = repository("rev-parse", "--short", "HEAD")
    assert manifest.commit() == known
    (tmp_path / "__init__.py").write_text("changed")
    assert manifest.commit() == f"{known}+dirty"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("of nobody")
    monkeypatch.setattr(manifest, "_SOURCE", tmp_path / "other")
    assert manifest.commit() is None


def test_asking_for_the_commit_writes_nothing(repository, tmp_path):
    """Where a file's times are not those of the index, `git status` would write them there."""
    index: Path = tmp_path / ".git" / "index"
    os.utime(tmp_path / "__init__.py", (0, 0))
    before = index.read_bytes()
    assert manifest.commit() == repository("rev-parse", "--short", "HEAD")
    assert index.read_bytes() == before
    repository("status")
    assert index.read_bytes() != before
