"""What a run leaves behind, and that it is the same whenever and however often it is stopped."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from tests.run.tiny import tiny_benchmark
from tests.sweeps import METHODS_OF_EACH_MAKE, mostly_slow
from undrift.errors import ConfigError, DataError, RunDirError, TrainingDiverged, UnknownName
from undrift.methods.base import Method
from undrift.registry import METHODS
from undrift.run import answer, trainer
from undrift.run.backbone import Backbone
from undrift.run.config import Profile
from undrift.run.progress import Progress
from undrift.run.ranks import joined
from undrift.run.stopping import Stopped, request
from undrift.run.task_loop import cells_to_measure
from undrift.rundir import read_json, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


class Stop(Progress):
    """Stops the run as a kill would, when the bars have been moved so often after the features'."""

    def __init__(self, after: int) -> None:
        self.left, self.counts = after, True

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        self.counts = not title.startswith("image features")

    def advance(self, pieces: int = 1) -> None:
        self.left -= self.counts
        if not self.left:
            raise KeyboardInterrupt


def numbers(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, torch.Tensor]]]:
    """Every prediction and every tensor that a run has written."""
    said = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("on-*.jsonl")}
    said |= {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("train.jsonl")}
    tensors = {str(f.relative_to(folder)): load_file(f) for f in folder.rglob("*.safetensors")}
    return said, tensors


def assert_same_numbers(one: Path, two: Path) -> None:
    said_one, tensors_one = numbers(one)
    said_two, tensors_two = numbers(two)
    assert said_one == said_two and said_one
    assert tensors_one.keys() == tensors_two.keys() and tensors_one
    for file, tensors in tensors_one.items():
        assert tensors.keys() == tensors_two[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, tensors_two[file][name]), f"{file}: {name}"


def test_what_a_run_leaves(make_run, tmp_path, tiny):
    result = make_run(benchmark_=tiny).go()
    folder = tmp_path / "run"
    names = [task.name for task in tiny.tasks]
    assert result["tasks"] == names
    assert [[cell is not None for cell in row] for row in result["matrix"]] == [
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]
    assert all(value is not None for value in [*result["zero_shot"], *result["metrics"].values()])
    assert read_json(folder / "matrix.json") == result
    for index, name in enumerate(names, start=1):
        task = folder / "tasks" / f"{index:02d}-{name}"
        assert sorted(path.name for path in task.iterdir()) == ["DONE", "adapter", "train.jsonl"]
        assert (task / "adapter" / "adapter_model.safetensors").is_file()
    for row, cells in enumerate([(1, 2, 3), (1, 2), (1, 2, 3), (1, 2, 3)]):
        found = sorted((folder / "eval" / f"after-{row:02d}").iterdir())
        assert [path.name for path in found] == [f"on-{cell:02d}.jsonl" for cell in cells]
    lines = read_lines(folder / "eval" / "after-03" / "on-02.jsonl")
    assert [line["id"] for line in lines] == [example.id for example in tiny.tasks[1].test]
    assert set(lines[0]) == {"id", "question", "answers", "prediction", "strict", "caseless"}
    score = 100 * sum(line["strict"] for line in lines) / len(lines)
    assert result["matrix"][2][1] == pytest.approx(score, abs=1e-4)
    kept = read_json(folder / "manifest.json")
    assert kept["method"] == "moelora" and kept["settings"]["learning_rate"] == 0.01
    assert kept["data"]["fingerprint"] == "tiny-1" and len(kept["weights"]["fingerprint"]) == 64
    assert re.fullmatch("[0-9a-f]{16}", kept["weights"]["image_features"])
    assert set(kept["seconds"]) == {"load", "features", "train", "eval"}
    log = read_lines(folder / "tasks" / "01-lower" / "train.jsonl")
    assert [line["step"] for line in log] == [2, 3]


@pytest.mark.parametrize(
    "method", mostly_slow([*METHODS.names(), "same-paper"], METHODS_OF_EACH_MAKE)
)
def test_every_method_runs(make_run, method):
    result = make_run(
        method, profile={"name": "demo", "test_share": 0.5}, train={"max_steps": 3}
    ).go()
    rows = {"joint": 1, "zeroshot": 1}.get(method, 2)
    assert len(result["matrix"]) == rows
    assert None not in result["matrix"][-1] and None not in result["zero_shot"]
    assert (result["metrics"]["bwt"] is None) == (rows == 1)
    if method == "zeroshot":
        assert result["matrix"] == [result["zero_shot"]]


