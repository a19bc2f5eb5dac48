"""A run or a lesson that is gone on with: rows, pictures and weights must be those of its start."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.run.own import LAYER, write_rows
from tests.run.test_task_loop import Stop
from tests.run.tiny import save_tiny
from undrift.errors import AdapterMismatch, RunDirError
from undrift.run.backbone import Backbone
from undrift.run.progress import Progress
from undrift.run.verify import verify
from undrift.rundir import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def changed_row(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "capitals.jsonl").read_text().splitlines()]
    rows = [*rows[1:], {**rows[0], "question_id": 77}]
    grey = [{**row, "answer": "GREY"} if row["question_id"] == 3 else row for row in rows]
    write_rows(data / "capitals.jsonl", grey)


def changed_order(data: Path) -> None:
    rows = (data / "capitals.jsonl").read_text().splitlines(keepends=True)
    (data / "capitals.jsonl").write_text("".join(reversed(rows)))


def changed_test(data: Path) -> None:
    rows = (data / "capitals-test.jsonl").read_text().splitlines(keepends=True)
    (data / "capitals-test.jsonl").write_text("".join(rows[:-1]))


def changed_earlier(data: Path) -> None:
    rows = (data / "colours-test.jsonl").read_text().splitlines(keepends=True)
    (data / "colours-test.jsonl").write_text("".join(rows[1:]))


def changed_picture(data: Path) -> None:
    """Other bytes in a file of the same length and the same time."""
    file = data / "capitals" / "2.png"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    content = bytearray(file.read_bytes())
    content[-1] ^= 255  # of the checksum of the end, which Pillow does not read
    file.write_bytes(content)
    os.utime(file, ns=times)


def changed_adapter(data: Path) -> None:
    file = data.parent / "colours/adapter/adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


CHANGES = {
    changed_row: "capitals, train: 8 rows then, 8 now: 1 changed (3), 1 added (77), 1 removed (0)",
    changed_order: "capitals, train: 8 rows then, 8 now: in another order",
    changed_test: "capitals, test: 4 rows then, 3 now: 1 removed (11)",
    changed_earlier: "colours, test: 4 rows then, 3 now: 1 removed (8)",
    changed_picture: "capitals, train: other content in 1 picture (",
    changed_adapter: ": 1 changed (adapter_model.safetensors)",
}
SLOW = pytest.mark.slow


class Told(Progress):
    """Keeps what kinds of things were told."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def event(self, kind: str, text: str, **values: object) -> None:
        self.kinds.append(kind)


class StopLearning(Progress):
    """Stops the run as a kill would, inside its second task, after a snapshot."""

    def __init__(self) -> None:
        self.steps = -1

    def stage(self, title: str, total: int, work: float = 0.0) -> None:
        self.steps = 0 if title.startswith("task 2") else -1

    def advance(self, pieces: int = 1) -> None:
        if self.steps >= 0:
            self.steps += 1
        if self.steps == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "finished"),
    [
        (changed_row, False),
        (changed_picture, False),
        (changed_picture, True),
        *(
            pytest.param(change, finished, marks=SLOW)
            for change in CHANGES
            for finished in (False, True)
            if change != changed_picture and (change, finished) != (changed_row, False)
        ),
    ],
)
def test_what_has_changed_is_told_and_with_force_noted(change, finished, lesson, data, tmp_path):
    lesson("colours").go()
    if finished:
        told = lesson("capitals", "colours").go()
    else:
        with pytest.raises(KeyboardInterrupt):
            lesson("capitals", "colours", progress=Stop(4)).go()
    lesson("capitals", "colours")  # nothing has changed yet
    change(data)
    with pytest.raises(RunDirError, match=r"the data of the run in .* were others.*--force") as is_:
        lesson("capitals", "colours")
    assert CHANGES[change] in str(is_.value)
    assert "changes" not in read_json(tmp_path / "capitals/manifest.json")
    forced = lesson("capitals", "colours", force=True).go()
    (noted,) = read_json(tmp_path / "capitals/manifest.json")["changes"]
    assert CHANGES[change] in noted["what"][0]
    assert noted["before"] != noted["after"] and noted["date"].startswith("20")
    assert noted["learned_before"] == ["adapter"] * finished
    made = read_json(tmp_path / "capitals/adapter/undrift.json")
    assert made.get("changes") == (None if finished else [noted])
    assert lesson("capitals", "colours").go() == forced  # that is what it is compared with now
    if finished:
        assert forced == told


