"""What people have goes on: adapters and runs that an older undrift wrote (fixtures/before).

How they were made, and what the old source answered: tests/fixtures/make_before.py. Another CPU may
round otherwise, so logits are compared with a tolerance, and answers where their margin is larger.
"""

from __future__ import annotations

import importlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import undrift
from tests.fixtures.make_before import COLOURS, METHODS, TASKS, copy_to

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ROUNDING = 5e-3  # of a logit of about 20
SURE = 0.05  # a margin that outlives it, and that features are kept in half precision
QUESTION = TASKS["colours"][0]


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    return copy_to(tmp_path_factory.mktemp("before") / "before")


@pytest.fixture(scope="module")
def expected(before) -> dict:
    return json.loads((before / "expected.json").read_text())


@pytest.fixture
def command(before, tmp_path, monkeypatch, command_line):
    """Run a command in the folder; return the last JSON line that it prints."""
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(before)

    def run(*words: object) -> dict:
        status, out, err = command_line(*words)
        assert status == 0, err
        return json.loads(out.splitlines()[-1]) if "--json" in words else {"printed": out}

    return run


def sure(about: dict) -> set[str]:
    """The questions of `colours` whose answer does not hang on how a CPU rounds."""
    return {
        question
        for question, margin in zip(about["answers"], about["margins"], strict=True)
        if margin > SURE
    }


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_answers_as_then(command, before, expected, method):
    about = expected[method]
    assert len(sure(about)) >= 2
    scores = command("eval", f"runs/{method}", "--out", f"asked-{method}", "--json")["scores"]
    assert scores.keys() == about["eval"].keys() == {"colours", "capitals"}
    rows = (before / f"asked-{method}" / "colours.jsonl").read_text().splitlines()
    found = {row["id"]: row["prediction"] for row in map(json.loads, rows)}
    assert found.keys() == about["answers"].keys()
    assert all(found[number] == about["answers"][number] for number in sure(about))


def test_an_adapter_is_asked_one_question(command, before, expected):
    picture, about = before / "data" / "pictures" / "9.png", expected["same"]
    words = ("predict", "runs/same", "--image", picture, "--question", QUESTION, "--json")
    assert "9" in sure(about)
    assert command(*words, "--max-new-tokens", 6)["answer"] == about["answers"]["9"]


