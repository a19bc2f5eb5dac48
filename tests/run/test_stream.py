"""A run without boundaries: what it leaves, what it tells its method, that it goes on exactly."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest

from tests.run.test_task_loop import Stop, assert_same_numbers
from undrift.data.benchmarks.folder import OwnTask
from undrift.errors import ConfigError
from undrift.methods.base import Method
from undrift.methods.same import Same
from undrift.registry import METHODS
from undrift.report import load, summary, time_section
from undrift.report.comparison import grouped
from undrift.report.page_content import page_content
from undrift.run.batches import Dealer, share_of
from undrift.run.config import resolve
from undrift.run.learn import Learn, start_from
from undrift.run.stream import spaced_steps, stream_steps
from undrift.run.task_loop import Run
from undrift.run.trainer import StepWatch
from undrift.run.verify import verify
from undrift.rundir import read_json, read_record
from undrift.rundir.records import Stream
from undrift.rundir.study_results import run_entry
from undrift.scoring.over_time import over_time

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
STREAM = {"boundaries": "none", "stream": {"points": 3}, "train": {"max_steps": None}}
SKETCHED = {"columns": 16, "rebase_share": 0.3, "merge_share": 0.3}
ABLE = ["finetune", "moelora", "same", "steadylora"]


def changed(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder, two):
    """The folder of a stream of two tasks of 12 examples, 6 steps of 4."""
    folder = tmp_path_factory.mktemp("stream") / "run"
    small = {"benchmark": "tiny", "backbone": str(backbone_folder), "out": folder}
    train = {"batch_size": 4, "learning_rate": 0.01}
    method = {"name": "same", "experts": 2, "rank": 2, **SKETCHED}
    Run(resolve(small, STREAM, {"train": train, "method": method}), benchmark=two).go()
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "made")


def test_what_a_stream_leaves(run, two):
    kept = read_record(run / "stream.json", Stream)
    assert kept["tasks"] == ["lower", "upper"] and kept["steps"] == 6
    assert [each["step"] for each in kept["points"]] == [2, 4, 6]
    rows = [each["scores"] for each in kept["points"]]
    assert None not in [score for row in rows[1:] for score in row]
    assert rows[-1] == read_json(run / "matrix.json")["matrix"][0]
    assert kept["metrics"] == over_time(rows)
    assert [each["step"] for each in kept["mix"]] == [1, 2, 3, 4, 5, 6]
    used = [4 * share for each in kept["mix"] for share in each["shares"]]
    assert sum(used[::2]) == sum(used[1::2]) == 12  # each example once
    assert sorted(path.name for path in (run / "tasks").iterdir()) == ["01-stream"]
    assert {path.parent.name for path in (run / "stream").rglob("*.jsonl")} == {
        "at-00002",
        "at-00004",
    }
    text = (run / "run.yaml").read_text()
    assert "boundaries: none" in text and "merge_share: 0.3" in text
    assert read_json(run / "manifest.json")["protocol"]["boundaries"] == "none"


def test_a_stream_is_told_in_tables_and_drawn(run):
    results = load(run)
    table = time_section(grouped([results]))
    assert [row[0] for row in table.rows][:3] == ["step 2", "step 4", "step 6"]
    content = page_content([results])
    assert "below its best point, on average" in content.verdict
    assert "stream-1" in [figure.stem for figure in content.figures]
    assert table.title in [section.title for section in content.tables]
    (told,) = summary([results])["methods"].values()
    assert told["stream"]["metrics"] == results.files.stream["metrics"]
    entry = run_entry(run, "same", None, {}, "undrift run", True)
    rounded = [round(p["scores"][0], 4) for p in results.files.stream["points"]]
    assert [p["scores"][0] for p in entry["stream"]["points"]] == rounded
    assert entry["stream"]["metrics"]["anytime"] == round(told["stream"]["metrics"]["anytime"], 4)


def test_a_method_is_told_no_task_and_no_end_of_one(make_run, monkeypatch):
    told = []
    for name in ("task_start", "task_end"):
        before = getattr(Same, name)

        def noted(self, *given, before=before, name=name):
            told.append((name, *given[1:]))
            return before(self, *given)

        monkeypatch.setattr(Same, name, noted)
    asked, predicting = set(), Method.predicting

    @contextmanager
    def watched(self, model, task=None):
        asked.add(task)
        with predicting(self, model, task=task):
            yield

    monkeypatch.setattr(Method, "predicting", watched)
    make_run("same", **STREAM, profile={"name": "lite"}).go()
    assert told == [("task_start", 1, 3), ("task_end",)]  # the whole stream, of half the examples
    assert asked == {None}


def test_what_is_trained_on_is_the_stream_in_its_order(make_run, monkeypatch):
    learned = []
    monkeypatch.setattr(StepWatch, "see", lambda self, loss, ids: learned.extend(ids))
    made = make_run("finetune", **STREAM, profile={"name": "lite"})
    made.go()
    stream = made.stream.stream
    assert learned == [stream.task.train[place].id for place in stream.order]
    assert len(learned) == 12 == len({*learned})


@pytest.mark.parametrize("method", ["same", "steadylora"])
def test_a_history_is_merged_on_the_way_by_itself(make_run, tmp_path, method):
    make_run(method, **STREAM, profile={"name": "lite"}).go()
    kept = read_json(tmp_path / "run" / "manifest.json")
    assert kept["settings"]["merge_share"] == 0.05


@pytest.mark.parametrize("method", ["same", pytest.param("finetune", marks=pytest.mark.slow)])
def test_stopped_anywhere_a_stream_goes_on_exactly(make_run, tmp_path, method):
    """Snapshots lie inside windows, which end at steps 4, 8 and 12."""
    layers = {**STREAM, "profile": {"name": "full", "cells": "ends"}, "eval": {"batch_size": 2}}
    layers["stream"] = {"points": 2}
    layers["train"] = {"max_steps": None, "epochs": 2, "checkpoint_steps": 3}
    layers["method"] = SKETCHED if method == "same" else {}
    make_run(method, "straight", **layers).go()
    stops = 0
    for after in (5, 7, 14, 500):  # at a step, inside a point, between the point and the end
        try:
            make_run(method, "stopped", progress=Stop(after), **layers).go()
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    assert_same_numbers(tmp_path / "straight", tmp_path / "stopped")
    one, other = (read_json(tmp_path / name / "stream.json") for name in ("straight", "stopped"))
    assert one == other
    assert not list(tmp_path.rglob("checkpoint-*")) and not list(tmp_path.rglob("*.part"))


def test_being_asked_on_the_way_changes_nothing(make_run, tmp_path):
    for name, points in (("often", 6), ("once", 1)):
        make_run("same", name, **{**STREAM, "stream": {"points": points}}, method=SKETCHED).go()
    weights = "tasks/01-stream/adapter/adapter_model.safetensors"
    often, once = ((tmp_path / name / weights).read_bytes() for name in ("often", "once"))
    assert often == once


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_is_dealt_in_its_order_to_any_number_of_processes(processes):
    share = share_of(2, 2, processes)
    dealers = [Dealer(4, share, rank, processes, 0, [3, 1, 1, 0, 2]) for rank in range(processes)]
    for dealer in dealers:
        dealer.set_epoch(1)  # there is one order only
        steps = [[*batch[0].step.examples] for batch in dealer]
        assert steps == [[3, 1], [1, 0], [2]] and len(dealer) == 3
    dealt = zip(*dealers, strict=True)
    used = [[p.example for own in step for p in own if not p.idle] for step in dealt]
    assert used == [[3, 1], [1, 0], [2]]


def test_which_methods_can():
    assert [name for name in METHODS.names() if METHODS.load(name).streams] == ABLE


@pytest.mark.parametrize("method", ["disco", "sefe", "ewc", "joint", "clmoe"])
def test_methods_that_need_boundaries_are_refused_in_a_line(make_run, tmp_path, method):
    with pytest.raises(ConfigError, match="take finetune, moelora, same or steadylora") as refused:
        make_run(method, **STREAM)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_routes_of_earlier_tasks_cannot_be_watched(make_run):
    with pytest.raises(ConfigError, match="a stream has none"):
        make_run("same", **STREAM, watch_routes=5)


@pytest.mark.parametrize(
    ("train", "steps"),
    [({}, 6), ({"epochs": 2}, 12), ({"max_steps": 2}, 4), ({"max_steps": 50}, 6)],
)
def test_steps_are_those_of_epochs_and_max_steps_a_task_makes_fewer(make_run, train, steps):
    made = make_run("finetune", **{**STREAM, "train": {"max_steps": None, **train}})
    assert made.stream.steps == steps
    assert stream_steps(made.config.train, [12, 12]) == steps


def test_points_are_spaced_evenly_and_never_twice():
    assert spaced_steps(100, 4) == [25, 50, 75, 100]
    assert spaced_steps(3, 10) == [1, 2, 3]


def test_a_run_with_boundaries_says_nothing_of_streams(make_run):
    assert "boundaries" not in make_run().config.text()
    assert "stream" not in make_run().config.text()


def test_a_lesson_after_a_stream_is_one_task_with_boundaries(run, data, tmp_path):
    assert not start_from(str(run)).config.is_stream
    own = OwnTask("colours", data / "colours.jsonl", data)
    with pytest.raises(ConfigError, match="boundaries=none is for `undrift run`"):
        Learn(start_from(str(run), {"boundaries": "none"}), own, tmp_path / "lesson")


FAULTS = {
    "score": (lambda v: v["points"][0]["scores"].__setitem__(0, 99.0), "step 2, lower is 99"),
    "metric": (lambda v: v["metrics"].update(anytime=1.0), "anytime is 1"),
    "steps": (lambda v: v["points"].pop(0), "the steps of its points"),
    "tasks": (lambda v: v["tasks"].reverse(), "tasks is"),
    "damaged": (lambda v: v["mix"][0]["shares"].pop(), "expected a value for every task"),
}


def test_verify_knows_a_stream(run):
    assert verify(run).matches
    (run / "SHA256SUMS").unlink()
    sound = (run / "stream.json").read_text()
    for change, said in FAULTS.values():
        changed(run / "stream.json", change)
        assert any(said in line for line in verify(run).wrong), said
        (run / "stream.json").write_text(sound)
    (run / "stream" / "at-00002" / "on-03.jsonl").write_text("{}\n")
    assert any("belongs to no cell" in line for line in verify(run).wrong)
    (run / "stream.json").unlink()
    assert any("stream.json: is missing" in line for line in verify(run).wrong)
