"""An adapter is somebody else's file: what its files say is checked before anything is done."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.run.own import write_task
from tests.run.tiny import tiny_benchmark
from tests.sweeps import mostly_slow
from undrift.errors import AdapterMismatch, ConfigError, RunDirError, TrainingDiverged, UndriftError
from undrift.run.adapters import open_adapter, origin_of
from undrift.run.backbone import Backbone
from undrift.run.config import resolve
from undrift.run.evaluate import examine
from undrift.run.learned_tasks import find_again
from undrift.run.progress import Progress
from undrift.run.session import make_method
from undrift.run.task_loop import Run

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "undrift.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder) -> Path:
    """A finished run of two tasks, made once."""
    root = tmp_path_factory.mktemp("made")
    benchmark = tiny_benchmark(root / "data", train=4, test=2, tasks=2)
    small = {
        "benchmark": "tiny",
        "method": {"name": "moelora", "experts": 2, "rank": 2},
        "backbone": str(backbone_folder),
        "out": root / "run",
        "profile": "lite",
        "train": {"batch_size": 4, "max_steps": 1, "learning_rate": 0.01},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRIFT_CACHE", str(root / "cache"))
        Run(resolve(small), benchmark=benchmark).go()
    return root / "run"


@pytest.fixture
def adapter(made, tmp_path) -> Path:
    """A copy of its last adapter, to be spoilt."""
    return Path(shutil.copytree(made / "tasks/02-upper/adapter", tmp_path / "adapter"))


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def learned(adapter: Path, tmp_path: Path, name: str) -> None:
    """Have the record say that a task of this name was learned, from files that are there."""
    write_task(tmp_path / "theirs", "colours", train=2, test=2)
    note = {
        "name": name,
        "digest": "0",
        "test": str(tmp_path / "theirs/colours-test.jsonl"),
        "images": str(tmp_path / "theirs"),
        "scorer": "exact",
        "max_new_tokens": 2,
        "skip_bad": False,
    }
    edit(adapter / RECORD, lambda value: value | {"learned": [note]})


def ask_all(adapter: Path, out: Path | None = None, device: str = "cpu") -> None:
    """What `undrift eval ADAPTER` does."""
    origin = origin_of(adapter)
    tasks = [task for task, _ in find_again(origin["learned"], Progress())]
    examine(open_adapter(adapter, device=device), tasks, out, 4, Progress())


@pytest.mark.foreign("2.1")
@pytest.mark.parametrize("out", [None, "out"])
@pytest.mark.parametrize("climbs", [False, True])
def test_a_name_in_a_record_leads_nowhere(adapter, tmp_path, out, climbs):
    precious = tmp_path / "home" / "invoices.jsonl"
    precious.parent.mkdir()
    precious.write_text("years of work\n")
    learned(adapter, tmp_path, "../home/invoices" if climbs else str(precious.with_suffix("")))
    with pytest.raises(RunDirError, match="name"):
        ask_all(adapter, tmp_path / out if out else None)
    assert precious.read_text() == "years of work\n"


@pytest.mark.foreign("2.1")
@pytest.mark.parametrize("name", ["colours.jsonl", "colours.part", "other.part"])
def test_what_lies_where_answers_are_kept_stays(adapter, tmp_path, name):
    learned(adapter, tmp_path, "colours")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    if name == "other.part":
        ask_all(adapter, out)
        assert (out / "colours.jsonl").is_file()
    else:
        with pytest.raises(RunDirError, match="has not written it"):
            ask_all(adapter, out)
    assert (out / name).read_text() == "mine"


def test_what_eval_has_written_it_writes_anew(adapter, tmp_path):
    learned(adapter, tmp_path, "colours")
    for _ in range(2):
        ask_all(adapter, tmp_path / "out")
    lines = (tmp_path / "out/colours.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["format"] == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["asked.json", "colours.jsonl"]


@pytest.mark.foreign("2.1")
def test_a_link_in_a_run_is_not_written_through(made, tmp_path):
    from undrift.rundir import RunDir

    run, elsewhere = shutil.copytree(made, tmp_path / "run"), tmp_path / "elsewhere"
    shutil.move(run / "eval", elsewhere)
    (run / "eval").symlink_to(elsewhere)
    text = (run / "run.yaml").read_text()
    for replace in (False, True):
        with pytest.raises(RunDirError, match="is a link to another folder"):
            RunDir.start(run, text.removeprefix("format: 1\n"), replace=replace)
    assert (elsewhere / "after-01/on-01.jsonl").is_file()


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "cut in the header": lambda content: content[:20],
    "empty": lambda content: b"",
    "garbage": lambda content: b"\xff" * 1000,
    "pickle": lambda content: pickle.dumps({"weight": [1.0]}),
    "gigabytes": lambda content: (2**40).to_bytes(8, "little") + content[8:],
}


@pytest.mark.foreign("2.2")
@pytest.mark.parametrize("how", SPOILT)
def test_damaged_tensors_name_the_file_and_the_task_before(made, tmp_path, how):
    run = shutil.copytree(made, tmp_path / "run")
    file = run / "tasks/02-upper/adapter" / WEIGHTS
    file.write_bytes(SPOILT[how](file.read_bytes()))
    with pytest.raises(RunDirError) as caught:
        open_adapter(run, device="cpu")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert f"use the adapter of the task before, {run}/tasks/01-lower/adapter" in str(caught.value)


@pytest.mark.foreign("2.2")
@pytest.mark.parametrize(
    ("name", "content"),
    mostly_slow(
        [
            ("optimizer.safetensors", b""),
            ("optimizer.safetensors", b"\x08\0\0\0\0\0\0\0{}garbage"),
            ("optimizer.json", b"{}"),
            ("optimizer.json", b'{"groups": [{"lr": "fast", "params": [0]}], "numbers": {}}'),
            ("trainer_state.json", b'{"global_step": '),
            ("trainer_state.json", b"{}"),
            ("trainer_state.json", b'{"global_step": "two"}'),
            ("schedule.json", b"[]"),
            ("random.json", b'{"numpy": [], "python": []}'),
            ("random.safetensors", b"x"),
            (WEIGHTS, b"x"),
            (CONFIG, b"{}"),
        ],
        kept=[("optimizer.json", b"{}"), (WEIGHTS, b"x")],
    ),
)
def test_a_damaged_snapshot_says_what_to_delete(make_run, tmp_path, monkeypatch, name, content):
    class Stop(Progress):
        def advance(self, amount: float = 1) -> None:
            if (tmp_path / "run/tasks/01-lower/training/checkpoint-2").is_dir():
                raise KeyboardInterrupt

    asked = {"profile": "lite", "train": {"checkpoint_steps": 2}}
    with pytest.raises(KeyboardInterrupt):
        make_run(progress=Stop(), **asked).go()
    folder = tmp_path / "run/tasks/01-lower/training/checkpoint-2"
    (folder / name).write_bytes(content)
    with pytest.raises(RunDirError) as caught:
        make_run(**asked).go()
    message = str(caught.value)
    assert str(folder / name.split(".")[0]) in message and "\n" not in message
    assert f"delete the folder {folder}: training of this task begins again" in message
    shutil.rmtree(folder)
    assert make_run(**asked).go()["metrics"]["last"] is not None


@pytest.mark.foreign("2.3")
@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (RECORD, lambda value: [value], "expected|valid"),
        (RECORD, lambda value: {"learned": []}, "backbone"),
        (RECORD, lambda value: value | {"learned": {}}, "learned"),
        (RECORD, lambda value: value | {"fingerprint": 7}, "fingerprint"),
        (RECORD, lambda value: value | {"options": []}, "options"),
        (RECORD, lambda value: value | {"options": {"experts": "2"}}, "experts"),
        (RECORD, lambda value: value | {"options": {"experts": True}}, "experts"),
        (RECORD, lambda value: value | {"options": {"experts": 10**9}}, "options"),
        (RECORD, lambda value: value | {"method": None}, "method"),
        (CONFIG, lambda value: [value], "expected an object"),
        (CONFIG, lambda value: {k: v for k, v in value.items() if k != "peft_type"}, "peft_type"),
        (CONFIG, lambda value: value | {"peft_type": "MOE_LARD"}, "peft_type"),
        (CONFIG, lambda value: value | {"peft_type": ["LORA"]}, "peft_type"),
        (CONFIG, lambda value: value | {"r": "8"}, "r: "),
        (CONFIG, lambda value: value | {"r": True}, "r: "),
        (CONFIG, lambda value: value | {"r": 10**9}, "r: "),
        (CONFIG, lambda value: value | {"num_experts": 3}, "num_experts"),
        (CONFIG, lambda value: value | {"target_modules": {"a": 1}}, "target_modules"),
        (CONFIG, lambda value: value | {"target_modules": "(a+)+b"}, "pattern"),
        (CONFIG, lambda value: value | {"target_modules": "("}, "pattern"),
        (CONFIG, lambda value: value | {"modules_to_save": ["model"]}, "modules_to_save"),
        (CONFIG, lambda value: value | {"auto_mapping": "os"}, "auto_mapping"),
    ],
)
def test_wrong_kinds_are_one_clear_error(adapter, file, change, said):
    edit(adapter / file, change)
    with pytest.raises((RunDirError, ConfigError, AdapterMismatch), match=said) as caught:
        open_adapter(adapter, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(adapter) in str(caught.value) or "method." in str(caught.value)


@pytest.mark.foreign("2.3")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("matrix.json", "{}"),
        ("matrix.json", "[]"),
        ("matrix.json", '{"tasks": ["lower"], "zero_shot": [], "matrix": [["9"]], "metrics": {}}'),
        ("manifest.json", "{}"),
        ("eval/after-02/on-01.jsonl", '{"id": 1}\n'),
        ("eval/after-02/on-01.jsonl", ""),
    ],
)
def test_a_damaged_run_is_told_by_its_file(made, tmp_path, name, text):
    from undrift.report import load

    run = shutil.copytree(made, tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(RunDirError, match="is damaged") as caught:
        load(run)
    assert str(run / name) in str(caught.value) and "\n" not in str(caught.value)


def spoil(adapter: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    tensors = load_file(adapter / WEIGHTS)
    name = next(name for name in tensors if name.endswith("moe_lora_B"))
    save_file(tensors | {name: change(tensors[name])}, adapter / WEIGHTS, metadata={"format": "pt"})
    return name


@pytest.mark.foreign("2.4")
@pytest.mark.parametrize(
    "change",
    [
        lambda t: torch.full_like(t, torch.nan),
        lambda t: t.index_fill(0, torch.tensor([0]), torch.inf),
        lambda t: t.to(torch.int8),
        lambda t: t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t.long(),
    ],
    ids=["nan", "inf", "int8", "bool", "complex", "int64"],
)
def test_numbers_that_do_not_belong_are_refused(adapter, change):
    name = spoil(adapter, change)
    with pytest.raises(RunDirError, match=name) as caught:
        open_adapter(adapter, device="cpu")
    assert str(adapter / WEIGHTS) in str(caught.value)


@pytest.mark.foreign("2.4")
def test_a_plain_adapter_with_such_numbers_is_refused_too(backbone_folder, tmp_path):
    backbone = Backbone.load(str(backbone_folder), device="cpu")
    method = make_method("finetune", {"experts": 1, "rank": 2})
    method.save_state(method.attach(backbone.model), tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    tensors[min(tensors)].fill_(torch.nan)
    save_file(tensors, tmp_path / "lora" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(RunDirError, match="is not finite"):
        open_adapter(tmp_path / "lora", str(backbone_folder), device="cpu")


@pytest.mark.foreign("2.4")
def test_what_training_has_spoilt_is_not_saved(backbone_folder, tmp_path):
    backbone = Backbone.load(str(backbone_folder), device="cpu")
    method = make_method("finetune", {"experts": 1, "rank": 2})
    model = method.attach(backbone.model)
    method.save_state(model, tmp_path / "lora")
    before = (tmp_path / "lora" / WEIGHTS).read_bytes()
    next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.inf)
    with pytest.raises(TrainingDiverged, match="what was saved before stays"):
        method.save_state(model, tmp_path / "lora")
    with pytest.raises(TrainingDiverged):
        method.save_state(model, tmp_path / "new")
    assert (tmp_path / "lora" / WEIGHTS).read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_pipe_in_place_of_a_record_does_not_hang(adapter):
    for name in (RECORD, CONFIG, WEIGHTS):
        content = (adapter / name).read_bytes()
        (adapter / name).unlink()
        os.mkfifo(adapter / name)
        with pytest.raises(UndriftError):
            open_adapter(adapter, device="cpu")
        (adapter / name).unlink()
        (adapter / name).write_bytes(content)
    assert open_adapter(adapter, device="cpu").origin["after"] == 2


def test_a_newer_format_is_refused_and_an_older_file_is_read(adapter):
    edit(adapter / RECORD, lambda value: value | {"format": 2})
    with pytest.raises(RunDirError, match=r"newer undrift \(format 2, this one reads up to 1\)"):
        open_adapter(adapter, device="cpu")
    edit(adapter / RECORD, lambda value: {k: v for k, v in value.items() if k != "format"})
    tensors = load_file(adapter / WEIGHTS)
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt", "undrift_format": "2"})
    with pytest.raises(RunDirError, match=r"newer undrift \(format 2"):
        open_adapter(adapter, device="cpu")
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    assert open_adapter(adapter, device="cpu").origin["after"] == 2


@pytest.mark.foreign("2.1")
def test_a_record_does_not_say_where_the_pocket_is_drawn(monkeypatch, tmp_path):
    from undrift.errors import DataError
    from undrift.run import learned_tasks as records

    def read(config, _progress, _backbone):
        assert config.benchmark == "pocket" and config.data is None
        raise DataError("far enough")

    monkeypatch.setattr(records, "read_benchmark", read)
    note = {
        "name": "digits",
        "digest": "0",
        "benchmark": "pocket",
        "data": str(tmp_path),
        "reading": {},
        "skip_bad": False,
        "profile": {"name": "demo"},
        "split": "test",
    }
    with pytest.raises(DataError, match="far enough"):
        find_again([note], Progress())
    assert not list(tmp_path.iterdir())