def test_a_run_keeps_how_often_the_task_of_a_prompt_was_identified(make_run, tmp_path):
    make_run("disco", train={"max_steps": 2}, method={"modality": "both"}).go()
    found = {f"{file.parent.name}/{file.stem}": read_json(file)
             for file in (tmp_path / "run" / "eval").rglob("*.json")}  # fmt: skip
    assert found.keys() == {"after-01/on-01", "after-02/on-01", "after-02/on-02"}  # none untaught
    assert {facts["prompts"] for facts in found.values()} == {6}
    assert all(0 <= facts["identified"] <= 100 for facts in found.values())


@pytest.mark.foreign("1.1")
@pytest.mark.parametrize("method", ["same", pytest.param("finetune", marks=pytest.mark.slow)])
def test_stopped_anywhere_it_goes_on_exactly(make_run, tmp_path, method):
    train = {"max_steps": 7, "checkpoint_steps": 3}
    options = {}
    if method == "same":
        options = {"columns": 16, "rebase_share": 0.3, "warmup_share": 0.6, "tau": 1.0}
    layers = {"train": train, "method": options, "eval": {"batch_size": 2}}
    make_run(method, "straight", **layers).go()
    # features 1, row zero 6, learning 1 + 7, row one 6, learning 1 + 7, row two 6
    stops = 0
    for after in (9, 6, 10, 7, 12, 500):  # in row zero, in task one, after it, in task two ...
        try:
            make_run(method, "stopped", progress=Stop(after), **layers).go()
        except KeyboardInterrupt:
            stops += 1
    assert stops == 5
    assert_same_numbers(tmp_path / "straight", tmp_path / "stopped")
    assert not list(tmp_path.rglob("checkpoint-*")) and not list(tmp_path.rglob("*.part"))


def test_a_stopped_task_goes_on_with_the_random_numbers_it_had(make_run, tmp_path, monkeypatch):
    """A loss that hangs on every generator, as dropout or a sampled prompt would make it."""
    loss = Method.loss

    def shaken(self, model, batch):
        chance = torch.rand(()) + random.random() + float(np.random.rand())
        return loss(self, model, batch) * chance

    monkeypatch.setattr(Method, "loss", shaken)
    layers = {"train": {"max_steps": 7, "checkpoint_steps": 2}, "profile": {"name": "lite"}}
    make_run("moelora", "straight", **layers).go()
    stops = 0
    while not (tmp_path / "stopped" / "tasks" / "02-upper" / "DONE").exists():
        try:
            make_run("moelora", "stopped", progress=Stop(6), **layers).go()
        except KeyboardInterrupt:
            stops += 1
            random.seed(stops), np.random.seed(stops), torch.manual_seed(stops)
    assert stops > 2
    assert_same_numbers(tmp_path / "straight", tmp_path / "stopped")


