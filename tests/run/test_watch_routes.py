"""Routes that are watched while a task is learned, and that watching changes nothing."""

from __future__ import annotations

import pytest
import torch

from tests.run.test_budget import Told
from tests.run.test_task_loop import numbers
from tests.run.test_training_cost import StopLearning
from undrift.methods.moelora import expert_layers
from undrift.run.answer import read
from undrift.run.session import Session
from undrift.run.watch_routes import RouteWatch
from undrift.rundir import read_json, read_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
KINDS = ("overlap", "js", "tv", "top1")


def plain(rows):
    """Rows of train.jsonl without what was watched."""
    kept = [{k: v for k, v in row.items() if not k.startswith("routes/")} for row in rows]
    return [row for row in kept if "loss" in row]


@pytest.mark.parametrize("method", ["same", pytest.param("smolora", marks=pytest.mark.slow)])
def test_a_watched_run_is_the_same_run(make_run, tmp_path, method):
    train = {"max_steps": 5}
    own = {"activation": True, "warmup_share": 0.3, "tau": 1.0} if method == "same" else {}
    for out, every in (("without", 0), ("watched", 3)):
        layers = {"train": train, "method": own, "watch_routes": every}
        make_run(method, out, profile="demo", **layers).go()
    (said, tensors), (watched, others) = (numbers(tmp_path / out) for out in ("without", "watched"))
    assert said.keys() == watched.keys() and tensors.keys() == others.keys()
    for file, text in said.items():
        if file.endswith("train.jsonl"):
            rows = [read_lines(tmp_path / out / file) for out in ("without", "watched")]
            assert rows[0] == plain(rows[1])
        else:
            assert text == watched[file]
    for file, found in tensors.items():
        assert all(torch.equal(tensor, others[file][name]) for name, tensor in found.items())
    assert read_json(tmp_path / "watched/matrix.json") == read_json(
        tmp_path / "without/matrix.json"
    )


def test_a_look_leaves_random_numbers_where_they_were(make_run, monkeypatch):
    kept, look = [], RouteWatch.look

    def looked(self):
        before = torch.get_rng_state()
        found = look(self)
        kept.append(torch.equal(before, torch.get_rng_state()))
        return found

    def drawing(*asked):  # as a model may that draws when it reads
        torch.rand(1)
        read(*asked)

    monkeypatch.setattr(RouteWatch, "look", looked)
    monkeypatch.setattr("undrift.run.watch_routes.read", drawing)
    make_run(train={"max_steps": 2}, watch_routes=1).go()
    assert kept == [True, True]


def test_what_is_noted_and_told(make_run, tmp_path, tiny):
    make_run(train={"max_steps": 5}, watch_routes=3, benchmark_=tiny).go()
    first, second, third = (
        read_lines(tmp_path / "run" / "tasks" / task / "train.jsonl")
        for task in ("01-lower", "02-upper", "03-isred")
    )
    assert plain(first) == first  # nothing was learned earlier
    looks = [row for row in third if "routes/overlap" in row]
    assert [row["step"] for row in third] == [2, 3, 4, 5]
    assert [row["step"] for row in looks] == [3, 5]  # every third, and the last
    assert "routes/overlap/upper" not in second[-1] and "routes/overlap/lower" in second[-1]
    for row in looks:
        assert all(0 < row[f"routes/{kind}/{task}"] <= 100
                   for kind in KINDS for task in ("lower", "upper"))  # fmt: skip
        for kind in KINDS:
            both = row[f"routes/{kind}/lower"] + row[f"routes/{kind}/upper"]
            assert row[f"routes/{kind}"] == pytest.approx(both / 2)


@pytest.mark.slow
def test_a_resumed_task_is_compared_with_the_same_routes(make_run, tmp_path):
    layers = {"train": {"max_steps": 5, "checkpoint_steps": 2}, "watch_routes": 1}
    make_run(out="straight", **layers).go()
    with pytest.raises(KeyboardInterrupt):
        make_run(out="stopped", progress=StopLearning("upper", 4), **layers).go()
    assert list((tmp_path / "stopped/tasks/02-upper").rglob("checkpoint-*"))
    make_run(out="stopped", **layers).go()
    logs = [tmp_path / out / "tasks/02-upper/train.jsonl" for out in ("straight", "stopped")]
    assert logs[0].read_text() == logs[1].read_text()
    assert len([row for row in read_lines(logs[0]) if "routes/js" in row]) == 5


def test_a_planted_change_of_the_router_is_seen(make_run, two, backbone):
    run = make_run()
    pictures = [picture for e in two.tasks[0].test for picture in e.images]
    backbone.prepare(pictures)
    model = run.method.attach(backbone.model)
    layers = expert_layers(model).values()
    modes = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: modes.append(model.training))
    session = Session(backbone, model, run.method, batch_size=4)
    model.train()
    watch = RouteWatch(session, {1: two.tasks[0]}, 1)
    still = watch.look()
    assert [still[f"routes/{kind}"] for kind in KINDS] == [100, 0, 0, 100]
    for layer in layers:  # what the one expert heard, the other hears now
        router = layer.moe_lora_G["default"]
        router.data = router.data.flip(0)
    moved = watch.look()
    assert moved["routes/top1"] == 0 and moved["routes/tv"] > 0 and moved["routes/js"] > 0
    assert set(modes) == {False} and model.training


def test_without_a_router_there_is_a_word_and_no_watch(make_run, tmp_path):
    told = Told()
    make_run("finetune", watch_routes=1, progress=told, train={"max_steps": 2}).go()
    said = [text for kind, text, _ in told.events if kind == "watch"]
    assert said == ["no routes to watch: finetune trains no router"]
    rows = read_lines(tmp_path / "run/tasks/02-upper/train.jsonl")
    assert rows and plain(rows) == rows
