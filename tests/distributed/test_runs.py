"""`undrift run` on several processes: the run of one, for every method and every division."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from statistics import fmean, stdev

import pytest
from safetensors.torch import load_file

from tests.distributed.forked import Failed
from tests.distributed.runs import (
    Place,
    assert_close,
    assert_same_counts,
    assert_same_run,
    losses,
    other_answers,
    pairs,
)
from tests.precision import TRAINED, rounding
from undrift.registry import METHODS
from undrift.run import trainer

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
TRAJECTORY = Path(__file__).with_name("trajectory.json")
DIVISIONS = [
    (1, {"batch_size": 2, "global_batch": 4}),
    (1, {"batch_size": 1, "accumulation": 4}),
    (1, {"batch_size": 3, "global_batch": 4}),
    (2, {}),
    (2, {"batch_size": 1, "global_batch": 4}),
    (4, {"batch_size": 4, "global_batch": 4}),
]
"""Processes and settings of a step of four examples."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place.made(tmp_path_factory.mktemp("runs"))


def trajectory(precision):
    """What each step of the run has lost, as one process found it once."""
    return json.loads(TRAJECTORY.read_text(encoding="utf-8"))[precision]


def settings(processes, train):
    """A division of a step, whatever the number of processes."""
    return train or {"batch_size": 4 // processes, "global_batch": 4}


@pytest.mark.parametrize("method", METHODS.names())
def test_two_processes_make_the_run_of_one(place, tmp_path, method):
    one = place.run(tmp_path / "one", 1, method)
    assert_same_run(place.run(tmp_path / "two", 2, method, global_batch=4), one)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The run of one process that takes a step at once, in float64 and float32."""
    folder = tmp_path_factory.mktemp("whole")
    exact, single = folder / "exact", folder / "single"
    return place.run(exact, 1), place.run(single, 1, exact=False)


@pytest.mark.parametrize(("processes", "train"), DIVISIONS)
def test_a_step_is_the_same_however_it_is_divided(place, whole, tmp_path, processes, train):
    made = place.run(tmp_path / "divided", processes, **settings(processes, train))
    assert_same_run(made, whole[0])
    assert losses(made) == pytest.approx(trajectory("float64"), rel=1e-9)


def test_in_float32_no_division_leans_to_one_side(place, whole, tmp_path, capsys):
    first, residuals, differ = losses(whole[1]), [], 0
    for number, (processes, train) in enumerate(DIVISIONS):
        out = tmp_path / str(number)
        made = place.run(out, processes, exact=False, **settings(processes, train))
        for file in sorted(path.relative_to(made) for path in made.rglob("adapter/*.safetensors")):
            found, one = load_file(made / file), load_file(whole[1] / file)
            assert_close(found, one, 1e-4)
            assert_same_history(found, one, 1e-6)
        assert_same_counts(made, whole[1])
        differ += other_answers(place, made, whole[1], gap=1e-5)
        assert losses(made) == pytest.approx(trajectory("float32"), rel=rounding(TRAINED))
        residuals += [(x - y) / y for x, y in zip(losses(made), first, strict=True)]
    with capsys.disabled():
        print(f"\n{differ} answers of {len(DIVISIONS)} runs hang on rounding and differ")
    # the runs share the first one's rounding: their steps are independent, they are not
    assert abs(fmean(residuals)) <= 4 * stdev(residuals) / len(first) ** 0.5


def assert_same_history(found, one, tolerance):
    """What `same` knows of the past, relative to all that the linear has seen; who rests."""
    for key, a, b in pairs(found, one):
        linear, _, what = key.rpartition(".")
        if what == "active":
            assert bool((a == b).all()), f"{linear}: other experts rest"
        elif what.startswith("history") or what == "importance":
            size = b.norm() if what == "importance" else one[f"{linear}.history_trace"]
            assert float((a - b).norm()) <= tolerance * float(size), key


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_other_processes(place, tmp_path, monkeypatch, before, after):
    kept = {"checkpoint_steps": 2, "global_batch": 4}
    whole = place.run(tmp_path / "whole", 1, **kept)

    begun = trainer.StepWatch.on_step_begin

    def killed(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5 and (tmp_path / "stopped/tasks/01-lower/DONE").is_file():
            os._exit(9)
        begun(self, args, state, control, model=model, **kwargs)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched, pytest.raises(Failed, match="exit codes"):
        patched.setattr(trainer.StepWatch, "on_step_begin", killed)
        place.run(stopped, before, **kept)
    assert (stopped / "tasks/01-lower/DONE").is_file()
    assert not (stopped / "tasks/02-upper/adapter").exists()
    assert_same_run(place.run(stopped, after, **kept), whole)


def test_what_is_not_shareable_is_refused_with_the_nearest(place, tmp_path, capfd):
    with pytest.raises(Failed, match="exit codes"):
        place.run(tmp_path / "run", 2, global_batch=5)
    assert "2 processes cannot share equally; take 4 or 6" in capfd.readouterr().err


def test_what_is_not_finite_in_one_process_stops_all(place, tmp_path, monkeypatch, capfd):
    seen = trainer.StepWatch.see

    def spoilt(self, loss, ids):
        seen(self, loss * math.nan if os.environ["RANK"] == "1" and self._step == 3 else loss, ids)

    monkeypatch.setattr(trainer.StepWatch, "see", spoilt)
    with pytest.raises(Failed, match="exit codes"):
        place.run(tmp_path / "run", 2, global_batch=4)
    said = [
        line
        for line in capfd.readouterr().err.splitlines()
        if line.startswith("undrift.errors.Training")
    ]
    assert said and all("the loss is nan at step 3, on the batch of" in line for line in said)
    assert not (tmp_path / "run/tasks/01-lower/adapter").exists()