@pytest.mark.parametrize("finished", [False, True], ids=["cut", "finished"])
def test_a_base_that_has_changed_is_told_and_with_force_noted(
    finished, lesson, tmp_path, backbone_folder, monkeypatch
):
    base = tmp_path / "base"
    shutil.copytree(backbone_folder, base)
    monkeypatch.setitem(LAYER, "backbone", str(base))
    if finished:
        lesson("colours").go()
    else:
        with pytest.raises(KeyboardInterrupt):
            lesson("colours", progress=Stop(4)).go()
    (base / "model.safetensors").touch()  # written anew, with the same content
    if finished:
        lesson("colours").go()
    save_tiny(base, seed=9)
    with pytest.raises(RunDirError, match=r"the weights of the run in .* were others.*--force"):
        lesson("colours").go()
    lesson("colours", force=True).go()
    (noted,) = read_json(tmp_path / "colours/manifest.json")["changes"]
    assert noted["after"] == {"fingerprint": Backbone.load(str(base)).fingerprint}
    assert noted["before"] != noted["after"]
    lesson("colours").go()  # that is what it is compared with now


def test_an_adapter_goes_on_with_another_base_only_by_force(lesson, tmp_path):
    lesson("colours").go()
    other = Backbone.load(str(save_tiny(tmp_path / "other", seed=5)))
    with pytest.raises(AdapterMismatch, match=r"trained on another backbone.*--force"):
        lesson("capitals", "colours", backbone=other).go()
    lesson("capitals", "colours", backbone=other, force=True).go()
    made = read_json(tmp_path / "capitals/adapter/undrift.json")
    assert made["changes"] == read_json(tmp_path / "capitals/manifest.json")["changes"]
    before = read_json(tmp_path / "colours/adapter/undrift.json")["fingerprint"]
    assert made["changes"][0]["before"] == {"fingerprint": before}
    assert made["fingerprint"] == other.fingerprint


