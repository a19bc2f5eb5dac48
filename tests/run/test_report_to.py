"""Metrics that are told while a task is learned, and that telling them decides nothing."""

from __future__ import annotations

import random
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tests.run.test_task_loop import assert_same_numbers
from tests.run.test_training_cost import StopLearning
from undrift.errors import ConfigError, MissingExtra, UnknownName
from undrift.run.report_to import Reporters
from undrift.rundir import read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


class Noted(TrainerCallback):
    """A reporter that draws random numbers wherever it can, and notes what it is told."""

    heard: ClassVar[list[tuple]] = []

    def __init__(self):
        self.disturb()

    def disturb(self):
        random.random()
        np.random.rand()
        torch.rand(3)

    def on_train_begin(self, args, state, control, **_):
        self.disturb()
        self.heard.append(("begin", args.run_name, args.project))

    def on_log(self, args, state, control, logs, **_):
        self.disturb()
        self.heard.append(("log", state.global_step, dict(logs)))

    def on_train_end(self, args, state, control, **_):
        self.disturb()
        self.heard.append(("end", state.global_step))


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "noted", Noted)
    monkeypatch.setattr(Noted, "heard", [])
    return Noted


def test_a_reporter_hears_the_losses_and_then_the_scores(make_run, noted):
    result = make_run(report_to="noted").go()
    kinds = [event[0] for event in noted.heard]
    assert kinds == 2 * ["begin", "log", "log", "log", "log", "end"]
    assert [event[1:] for event in noted.heard if event[0] == "begin"] == [
        ("run/01-lower", "undrift"),
        ("run/02-upper", "undrift"),
    ]
    logs = [event[1:] for event in noted.heard if event[0] == "log"]
    assert [step for step, _ in logs[:4]] == [2, 3, 3, 3]  # losses, the whole training, scores
    assert {"loss", "learning_rate", "grad_norm"} <= logs[0][1].keys()
    for row, (_, scores) in zip(result["matrix"], (logs[3], logs[7]), strict=True):
        assert scores == {"test_lower": row[0], "test_upper": row[1]}


def test_random_numbers_stay_where_they_were(noted, tmp_path):
    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))

    def seed():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = drawn()
    state = SimpleNamespace(global_step=1)
    seed()
    with Reporters(["noted"], tmp_path / "run" / "live" / "01-a") as reporters:
        reporters.on_train_begin(SimpleNamespace(), state, None)
        reporters.on_log(None, state, None, logs={"loss": 1.0})
        reporters.scores({"a": 50.0})
    assert [event[0] for event in noted.heard] == ["begin", "log", "log", "end"]
    assert drawn() == expected


def test_what_reporters_do_decides_no_number(make_run, noted, tmp_path):
    train = {"max_steps": 4}
    make_run("same", "without", train=train).go()
    make_run("same", "with", train=train, report_to=["noted"]).go()
    assert noted.heard
    assert_same_numbers(tmp_path / "without", tmp_path / "with")
    assert (tmp_path / "without/run.yaml").read_text() == (tmp_path / "with/run.yaml").read_text()


def test_a_training_that_fails_ends_what_it_has_begun(make_run, noted):
    with pytest.raises(KeyboardInterrupt):
        four = {"train": {"max_steps": 4}}
        make_run(report_to="noted", progress=StopLearning("lower", 3), **four).go()
    assert [event[0] for event in noted.heard] == ["begin", "log", "end"]


def test_tensorboard_has_a_folder_a_task(make_run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = make_run(report_to="tensorboard").go()
    for index, name in enumerate(("lower", "upper"), 1):
        folder = tmp_path / "run" / "live" / f"{index:02d}-{name}"
        found = EventAccumulator(str(folder)).Reload()

        def scalars(tag, found=found):
            return [(event.step, event.value) for event in found.Scalars(tag)]

        log = read_lines(tmp_path / "run" / "tasks" / folder.name / "train.jsonl")
        for key in ("loss", "learning_rate", "grad_norm"):
            assert scalars(f"train/{key}") == [
                (row["step"], pytest.approx(row[key])) for row in log
            ]
        score = result["matrix"][index - 1][0]
        assert scalars("test/lower") == [(3, pytest.approx(score))]


def test_tensorboards_own_folder_is_respected(make_run, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    make_run(report_to="tensorboard", profile="lite", train={"max_steps": 1}).go()
    tasks = sorted(path.name for path in (tmp_path / "mine" / "run").iterdir())
    assert tasks == ["01-lower", "02-upper"] and not (tmp_path / "run" / "live").exists()


def test_a_run_of_wandb_is_finished_but_never_the_users(monkeypatch, tmp_path):
    module = ModuleType("wandb")
    module.finished = 0

    class Wandb(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            module.run = object()

    def finish():
        module.finished += 1
        module.run = None

    module.run, module.finish = None, finish
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Wandb)

    def learn_a_task():
        with Reporters(["wandb"], tmp_path / "run" / "live" / "01-a") as reporters:
            reporters.on_train_begin(SimpleNamespace(), SimpleNamespace(), SimpleNamespace())

    learn_a_task()
    learn_a_task()
    assert module.finished == 2
    module.run = object()  # the user's own
    learn_a_task()
    assert module.finished == 2


def test_a_reporter_that_cannot_be_used_is_told_before_anything_is_done(
    make_run, tmp_path, monkeypatch
):
    with pytest.raises(UnknownName, match="reporter 'tensorbord'; did you mean 'tensorboard'"):
        make_run(report_to="tensorbord")

    def missing():
        raise RuntimeError("TrackioCallback requires trackio to be installed.")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", missing)
    with pytest.raises(MissingExtra, match=r"cannot report to 'trackio'.*pip install trackio"):
        make_run(report_to=["trackio"])
    with pytest.raises(ConfigError, match="report_to"):
        make_run(report_to=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("none", ()),
        ([], ()),
        ("a, b,a", ("a", "b")),
        (["a", "b,c"], ("a", "b", "c")),
    ],
)
def test_names_come_one_by_one_or_with_commas(given, names):
    from undrift.run.config import resolve

    assert resolve({"benchmark": "pocket", "report_to": given}).report_to == names