@pytest.mark.parametrize("method", ["same", "steadylora", "ewc"])
def test_peft_loads_an_adapter_that_needs_no_method(before, method):
    base = str(files("undrift") / "run/pocket/weights")
    processor = AutoProcessor.from_pretrained(base)
    model = AutoModelForImageTextToText.from_pretrained(base)
    model = PeftModel.from_pretrained(model, before / f"runs/{method}/tasks/02-capitals/adapter")
    then = load_file(before / "logits.safetensors")[method]
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    for row, number in enumerate(range(8, 12)):
        picture = Image.open(before / "data" / "pictures" / f"{number}.png")
        with torch.no_grad():
            logits = model(**processor(text=text, images=picture, return_tensors="pt")).logits
        torch.testing.assert_close(logits[0, -1], then[row], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_one_more_task_is_learned(command, before, expected, method):
    words = ("learn", f"runs/{method}", "--data", "data/red.jsonl", "--test", "data/red-test.jsonl")
    words = (*words, "--out", f"more/{method}", "--max-new-tokens", 4)
    rows = command(*words, "--quiet", "--json")["tasks"]
    assert [row["task"] for row in rows] == [*list(TASKS)[:2], "red"]
    assert [row["new"] for row in rows] == [False, False, True]
    assert not any(row["changed"] for row in rows)
    folder = before / f"more/{method}/adapter"
    assert_alike(folder, before / f"learned/{method}", before / last(method))


def last(run: str) -> str:
    return f"runs/{run}/tasks/02-capitals/adapter"


def assert_alike(found: Path, then: Path, start: Path) -> None:
    """The adapter is that of then: what was learned differs by less than a thousandth of itself.

    Not entry by entry: Adam's first steps have the length of the rate whatever the gradient is, and
    one that is nothing but rounding may point the other way on another CPU.
    """
    name = "adapter_model.safetensors"
    now, old, begun = load_file(found / name), load_file(then / name), load_file(start / name)
    assert now.keys() == old.keys()
    assert all(now[key].shape == old[key].shape and now[key].dtype == old[key].dtype for key in now)
    moved = apart = 0.0
    for key, value in old.items():
        if "statistics" not in key:
            grown = key not in begun or begun[key].shape != value.shape
            was = torch.zeros_like(value) if grown else begun[key]
            moved += float((value - was).double().square().sum())
            apart += float((now[key] - value).double().square().sum())
        elif key.endswith(("history_s", "history_k", "history_trace", "cz", "importance", "tasks")):
            torch.testing.assert_close(now[key], value, rtol=1e-3, atol=1e-6)
    assert moved > 0 and (apart / moved) ** 0.5 < 1e-3


def test_a_finished_run_is_diagnosed_and_reported(command, before, expected):
    then = expected["same"]["diagnose"]
    found = command("diagnose", "runs/same", "--data", "data", "--json")
    lost = [cell["lost"]["strict"] for cell in found["causes"]["cells"]]
    overlap = [cell["overlap"] for cell in found["routes"]["cells"]]
    moved = [cell["moved"] for cell in found["experts"]["cells"]]
    assert lost == then["causes"]
    assert overlap == pytest.approx(then["routes"], abs=0.1)
    assert moved == pytest.approx(then["experts"], rel=0.01, abs=1e-6)
    command("report", "runs/same", "runs/ewc", "--out", "page.html")
    page = (before / "page.html").read_text()
    matrix = json.loads((before / "runs/same/matrix.json").read_text())
    for number in (matrix["metrics"]["last"], *matrix["matrix"][-1]):
        assert f"{number:.1f}" in page


def test_a_run_that_is_finished_is_not_done_again(command, before, monkeypatch):
    matrix = (before / "runs/same/matrix.json").read_text()
    monkeypatch.setattr("transformers.Trainer.train", lambda *_, **__: pytest.fail("trained again"))
    command("run", "runs/same/run.yaml", "--data", "data", "--out", "runs/same", "--quiet")
    assert (before / "runs/same/matrix.json").read_text() == matrix


def test_a_stopped_run_goes_on_to_where_it_went_then(command, before, expected):
    run = before / "runs/stopped"
    assert list((run / "tasks/02-capitals/training").glob("checkpoint-*"))
    first = (run / "tasks/01-colours/adapter/adapter_model.safetensors").read_bytes()
    command("run", run / "run.yaml", "--data", "data", "--out", run, "--quiet")
    assert (run / "tasks/01-colours/adapter/adapter_model.safetensors").read_bytes() == first
    matrix = json.loads((run / "matrix.json").read_text())
    then = expected["stopped"]["matrix"]
    assert matrix["matrix"] == then["matrix"] and matrix["zero_shot"] == then["zero_shot"]
    assert matrix["metrics"] == pytest.approx(then["metrics"])
    assert_alike(
        before / last("stopped"), before / "learned/stopped", run / "tasks/01-colours/adapter"
    )
    log = [
        json.loads(line)
        for line in (run / "tasks/02-capitals/train.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in log] == [2, 4, 6, 8, 10, 12]


PUBLIC = {
    "undrift": (
        *("PAPER", "UNDRIFT", "Finetune", "Joint", "Method", "MoeLora", "MoeLoraConfig", "Same"),
        *("Settings", "SteadyLora", "UndriftError", "ZeroShot", "__version__"),
    ),
    "undrift.cli": ("main",),
    "undrift.core.stepping": ("StepTransform",),
    "undrift.data.prompts": ("training_template",),
    "undrift.methods.base": ("Config", "Method"),
    "undrift.methods.finetune": ("Finetune",),
    "undrift.scoring": ("SCORERS",),
}
"""What README, docs, CONTRIBUTING and the examples of then import, or name as a place to enter."""


@pytest.mark.filterwarnings("ignore:.*is called .* now:FutureWarning")
@pytest.mark.parametrize("module", PUBLIC)
def test_what_was_shown_is_still_imported_from_there(module):
    found = importlib.import_module(module)
    assert not [name for name in PUBLIC[module] if not hasattr(found, name)]


def test_what_was_shown_of_methods_is_there():
    for method in (undrift.Same(), undrift.SteadyLora(), undrift.Same("paper")):
        assert method.peft_config() is not None
        assert method.config.mu > 0 and isinstance(method.config.a_metric, bool)
        assert callable(method.take_up)
    assert undrift.MoeLoraConfig(num_experts=4, r=4).num_experts == 4
    assert undrift.Same(experts=4, rank=4).config.rank == 4
    assert len(COLOURS) == 4