def test_every_task_of_every_seed_is_trained_with_a_seed_of_its_own(make_run, monkeypatch):
    seeds, begun = [], Trainer.train

    def noted(self, *args, **kwargs):
        seeds.append((self.args.seed, self.args.data_seed, torch.initial_seed()))
        return begun(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", noted)
    for seed in range(2):
        make_run("finetune", f"s{seed}", seed=seed, profile={"name": "lite"}).go()
    assert len(seeds) == 4
    assert all(len(set(each)) == 4 for each in zip(*seeds, strict=True))


def test_same_seed_same_numbers_other_seed_others(make_run, tmp_path):
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        make_run("same", out, seed=seed, profile="lite").go()
    assert_same_numbers(tmp_path / "one", tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_same_numbers(tmp_path / "one", tmp_path / "three")


def test_a_finished_run_is_neither_done_again_nor_replaced(make_run, tmp_path, monkeypatch):
    first = make_run().go()
    with pytest.raises(RunDirError, match="holds another run") as caught:
        make_run(seed=1)
    assert "+ seed: 1" in str(caught.value) and "--replace" in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "load", lambda *_: pytest.fail("loaded again"))
        assert make_run().go() == first
    make_run(seed=1, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["data.json", "run.yaml"]
    make_run(seed=2)  # nothing has come of seed 1: nothing to protect
    (tmp_path / "run/rows").mkdir()
    with pytest.raises(RunDirError, match="--replace would delete"):
        make_run(seed=3, overwrite=True, data=tmp_path / "run/rows")


def test_a_loss_that_is_no_number_stops_the_run(make_run, tmp_path, monkeypatch):
    settings = {"train": {"max_steps": 6, "checkpoint_steps": 2}}
    make_run(out="straight", **settings).go()
    calls, loss = [0], Method.loss

    def broken(self, model, batch):
        calls[0] += 1
        return loss(self, model, batch) * (float("nan") if calls[0] == 6 + 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "loss", broken)
        with pytest.raises(
            TrainingDiverged, match=r"task 2 of 2 \(upper\): .* nan at step 4"
        ) as caught:
            make_run(**settings).go()
    named = [word for word in str(caught.value).replace(",", ";").split() if "upper-" in word]
    assert len(named) == 4  # the batch
    folder = tmp_path / "run"
    assert (folder / "tasks/01-lower/DONE").exists()
    (snapshot,) = (folder / "tasks/02-upper/training").iterdir()
    assert snapshot.name == "checkpoint-2"
    kept = load_file(snapshot / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    make_run(**settings).go()  # the fault is mended: the same command goes on
    assert_same_numbers(tmp_path / "straight", folder)


def test_profiles_choose_cells_and_examples(make_run, tmp_path):
    lite = make_run(profile="lite", out="lite").go()
    assert lite["matrix"][0][1] is None and None not in [lite["matrix"][0][0], *lite["matrix"][1]]
    assert lite["zero_shot"] == [None] * 2 and lite["metrics"]["fwt"] is None
    assert None not in [lite["metrics"][name] for name in ("last", "mft", "bwt")]
    assert len(read_lines(tmp_path / "lite/eval/after-01/on-01.jsonl")) == 3
    assert len(make_run(profile="lite", out="lite").tasks[0].train) == 6


def test_cells_of_every_profile():
    def cells(which, tasks=3, trained=3):
        return cells_to_measure(Profile(name="x", cells=which), tasks, trained)

    assert cells("all") == {0: [1, 2, 3], 1: [1, 2], 2: [1, 2, 3], 3: [1, 2, 3]}
    assert cells("seen") == {0: [1, 2, 3], 1: [1], 2: [1, 2], 3: [1, 2, 3]}
    assert cells("ends") == {1: [1], 2: [2], 3: [1, 2, 3]}
    assert cells("all", trained=1) == {0: [1, 2, 3], 1: [1, 2, 3]}
    assert cells("ends", trained=1) == {1: [1, 2, 3]}
    assert cells("ends", trained=0) == cells("all", trained=0) == {0: [1, 2, 3]}
    assert cells("all", tasks=1, trained=1) == {0: [1], 1: [1]}


def test_orders(make_run, tiny):
    assert [t.name for t in make_run(order="reversed").tasks] == ["upper", "lower"]
    order = ("isred", "lower")
    assert [t.name for t in make_run(order=order, benchmark_=tiny, out="b").tasks] == [*order]
    with pytest.raises(UnknownName, match="unknown order 'revresed'; did you mean 'reversed'"):
        make_run(order="revresed", out="c")


def test_joint_trains_once_on_everything(make_run, tmp_path, two):
    run = make_run("joint")
    (union,) = run.stages
    assert len(union.train) == sum(len(task.train) for task in two.tasks)
    run.go()
    log = read_lines(tmp_path / "run/tasks/01-joint/train.jsonl")
    assert log[-1]["step"] == 6  # as many steps as all tasks together


def test_training_lowers_the_loss(make_run, tmp_path, benchmark_root):
    one = tiny_benchmark(benchmark_root, tasks=1)
    train = {"max_steps": 40, "learning_rate": 0.02}
    method = {"name": "finetune", "targets": "all", "rank": 8}
    make_run("finetune", train=train, method=method, benchmark_=one).go()
    log = [line["loss"] for line in read_lines(tmp_path / "run/tasks/01-lower/train.jsonl")]
    assert log[-1] < 0.8 * log[0]


def test_activation_checkpointing_changes_nothing(make_run, tmp_path):
    for out, on in (("without", False), ("with", True)):
        make_run("same", out, profile="lite", train={"activation_checkpointing": on}).go()
    _, without = numbers(tmp_path / "without")
    _, recomputed = numbers(tmp_path / "with")
    for file, tensors in without.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(recomputed[file][name], tensor, rtol=1e-4, atol=1e-5)


def test_zero_examples(make_run, tiny, monkeypatch):
    with pytest.raises(DataError, match="zero train examples"):
        replace(tiny.tasks[0], train=())
    monkeypatch.setattr(Method, "examples", lambda self, train, index: [])
    with pytest.raises(DataError, match="'lower' has zero examples to train on"):
        make_run().go()


def test_method_option_is_checked_before_anything_is_loaded(make_run, tmp_path):
    with pytest.raises(UnknownName, match=r"'method\.dleta'; did you mean 'method\.delta'"):
        make_run("same", method={"dleta": 0.9})
    with pytest.raises(ConfigError):
        make_run("same", method={"delta": 7.0})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["FSDP", "DEEPSPEED"])
def test_processes_that_share_the_weights_are_refused(monkeypatch, what):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{what}", "true")
    with pytest.raises(ConfigError, match="your own Trainer"), joined():
        pass


@pytest.mark.parametrize("step", [1, 2])  # the second is the last one
def test_a_stop_finishes_the_step_and_nothing_is_lost(make_run, tmp_path, monkeypatch, step):
    short = {"train": {"max_steps": 3, "checkpoint_steps": 0}}
    make_run("same", out="whole", **short).go()
    begun = trainer.StepWatch.on_step_begin

    def asked(self, args, state, control, **kwargs):
        request.asked |= state.global_step == step
        begun(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(trainer.StepWatch, "on_step_begin", asked)
        make_run("same", out="stopped", **short).go()
    assert not request.asked and not request.heard
    task = tmp_path / "stopped/tasks/01-lower"
    assert (task / "adapter").is_dir() == (step == 2)
    assert (task / "training/checkpoint-2").is_dir() == (step == 1)
    make_run("same", out="stopped", **short).go()
    name = "tasks/01-lower/adapter/adapter_model.safetensors"
    found, wanted = (load_file(tmp_path / run / name) for run in ("stopped", "whole"))
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_predictions_noted_before_a_kill_are_used_again(make_run, tmp_path, monkeypatch):
    run = make_run("zeroshot", eval={"batch_size": 2})
    notes = tmp_path / "run/eval/after-00/on-01.part"
    notes.parent.mkdir(parents=True)
    known = run.tasks[0].test[0].id
    notes.write_text(json.dumps([known, "noted"]) + '\n["lower-13", "cut o')
    run.go()
    lines = read_lines(tmp_path / "run/eval/after-00/on-01.jsonl")
    assert [line["id"] for line in lines if line["prediction"] == "noted"] == [known]
    assert len(lines) == 6


def test_a_cell_cut_off_tells_the_same_of_all_its_answers(make_run, tmp_path, monkeypatch):
    layers = {"train": {"max_steps": 1}, "eval": {"batch_size": 2}}
    make_run("disco", out="whole", **layers).go()

    def killed(call, at):
        calls = []

        def counted(*given):
            calls.append(given)
            if len(calls) == at:
                raise KeyboardInterrupt
            return call(*given)

        return counted

    # three batches a cell: in the third cell, then between the fifth one's facts and its answers
    for name, at in (("greedy", 8), ("write_lines", 3)):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(answer, name, killed(getattr(answer, name), at))
            make_run("disco", out="cut", **layers).go()
    make_run("disco", out="cut", **layers).go()
    told = {file.relative_to(tmp_path / "whole"): read_json(file)
            for file in (tmp_path / "whole/eval").rglob("*.json")}  # fmt: skip
    assert len(told) == 3
    assert all(read_json(tmp_path / "cut" / file) == facts for file, facts in told.items())


def test_what_a_kill_leaves_of_finished_things_is_cleared_away(make_run, tmp_path):
    make_run("finetune", train={"max_steps": 1}).go()
    folder = tmp_path / "run"
    (folder / "tasks/02-upper/DONE").unlink()
    notes = folder / "eval/after-01/on-01.part"
    notes.write_text("")
    snapshot = folder / "tasks/02-upper/training/checkpoint-1"
    snapshot.mkdir(parents=True)
    adapter = folder / "tasks/02-upper/adapter/adapter_model.safetensors"
    before = adapter.stat()
    make_run("finetune", train={"max_steps": 1}).go()
    assert not notes.exists() and not snapshot.parent.exists()
    assert adapter.stat().st_mtime_ns == before.st_mtime_ns
    assert (folder / "tasks/02-upper/DONE").is_file()


def test_the_metrics_are_written_when_the_last_task_is_done(make_run, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    run = make_run("finetune", train={"max_steps": 1})
    monkeypatch.setattr(run, "_finish", killed)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert (tmp_path / "run/tasks/02-upper/DONE").is_file()
    assert read_json(tmp_path / "run/matrix.json")["metrics"]["last"] is None
    assert make_run("finetune", train={"max_steps": 1}).go()["metrics"]["last"] is not None


@pytest.mark.parametrize("part", ["data", "weights"])
def test_a_run_does_not_go_on_with_other_data_or_weights(part, make_run, two, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_run(progress=Stop(4)).go()
    manifest = tmp_path / "run" / "manifest.json"
    content = read_json(manifest)
    content[part]["fingerprint"] = "f" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(RunDirError, match=rf"the {part} of the run in .* were others"):
        make_run().go()
