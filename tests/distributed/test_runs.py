"""`undrift run` on several processes: the run of one, for every method and every division."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.forked import Failed, forked
from tests.distributed.test_two_processes import projector
from tests.run.tiny import save_tiny, tiny_benchmark
from undrift.registry import METHODS
from undrift.run import trainer
from undrift.run.config import resolve
from undrift.run.ranks import joined
from undrift.run.task_loop import Run
from undrift.rundir import read_json, read_lines

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
EXAMPLES = 9  # four a step: one is left for the last, and a second process has none


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny backbone and a tiny benchmark."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny(folder / "backbone")
    made = tiny_benchmark(folder / "data")
    tasks = tuple(replace(task, train=task.train[:EXAMPLES]) for task in made.tasks[:2])
    return folder, replace(made, tasks=tasks, orders={})


def learn(place, out: Path, processes: int, method: str = "same", **train: object) -> Path:
    """Make a run, or go on with it."""
    folder, benchmark = place
    rates = {"batch_size": 4, "epochs": 2, "learning_rate": 0.01, "log_steps": 2}
    config = resolve(
        {
            "benchmark": "tiny",
            "method": {"name": method, "experts": 2, "rank": 2},
            "backbone": str(folder / "backbone"),
            "out": out,
            "train": rates | train,
            "eval": {"batch_size": 4},
        }
    )

    def work() -> None:
        os.environ["UNDRIFT_CACHE"] = str(out.parent / "cache")
        with joined():
            Run(config, benchmark=benchmark).go()

    forked(processes, out.parent / f"{out.name}.meeting", work)
    return out


def assert_same_run(found: Path, one: Path, tolerance: float = 1e-4) -> None:
    """The adapters differ by rounding alone, the answers not at all."""
    files = sorted(path.relative_to(one) for path in one.rglob("adapter/*.safetensors"))
    assert files
    for file in files:
        want, got = load_file(one / file), load_file(found / file)
        assert want.keys() == got.keys()
        for key, value in want.items():
            a, b = value.double(), got[key].double()
            if key.endswith("history_V"):  # eigenvectors: single ones have no sign
                a, b = projector(want, key), projector(got, key)
            # in the norm: Adam's first steps of an entry have the rate's length even where the
            # gradient is nothing but rounding
            error, size = float((a - b).norm()), float(a.norm())
            assert error <= tolerance * max(size, 1e-3), f"{file} {key}: {error:.2e} of {size:.2e}"
    assert_same_answers(found, one)


def assert_same_answers(found: Path, one: Path) -> None:
    """Answers, matrix and counts are the same, and nothing half done is left."""
    answers = sorted(path.relative_to(one) for path in one.rglob("on-*.jsonl"))
    assert answers == sorted(path.relative_to(found) for path in found.rglob("on-*.jsonl"))
    for file in answers:
        assert read_lines(found / file) == read_lines(one / file)
    assert read_json(found / "matrix.json") == read_json(one / "matrix.json")
    counted = [
        [(task["steps"], task["tokens"]) for task in read_json(run / "manifest.json")["budget"]]
        for run in (found, one)
    ]
    assert counted[0] == counted[1]
    assert not [*found.rglob("*.writing"), *found.rglob("*.part")]


@pytest.mark.parametrize("method", METHODS.names())
def test_two_processes_make_the_run_of_one(place, tmp_path, method):
    one = learn(place, tmp_path / "one", 1, method)
    two = learn(place, tmp_path / "two", 2, method)
    if method == "zeroshot":
        assert read_json(two / "matrix.json") == read_json(one / "matrix.json")
    else:
        assert_same_run(two, one, 1e-3 if method == "sefe" else 1e-4)


@pytest.mark.parametrize(
    ("processes", "train"),
    [
        (1, {"batch_size": 2, "global_batch": 4}),
        (1, {"batch_size": 1, "accumulation": 4}),
        (1, {"batch_size": 3, "global_batch": 4}),
        (2, {"batch_size": 1, "global_batch": 4}),
        (4, {"batch_size": 4, "global_batch": 4}),
    ],
)
def test_a_step_is_the_same_however_it_is_divided(place, tmp_path, processes, train):
    whole = learn(place, tmp_path / "whole", 1)
    assert_same_run(learn(place, tmp_path / "divided", processes, **train), whole)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_other_processes(place, tmp_path, monkeypatch, before, after):
    whole = learn(place, tmp_path / "whole", 1, checkpoint_steps=2)

    begun = trainer.StepWatch.on_step_begin

    def killed(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5 and (tmp_path / "stopped/tasks/01-lower/DONE").is_file():
            os._exit(9)
        begun(self, args, state, control, model=model, **kwargs)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched, pytest.raises(Failed, match="exit codes"):
        patched.setattr(trainer.StepWatch, "on_step_begin", killed)
        learn(place, stopped, before, checkpoint_steps=2)
    assert (stopped / "tasks/01-lower/DONE").is_file()
    assert not (stopped / "tasks/02-upper/adapter").exists()
    assert_same_run(learn(place, stopped, after, checkpoint_steps=2), whole)


def test_what_is_not_shareable_is_refused_with_the_nearest(place, tmp_path, capfd):
    with pytest.raises(Failed, match="exit codes"):
        learn(place, tmp_path / "run", 2, global_batch=5)
    assert "2 processes cannot share equally; take 4 or 6" in capfd.readouterr().err
