"""What a run says about the cost of its method, and runs that meet a budget."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.run.test_task_loop import Stop
from undrift.errors import ConfigError
from undrift.methods.shared.budget import expected
from undrift.run.adapters import open_adapter
from undrift.run.config import resolve
from undrift.run.progress import Progress
from undrift.run.task_loop import Run
from undrift.rundir import read_json
from undrift.tuner.frozen import count_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


class Told(Progress):
    def __init__(self):
        self.events = []

    def event(self, kind, text, **values):
        self.events.append((kind, text, values))


def test_the_cost_of_every_task_is_told_and_kept(make_run, tmp_path, backbone):
    told = Told()
    run = make_run("same", progress=told)
    run.go()
    kept = read_json(tmp_path / "run" / "manifest.json")
    assert kept["match_budget"] == "none"
    assert [row.pop("task") for row in kept["budget"]] == ["lower", "upper"]
    plan = asdict(expected(run.method, backbone.model, 2))
    for row in kept["budget"]:
        files = row.pop("state_bytes")
        assert row.pop("steps") == 3 and row.pop("seconds") > 0 and row.pop("cpu_seconds") > 0
        assert row.pop("tokens") > 0 and row.pop("peak_bytes") != 0 and row.pop("resting") is None
        assert plan["state_bytes"] < files < plan["state_bytes"] + 30_000  # names and settings
        assert row == {key: plan[key] for key in row} and row["stored"] > 0
    said = [values for kind, _, values in told.events if kind == "budget"]
    assert [(v["index"], v["task"]) for v in said] == [(1, "lower"), (2, "upper")]
    assert said[1]["stored"] == plan["stored"]


def test_a_run_that_goes_on_keeps_what_it_knew(make_run, tmp_path):
    make_run("finetune").go()
    before = read_json(tmp_path / "run" / "manifest.json")["budget"]
    (tmp_path / "run" / "matrix.json").unlink()
    make_run("finetune").go()
    assert read_json(tmp_path / "run" / "manifest.json")["budget"] == before


def test_a_matched_run_has_the_rank_that_it_names(make_run, tmp_path, backbone):
    told = Told()
    large = {"name": "moelora", "experts": 2, "rank": 9, "top_k": 1}
    run = make_run(method=large, match_budget="active", progress=told)
    assert "match_budget: active" in (tmp_path / "run" / "run.yaml").read_text()
    run.go()
    kept = read_json(tmp_path / "run" / "manifest.json")
    rank = kept["settings"]["rank"]
    assert kept["match_budget"] == "active" and rank > 9
    assert ("matched", {"rank": rank, "budget": "active"}) in [(k, v) for k, _, v in told.events]
    before = count_parameters(backbone.model)
    learned = open_adapter(tmp_path / "run", backbone)
    assert learned.method.config.rank == rank
    assert count_parameters(learned.model) - before == kept["budget"][-1]["stored"]
    make_run(method=large, match_budget="active").go()  # the same run, which is done


def test_a_matched_run_that_was_stopped_keeps_its_rank(backbone_folder, two, tmp_path):
    asked = {
        "benchmark": "tiny",
        "method": {"name": "moelora", "experts": 2, "top_k": 1},  # the rank is the usual one, 8
        "match_budget": "active",
        "backbone": str(backbone_folder),
        "out": tmp_path / "run",
        "train": {"batch_size": 4, "max_steps": 3, "log_steps": 2},
    }
    with pytest.raises(KeyboardInterrupt):
        Run(resolve(asked), Stop(4), benchmark=two).go()
    rank = read_json(tmp_path / "run/manifest.json")["settings"]["rank"]
    Run(resolve(asked), benchmark=two).go()
    assert read_json(tmp_path / "run/manifest.json")["settings"]["rank"] == rank > 8


def test_what_cannot_be_met_stops_the_run(make_run):
    with pytest.raises(ConfigError, match="trains nothing"):
        make_run("zeroshot", match_budget="state").go()
    with pytest.raises(ConfigError, match="match_budget"):
        make_run(match_budget="half")
