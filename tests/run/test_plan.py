"""The plan of a training: its rule for epochs, its numbers, its warnings, a dry run of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.run.own import LAYER, TRAIN, write_rows
from undrift.data.benchmarks.folder import OwnTask
from undrift.errors import ConfigError, DataError, RunDirError
from undrift.methods.shared.budget import short_number
from undrift.registry import METHODS
from undrift.run.backbone import Backbone
from undrift.run.config import LEAST_STEPS, TrainConfig, resolve
from undrift.run.learn import Learn, settings_file, start_from
from undrift.run.load_model import outline
from undrift.run.plan import (
    FirstSteps,
    TaskPlan,
    has_bfloat16_units,
    size_expected,
    size_of,
    tell_lesson,
)
from undrift.run.progress import Progress
from undrift.run.session import Session, make_method
from undrift.run.trainer import training_settings
from undrift.rundir import read_json, read_lines


class Heard(Progress):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, kind: str, text: str, **values: Any) -> None:
        self.events.append((kind, text, values))

    def texts(self, kind: str) -> list[str]:
        return [text for each, text, _ in self.events if each == kind]


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else b""
        for p in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "steps"),
    [(1, 16, 100, 100), (27, 16, 50, 100), (54, 16, 25, 100), (450, 16, 4, 116), (1600, 16, 1, 100),
     (16000, 16, 1, 1000), (30, 64, 100, 100)],
)  # fmt: skip
def test_auto_gives_as_many_whole_epochs_as_make_the_steps(examples, batch, epochs, steps):
    config = TrainConfig(epochs="auto", batch_size=batch)
    assert (config.passes(examples), config.steps(examples)) == (epochs, steps)
    assert steps >= LEAST_STEPS or epochs == 1


def test_a_run_has_one_epoch_and_learn_has_the_rule(backbone_folder):
    assert resolve({"benchmark": "tiny"}).train.epochs == 1.0
    assert start_from(str(backbone_folder)).config.train.epochs == "auto"
    given = start_from(str(backbone_folder), {"train": {"epochs": 3}})
    assert given.config.train.epochs == 3
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        resolve({"benchmark": "tiny", "train": {"epochs": "always"}})


@pytest.fixture
def auto(monkeypatch):
    rest = {key: value for key, value in TRAIN.items() if key != "max_steps"}
    monkeypatch.setitem(LAYER, "train", rest)


def test_the_steps_that_are_planned_are_those_that_are_made(lesson, tmp_path, auto):
    heard = Heard()
    made = lesson("colours", progress=heard)
    made.go()
    plan = read_json(tmp_path / "colours/manifest.json")["plan"]
    assert (plan["steps"], plan["epochs"], plan["examples"]) == (100, 50, 8)
    assert read_lines(tmp_path / "colours/train.jsonl")[-1]["step"] == 100
    said = heard.texts("plan")
    assert said[0].startswith("plan: colours, learned with same on")
    assert "8 examples with 8 pictures; 4 questions in" in said[1]
    assert "  100 steps of 4 examples, 50 epochs; learning rate 0.01" in said
    assert any(
        "epochs: 50, so that there are at least 100 steps; set train.epochs" in s for s in said
    )
    (pace,) = heard.texts("pace")
    assert "s a step (5 measured): about 0:" in pace and "memory so far:" in pace
    text = yaml.safe_load((tmp_path / "colours/learn.yaml").read_text())
    assert text["run"]["train"]["epochs"] == "auto"


def test_the_next_task_has_epochs_of_its_own(lesson, data, tmp_path, auto):
    lesson("colours").go()
    rows = [json.loads(line) for line in (data / "capitals.jsonl").read_text().splitlines()]
    write_rows(data / "capitals.jsonl", rows[:4])
    made = lesson("capitals", "colours")
    assert training_settings(made.config, made.method, made.task).epochs == 100


def test_what_was_begun_before_the_rule_goes_on_as_it_was(lesson, tmp_path, monkeypatch, auto):
    monkeypatch.setitem(LAYER, "train", {**LAYER["train"], "epochs": 1})
    lesson("colours")
    monkeypatch.setitem(LAYER, "train", {k: v for k, v in LAYER["train"].items() if k != "epochs"})
    heard = Heard()
    made = lesson("colours", progress=heard)
    assert made.config.train.epochs == 1
    assert any("train.epochs=1" in text for text in heard.texts("begun"))
    monkeypatch.setitem(LAYER, "train", {**LAYER["train"], "epochs": 2})
    with pytest.raises(RunDirError, match="holds another run"):
        lesson("colours")


@pytest.mark.parametrize("name", [n for n in METHODS.names() if n not in ("zeroshot", "joint")])
@pytest.mark.slow
def test_parameters_are_counted_without_weights(name, backbone_folder):
    options = {"experts": 2, "rank": 2}
    config = resolve({"benchmark": "tiny", "method": {"name": name, **options}})
    backbone = Backbone.load(str(backbone_folder))
    shell = outline(str(backbone_folder))
    expected = size_expected(config, make_method(name, options), shell, 4, 1)
    base = sum(p.numel() for p in backbone.model.parameters())
    session = Session.open(config, make_method(name, options), backbone, Progress())
    measured = size_of(session.model, base)
    assert expected.parameters == measured.parameters
    if name == "llava_cmoe":  # which grows where it has to: counted as if it had to everywhere
        assert expected.trained >= measured.trained
    else:
        assert expected.trained == measured.trained
    assert abs((expected.weights or 0) - (measured.weights or 0)) <= 0.2 * (measured.weights or 0)


@pytest.mark.parametrize(
    ("line", "has"),
    [("flags\t\t: fpu avx512f avx512_bf16 vaes", True), ("flags\t\t: fpu avx512f avx2", False),
     ("Features\t: fp asimd bf16", True), ("model name\t: avx512_bf16", False)],
)  # fmt: skip
def test_units_for_bfloat16_are_those_that_linux_tells(line, has, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert has_bfloat16_units(tmp_path / "cpuinfo") is has
    assert not has_bfloat16_units(tmp_path / "missing")


def test_bfloat16_is_named_where_it_pays(backbone_folder, lesson, monkeypatch):
    monkeypatch.setattr("undrift.run.plan.has_bfloat16_units", lambda: True)
    full, half = (Backbone.load(str(backbone_folder), dtype=d).model for d in ("auto", "bfloat16"))
    assert not size_of(full, 10**6).hints  # too small to gain from it
    assert not size_of(half, 10**8).hints
    size, made, heard = size_of(full, 10**8), lesson("colours"), Heard()
    (hint,) = size.hints
    assert "--set dtype=bfloat16" in hint
    tell_lesson(heard, plan_of(made), made.config, size, questions="")
    assert hint in heard.texts("plan")
    monkeypatch.setattr("undrift.run.plan.has_bfloat16_units", lambda: False)
    assert not size_of(full, 10**8).hints


def plan_of(lesson_: Learn, **changes: Any) -> TaskPlan:
    settings = training_settings(lesson_.config, lesson_.method, lesson_.task)
    plan = TaskPlan.of(lesson_.config, lesson_.method, lesson_.task, settings)
    return replace(plan, **changes)


def test_each_warning_says_what_to_do(lesson, data, auto):
    rows = [json.loads(line) for line in (data / "colours.jsonl").read_text().splitlines()]
    write_rows(data / "colours.jsonl", [{**row, "answer": "red"} for row in rows])
    plan = plan_of(lesson("colours"))
    same, few = plan.warnings(test_file=True)
    assert same == (
        "all 8 training answers of colours are 'red', so nothing else can be learned: add examples "
        "with other answers"
    )
    assert "asked 4 questions, and one is worth 25.0 points" in few and "the test file" in few
    good = {"one_answer": None, "questions": 30}
    assert replace(plan, **good).warnings(test_file=True) == []
    assert "--held-out 0.3" in replace(plan, questions=29).warnings(test_file=False)[1]
    (steps,) = replace(plan, **good, steps=49).warnings(test_file=True)
    assert "gets 49 steps, and fewer than 50" in steps and "--set train.epochs=auto" in steps
    (steps,) = replace(plan, **good, steps=49, epochs=None).warnings(test_file=True)
    assert "--set train.max_steps=50" in steps
    assert replace(plan, **good, steps=50).warnings(test_file=True) == []


def test_warnings_are_told(lesson):
    heard = Heard()
    lesson("colours", progress=heard).go()  # three steps, four questions
    warned = [text for text in heard.texts("plan") if text.startswith("warning: ")]
    assert len(warned) == 2 and "gets 3 steps" in warned[0]


def test_a_hold_out_says_how_many(lesson):
    heard = Heard()
    lesson("colours", tested=False, held_out=0.25, progress=heard, dry=True).tell_plan()
    assert any("2 questions held out of 8 (--held-out 0.25)" in t for t in heard.texts("plan"))


def test_a_dry_lesson_writes_nothing_and_plans_the_same(lesson, tmp_path, data):
    lesson("colours").go()
    before = tree(tmp_path)
    guard = data / "golden.jsonl"
    guard.write_text((data / "colours-test.jsonl").read_text())
    before = tree(tmp_path)
    heard = Heard()
    planned = lesson("capitals", "colours", guards=(guard,), progress=heard, dry=True)
    plan = planned.tell_plan()
    assert tree(tmp_path) == before
    text = " ".join(heard.texts("plan"))
    assert "colours (4 questions), the guard golden (4 questions)" in text
    real = lesson("capitals", "colours", guards=(guard,))
    assert real._text == planned._text
    real.go()
    kept = read_json(tmp_path / "capitals/manifest.json")["plan"]
    assert {k: v for k, v in kept.items() if k != "weights"} == {
        k: v for k, v in plan.items() if k != "weights"
    }
    assert kept["weights"] == pytest.approx(plan["weights"], rel=0.1)


def test_a_dry_lesson_is_refused_what_the_real_one_is(lesson, data, tmp_path, backbone_folder):
    lesson("colours")
    with pytest.raises(RunDirError, match="holds another run"):
        lesson("capitals", out="colours", dry=True)
    rows = [json.loads(line) for line in (data / "colours.jsonl").read_text().splitlines()]
    write_rows(data / "colours.jsonl", [{**rows[0], "answer": "mauve"}, *rows[1:]])
    before = tree(tmp_path)
    with pytest.raises(RunDirError, match="colours, train: 8 rows then, 8 now: 1 changed"):
        lesson("colours", dry=True)
    lesson("colours", dry=True, force=True)
    assert tree(tmp_path) == before
    write_rows(data / "colours.jsonl", rows)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(RunDirError, match="is not empty and holds no run"):
        lesson("capitals", out="full", dry=True)
    with pytest.raises(DataError, match="No such file"):
        lesson("colour", dry=True)
    for file in backbone_folder.glob("*"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        if file.suffix != ".safetensors":
            (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    begun = start_from(str(tmp_path / "broken"), LAYER)
    planned = Learn(begun, lesson_files(data), tmp_path / "x", dry=True)
    with pytest.raises(ConfigError, match=r"needs weights in \*\.safetensors"):
        planned.tell_plan()
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match=r"needs weights in \*\.safetensors"):
        Learn(begun, lesson_files(data), tmp_path / "x")
    assert not (tmp_path / "x").exists()  # claimed by nobody, since the model was not found


def lesson_files(data: Path):
    return OwnTask("colours", data / "colours.jsonl", data, test=data / "colours-test.jsonl")


def test_a_model_that_cannot_be_loaded_leaves_what_is_there(lesson, data, tmp_path, monkeypatch):
    lesson("colours").go()
    before = tree(tmp_path / "colours")

    def fails(*_: Any) -> None:
        raise ConfigError("cannot load the backbone")

    monkeypatch.setattr(Backbone, "load_for", fails)
    with pytest.raises(ConfigError):
        lesson("colours", replace=True)
    assert tree(tmp_path / "colours") == before


def test_the_settings_that_are_printed_are_taken_back(lesson, tmp_path, data, backbone_folder):
    planned = lesson("colours", dry=True)
    file = tmp_path / "settings.yaml"
    file.write_text(planned.settings())
    begun = start_from(str(backbone_folder), settings_file(file))
    assert begun.config == planned.start.config
    file.write_text("benchmark: pocket\n")
    with pytest.raises(ConfigError, match="has the key benchmark, which is for `undrift run`"):
        settings_file(file)


def test_a_run_tells_its_plan_and_a_dry_one_the_same(make_run, tmp_path):
    train = {"batch_size": 4, "epochs": 2, "max_steps": None}
    heard, dry = Heard(), Heard()
    before = tree(tmp_path)
    make_run("same", progress=dry, train=train, dry=True).tell_plan()
    assert tree(tmp_path) == before
    run = make_run("same", progress=heard, train=train)
    run.go()
    said = heard.texts("plan")
    budget = read_json(tmp_path / "run/manifest.json")["budget"]
    for task, cost in zip(run.tasks, budget, strict=True):
        assert any(f"{task.name}: " in t and f"{cost['steps']} steps" in t for t in said)
        assert f"{short_number(cost['trainable']).strip()} of" in said[-1]
    assert dry.texts("plan")[:-1] == said[:-1]
    assert dry.texts("plan")[-1].split(";")[0] == said[-1].split(";")[0]
    assert not any(text.startswith("warning") for text in said)  # a benchmark's are not ours
    with pytest.raises(RunDirError, match="holds another run"):
        make_run("steadylora", train=train, dry=True)


def test_a_run_claims_its_folder_when_the_model_is_found(make_run, tmp_path, monkeypatch):
    def fails(*_: Any) -> None:
        raise ConfigError("cannot load the backbone")

    monkeypatch.setattr(Backbone, "load_for", fails)
    with pytest.raises(ConfigError):
        make_run("same")
    assert not (tmp_path / "run").exists()


def test_the_first_steps_tell_the_time_once():
    heard = Heard()
    first = FirstSteps(heard, torch.device("cpu"), 0)
    for step in range(1, 20):
        first.step(step, 1000)
    ((_, text, values),) = heard.events
    assert values["seconds_left"] == pytest.approx(values["seconds_a_step"] * 994)
    assert "about 0:0" in text
    short = FirstSteps(heard, torch.device("cpu"), 0)
    for step in range(1, 7):
        short.step(step, 6)
    assert len(heard.events) == 1  # nothing is left to tell of
