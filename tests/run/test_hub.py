"""What is sent to the Hub of an adapter: its files and nothing of the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.run.own import LAYER
from undrift.cli import app
from undrift.errors import ConfigError, RunDirError
from undrift.methods.shared import model_card
from undrift.run import hub
from undrift.run.adapters import origin_of
from undrift.run.hub import check_repo, not_sent, push, to_send

ALWAYS = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "undrift.json",
    "undrift_state.json",
}


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def secrets(data: Path) -> set[str]:
    """Texts of the data; answers and words of questions that stand nowhere else."""
    lines = [line for file in data.glob("*.jsonl") for line in file.read_text().splitlines()]
    rows = map(json.loads, lines)
    return {str(value) for row in rows for value in row.values() if len(str(value)) > 8}


@pytest.fixture
def learned(lesson, tmp_path) -> Path:
    lesson("colours", out="v1").go()
    lesson("capitals", "v1", out="v2").go()
    return tmp_path / "v2/adapter"


def test_what_is_sent_is_the_adapter_and_names_no_folder(learned, data, tmp_path):
    (learned / "notes.txt").write_text("mine")
    (learned / "predictions.jsonl").write_text("{}\n")
    (learned / "link.safetensors").symlink_to(learned / "adapter_model.safetensors")
    texts = secrets(data)
    assert texts
    with to_send(learned) as made:
        assert names(made) == ALWAYS
        for path in made.rglob("*"):
            held = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
            assert str(tmp_path) not in held and str(Path.home()) not in held, path
            assert not any(text in held for text in texts), path
        record = origin_of(made)  # a record still, as strictly read as any
        assert [note["test"] for note in record["learned"]] == [
            "colours-test.jsonl",
            "capitals-test.jsonl",
        ]
    assert not made.exists()
    assert not_sent(learned) == ["link.safetensors", "notes.txt", "predictions.jsonl"]


def test_a_card_of_before_and_a_trainers_snapshot_are_not_sent(learned, backbone_folder):
    body = f"# an adapter\nbase = {str(backbone_folder)!r}\n"
    card = f"{body}{model_card._MARK}{model_card._digest(body)} -->\n"
    (learned / "README.md").write_text(card)
    (learned / "checkpoint-4").mkdir()
    shutil.copy(learned / "adapter_model.safetensors", learned / "checkpoint-4")
    with to_send(learned) as made:
        assert names(made) == ALWAYS
        text = (made / "README.md").read_text()
    assert "## Load it" in text and str(backbone_folder) not in text
    assert (learned / "README.md").read_text() == card  # the adapter itself is left alone
    (learned / "undrift_state.json").write_text("{")
    with pytest.raises(RunDirError, match="damaged"):
        to_send(learned).__enter__()


def test_the_questions_go_along_where_that_is_asked_for(learned):
    with to_send(learned, with_tests=True) as made:
        more = names(made) - ALWAYS
    assert {name.split("/")[1] for name in more} == {"01-colours", "02-capitals"}
    assert any(name.endswith("questions.jsonl") for name in more)


def test_an_adapter_that_holds_examples_is_not_sent_by_mistake(lesson, tmp_path, monkeypatch):
    monkeypatch.setitem(LAYER, "method", {"name": "replay", "rank": 2})
    lesson("colours", out="v1").go()
    with pytest.raises(ConfigError, match=r"holds examples that it was trained on.*--with-tests"):
        to_send(tmp_path / "v1/adapter").__enter__()
    with to_send(tmp_path / "v1/adapter", with_tests=True) as made:
        assert len(names(made)) > len(ALWAYS)
    card = (tmp_path / "v1/adapter/README.md").read_text()
    assert "it keeps examples that it was trained on" in card


@pytest.mark.parametrize("name", ["alone", "a/b/c", "a b/c", "../c", "a/" + "x" * 200])
def test_a_name_that_no_repository_has_is_refused(name):
    with pytest.raises(ConfigError, match="repository"):
        check_repo(name)


def test_the_command_lists_what_it_sends(learned, monkeypatch, tmp_path):
    sent = {}

    class Api:
        def create_repo(self, repo, *, private, exist_ok):
            sent["made"] = (repo, private)

        def upload_folder(self, *, repo_id, folder_path):
            sent["files"] = names(Path(folder_path))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    told = CliRunner().invoke(app, ["push", str(learned), "me/colours", "--dry-run"])
    assert told.exit_code == 0 and "nothing was sent" in told.output and sent == {}
    listed = {line.split()[-1] for line in told.output.splitlines() if " bytes  " in line}
    done = CliRunner().invoke(app, ["push", str(learned), "me/colours"])
    assert "sent to https://huggingface.co/me/colours" in done.output
    assert sent == {"made": ("me/colours", True), "files": listed} and listed == ALWAYS
    CliRunner().invoke(app, ["push", str(learned), "me/colours", "--public", "--json"])
    assert sent["made"] == ("me/colours", False)


def test_without_a_network_it_is_one_line(learned, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with (
        to_send(learned) as made,
        pytest.raises(RunDirError, match=r"cannot send to me.*log in"),
    ):
        push(made, "me/c")
