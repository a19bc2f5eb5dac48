"""`undrift export` as it is typed: what it prints, and how it exits."""

from __future__ import annotations

import json

import pytest

from tests.run.own import write_task
from tests.run.tiny import save_tiny
from undrift.run import export as exporting

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SMALL = ("--max-new-tokens", 6, "--set", "train.max_steps=8", "--set", "train.batch_size=4",
         "--set", "train.learning_rate=0.02", "--set", "method.rank=2", "--quiet")  # fmt: skip


@pytest.fixture
def undrift(tmp_path, monkeypatch, command_line):
    """Run a command in a folder with a tiny model and a task; return status, output, errors."""
    save_tiny(tmp_path / "model")
    write_task(tmp_path, "colours")
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def learn(method: str) -> str:
        words = ("learn", "model", "--data", "colours.jsonl", "--test", "colours-test.jsonl")
        status, _, err = command_line(*words, "--method", method, "--out", method, *SMALL)
        assert status == 0, err
        return method

    command_line.learn = learn
    return command_line


def test_a_plain_adapter_is_exported_asked_and_compared(undrift, tmp_path, monkeypatch):
    adapter = undrift.learn("steadylora")
    status, out, err = undrift("export", adapter, "--to", "peft", "--out", "served", "--quiet")
    assert (status, out) == (0, ""), err
    status, out, err = undrift("export", adapter, "--to", "merged", "--out", "merged")
    assert status == 0, err
    assert "all 4 answers are the adapter's own" in out
    assert "4 of 4 are others than the bare base's" in out
    assert "bare base" in out and "colours" in out
    status, out, err = undrift("export", adapter, "--to", "merged", "--out", "merged")
    assert status == 1 and err.count("\n") == 1 and "choose another folder" in err

    monkeypatch.setattr(exporting, "write_merged", only_copy)
    words = ("export", adapter, "--to", "merged", "--out", "idle", "--json", "--quiet")
    status, out, err = undrift(*words)
    found = json.loads(out)
    assert status == 3 and not found["as_expected"] and found["changed"]["differ"] == 0


def only_copy(lora, base, folder, model):
    exporting.copy_readers(base, folder, model=True)
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    return model.dtype


def test_a_routed_adapter_is_refused_or_fitted_to(undrift, tmp_path):
    adapter = undrift.learn("moelora")
    status, out, err = undrift("export", adapter, "--to", "merged", "--out", "served")
    assert status == 2 and "--distil" in err and "steadylora" in err
    assert not (tmp_path / "served").exists()
    words = ("export", adapter, "--to", "peft", "--out", "served", "--distil", "--rank", 4)
    status, out, err = undrift(*words)
    assert status == 0, err
    assert "the fitted LoRA costs" in out and "points on average" in out
    assert "--max-lora-rank 8" in out


def test_what_an_export_needs_is_said_in_one_line(undrift, tmp_path):
    adapter = undrift.learn("finetune")
    for words, said in (
        (("--to", "gguf"), "--converters DIR"),
        (("--to", "gguf", "--converters", tmp_path), "no convert_hf_to_gguf.py"),
        (("--to", "peft", "--without", "colours"), "--questions FILE"),
        (("--to", "peft", "--questions", "lost.jsonl"), "lost.jsonl"),
    ):
        status, _, err = undrift("export", adapter, "--out", "served", *words)
        assert status in (1, 2) and said in err, err
        assert not (tmp_path / "served").exists()
    status, out, _ = undrift("export", adapter, "--to", "peft", "--out", "served", "--limit", 0)
    assert status == 0 and "nothing was asked" in out
    words = ("export", adapter, "--to", "peft", "--out", "more", "--test-of", "colours=lost.jsonl")
    status, _, err = undrift(*words)
    assert status == 1 and "lost.jsonl" in err and err.count("\n") == 1
    test = "colours=colours-test.jsonl"
    assert undrift(*words[:-1], test)[0] == 0