def test_a_change_stays_in_the_record_of_later_adapters(lesson, data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        lesson("colours", progress=Stop(4)).go()
    changed_earlier(data)
    lesson("colours", force=True).go()
    lesson("capitals", "colours").go()
    first, second = (
        read_json(tmp_path / name / "adapter/undrift.json")["changes"]
        for name in ("colours", "capitals")
    )
    assert first == second and len(first) == 1


def test_smaller_pieces_of_the_same_steps_go_on_inside_a_task(make_run, tmp_path):
    """What a run that met the end of the memory is told to do."""
    whole = make_run().go()
    cut = {"out": tmp_path / "cut", "train": {"checkpoint_steps": 1}}
    smaller = {"checkpoint_steps": 1, "batch_size": 2, "global_batch": 4}
    sizes = {"train": smaller, "eval": {"batch_size": 1}}
    with pytest.raises(KeyboardInterrupt):
        make_run(progress=StopLearning(), **cut).go()
    (snapshot,) = (tmp_path / "cut").glob("tasks/*/training/*")
    with pytest.raises(RunDirError) as refused:
        make_run(**cut | sizes)
    told = "\n".join(map(str, refused.value.args))
    assert "- train.batch_size: 4" in told and "+ train.batch_size: 2" in told and "--force" in told
    assert snapshot.is_dir()
    assert make_run(**cut | sizes, force=True).go()["matrix"] == whole["matrix"]
    (noted,) = read_json(tmp_path / "cut/manifest.json")["changes"]
    assert noted["before"] == {
        "train.batch_size": "4", "eval.batch_size": "16", "train.global_batch": "not given"
    }  # fmt: skip
    assert noted["what"][0] == "settings: train.batch_size 4 then, 2 now"
    assert not any("begins again" in line for line in noted["what"])
    last = max((tmp_path / "cut").glob("tasks/*/adapter/undrift.json"))
    assert read_json(last)["changes"] == [noted]
    make_run(**cut | sizes).go()  # that is what it is compared with now
    assert verify(tmp_path / "cut").wrong == []


def test_other_steps_begin_a_half_learned_task_again(make_run, tmp_path):
    cut = {"out": tmp_path / "cut", "train": {"checkpoint_steps": 1}}
    other = cut | {"train": {"checkpoint_steps": 1, "learning_rate": 0.02}}
    with pytest.raises(KeyboardInterrupt):
        make_run(progress=StopLearning(), **cut).go()
    (snapshot,) = (tmp_path / "cut").glob("tasks/*/training/*")
    begun = make_run(**other, force=True)
    assert not snapshot.exists()
    begun.go()
    (noted,) = read_json(tmp_path / "cut/manifest.json")["changes"]
    assert any("begins again" in line for line in noted["what"])
    for setting in ({"method": {"rank": 4}}, {"seed": 5}, {"profile": {"limit": 3}}):
        with pytest.raises(RunDirError, match="another run") as refused:
            make_run(**other, **setting, force=True)
        assert "--force" not in "".join(map(str, refused.value.args))
    with pytest.raises(RunDirError, match="another run"):  # all is done, with the settings it says
        make_run(**cut, force=True)


def test_settings_of_a_lesson_change_by_force(lesson, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        lesson("colours", progress=Stop(4)).go()
    monkeypatch.setitem(LAYER, "train", {**LAYER["train"], "log_steps": 1})
    with pytest.raises(RunDirError, match="another run"):
        lesson("colours").go()
    lesson("colours", force=True).go()
    (noted,) = read_json(tmp_path / "colours/manifest.json")["changes"]
    assert noted["after"] == {"train.log_steps": "1"}
    assert verify(tmp_path / "colours").wrong == []


def test_data_that_were_moved_are_the_same_data(make_run, two, tmp_path, benchmark_root):
    with pytest.raises(KeyboardInterrupt):
        make_run(progress=Stop(4)).go()
    shutil.copytree(benchmark_root, tmp_path / "moved")

    def moved(example):
        names = [path.relative_to(benchmark_root) for path in example.images]
        return replace(example, images=tuple(tmp_path / "moved" / name for name in names))

    tasks = tuple(
        replace(t, train=tuple(map(moved, t.train)), test=tuple(map(moved, t.test)))
        for t in two.tasks
    )
    make_run(benchmark_=replace(two, tasks=tasks)).go()
    assert "changes" not in read_json(tmp_path / "run/manifest.json")


def test_a_run_tells_what_has_changed_as_well(make_run, two, tmp_path):
    make_run().go()
    first = two.tasks[0]
    other = replace(two, tasks=(replace(first, train=first.train[1:]), two.tasks[1]))
    said = r"lower, train: 12 rows then, 11 now: 1 removed \(lower-0"
    with pytest.raises(RunDirError, match=said):
        make_run(benchmark_=other)
    folder = tmp_path / "run/tasks/02-upper"
    shutil.rmtree(folder)
    (tmp_path / "run/matrix.json").unlink()
    shutil.rmtree(tmp_path / "run/eval/after-02")
    make_run(benchmark_=other, force=True).go()
    (noted,) = read_json(tmp_path / "run/manifest.json")["changes"]
    assert noted["before"]["lower, train"]["rows"] == 12
    assert noted["after"]["lower, train"]["rows"] == 11
    assert noted["learned_before"] == ["tasks/01-lower/adapter"]
    assert read_json(folder / "adapter/undrift.json")["changes"] == [noted]


def test_a_run_from_before_there_were_digests_says_that_it_cannot_tell(make_run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_run(progress=Stop(4)).go()
    (tmp_path / "run/data.json").unlink()
    told = Told()
    make_run(progress=told)
    assert told.kinds == ["begun"]
