"""`undrift verify`: whoever changes something in a finished run is found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.run.own import LAYER, list_tasks, write_task
from undrift.cli import app
from undrift.data.benchmarks.folder import OwnTask
from undrift.errors import RunDirError
from undrift.run.adapters import start_before
from undrift.run.config import resolve
from undrift.run.learn import Learn, start_from
from undrift.run.task_loop import Run
from undrift.run.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder) -> Path:
    """A run of two tasks, one more task from its adapter, and the data of both."""
    root = tmp_path_factory.mktemp("made")
    for name in ("colours", "capitals"):
        write_task(root / "data", name)
    list_tasks(root / "data")
    write_task(root / "more", "colours")
    small = {"benchmark": "folder", "backbone": str(backbone_folder), "data": root / "data"}
    Run(resolve(LAYER, small, {"out": root / "run"})).go()
    data = root / "more"
    own = OwnTask(
        "yes", data / "colours.jsonl", data, test=data / "colours-test.jsonl", max_new_tokens=6
    )
    Learn(start_from(str(root / "run"), LAYER), own, root / "learned").go()
    return root


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.fixture
def learned(made, tmp_path) -> Path:
    return shutil.copytree(made / "learned", tmp_path / "learned")


def edit(root: Path, place: str, change: Callable[[dict], object], line: int | None = None) -> None:
    """Change one JSON object in a file, in place."""
    file = root / place
    lines = [file.read_text()] if line is None else file.read_text().splitlines()
    value = json.loads(lines[line or 0])
    change(value)
    lines[line or 0] = json.dumps(value, indent=1 if line is None else None)
    file.write_text("\n".join(lines) + "\n")


def swap(root: Path, one: str, other: str) -> None:
    (root / one).rename(root / "aside")
    (root / other).rename(root / one)
    (root / "aside").rename(root / other)


def lines(root: Path, place: str, change: Callable[[list[str]], list[str]]) -> None:
    file = root / place
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


def flip(root: Path, place: str, at: int = -1) -> None:
    content = bytearray((root / place).read_bytes())
    content[at] ^= 1
    (root / place).write_bytes(content)


CELL, ADAPTER = "eval/after-02/on-01.jsonl", "tasks/01-colours/adapter"
WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"

COMPUTED = {  # found from the files alone, as in a run from before there were digests
    "score": (lambda r: edit(r, CELL, lambda v: v.update(strict=0.5), 1), "score differs"),
    "caseless": (lambda r: edit(r, CELL, lambda v: v.update(caseless=0.5), 1), "score differs"),
    "score added": (
        lambda r: edit(r, CELL, lambda v: v.update(lenient=1.0, form=1.0), 1),
        "differ",
    ),
    "prediction": (
        lambda r: edit(r, CELL, lambda v: v.update(prediction=v["answers"][0]), 1),
        "differ from what exact says",
    ),
    "answer": (lambda r: edit(r, CELL, lambda v: v.update(answers=["x"]), 1), "other answers"),
    "question": (lambda r: edit(r, CELL, lambda v: v.update(question="?"), 1), "another question"),
    "id": (lambda r: edit(r, CELL, lambda v: v.update(id="x"), 1), "no questions of"),
    "row deleted": (lambda r: lines(r, CELL, lambda rows: rows[1:]), "have no answer"),
    "row twice": (lambda r: lines(r, CELL, lambda rows: [*rows, rows[0]]), "stand twice"),
    "row in another's place": (
        lambda r: lines(r, CELL, lambda rows: [*rows[1:], rows[1]]),
        "stand twice",
    ),
    "cell deleted": (lambda r: (r / CELL).unlink(), "is missing"),
    "cells of two tasks swapped": (
        lambda r: swap(r, CELL, "eval/after-02/on-02.jsonl"),
        "another question",
    ),
    "cell added": (
        lambda r: shutil.copy(r / CELL, r / "eval/after-02/on-03.jsonl"),
        "belongs to no cell",
    ),
    "stage added": (
        lambda r: shutil.copytree(r / "eval/after-02", r / "eval/after-03"),
        "belongs to no cell",
    ),
    "cell of the matrix": (
        lambda r: edit(r, "matrix.json", lambda v: v["matrix"][1].__setitem__(0, 99.0)),
        "after 2, colours",
    ),
    "zero-shot": (
        lambda r: edit(r, "matrix.json", lambda v: v["zero_shot"].__setitem__(0, 99.0)),
        "after 0, colours",
    ),
    "row of the matrix": (lambda r: edit(r, "matrix.json", lambda v: v["matrix"].pop(0)), "1 rows"),
    "tasks of the matrix": (
        lambda r: edit(r, "matrix.json", lambda v: v["tasks"].reverse()),
        "tasks is ['capitals', 'colours']",
    ),
    **{
        f"metric {key}": (
            lambda r, key=key: edit(r, "matrix.json", lambda v: v["metrics"].update({key: 77.0})),
            f"{key} is 77",
        )
        for key in ("last", "forgetting", "fwt")
    },
    "metric forgotten": (
        lambda r: edit(r, "matrix.json", lambda v: v["metrics"].pop("avg")),
        "avg is None",
    ),
    "matrix deleted": (lambda r: (r / "matrix.json").unlink(), "matrix.json: is missing"),
    "scorer": (
        lambda r: edit(
            r, "manifest.json", lambda v: v["protocol"]["tasks"][0].update(scorer="anls")
        ),
        "scorer of colours is anls",
    ),
    "unknown scorer": (
        lambda r: edit(
            r, "manifest.json", lambda v: v["protocol"]["tasks"][0].update(scorer="mine")
        ),
        "scorer of colours is mine",
    ),
    "number of questions": (
        lambda r: edit(r, "manifest.json", lambda v: v["protocol"]["tasks"][0].update(test=5)),
        "5 questions",
    ),
    **{
        f"manifest's {key}": (
            lambda r, key=key, value=value: edit(
                r, "manifest.json", lambda v: v.update({key: value})
            ),
            f"{key} is",
        )
        for key, value in (("method", "ewc"), ("seed", 7), ("order", "mine"), ("profile", "lite"))
    },
    "scoring": (
        lambda r: edit(r, "manifest.json", lambda v: v["protocol"].update(scoring="hide")),
        "protocol.scoring is hide",
    ),
    "option": (
        lambda r: edit(r, "manifest.json", lambda v: v["settings"].update(rank=8)),
        "settings.rank is 8",
    ),
    "steps": (
        lambda r: edit(r, "manifest.json", lambda v: v["budget"][0].update(steps=99)),
        "counts 99",
    ),
    "bytes": (
        lambda r: edit(r, "manifest.json", lambda v: v["budget"][1].update(state_bytes=9)),
        "state_bytes of capitals is 9",
    ),
    "budget forgotten": (
        lambda r: edit(r, "manifest.json", lambda v: v["budget"].pop()),
        "nothing of the budget of capitals",
    ),
    "configuration": (
        lambda r: (r / "run.yaml").write_text(
            (r / "run.yaml").read_text().replace("seed: 3", "seed: 4")
        ),
        "seed is 3",
    ),
    "digest of a row": (
        lambda r: edit(r, "data.json", lambda v: next(iter(v["rows"].values())).popitem()),
        "data.json: ",
    ),
    "mark deleted": (lambda r: (r / "tasks/02-capitals/DONE").unlink(), "has no DONE"),
    "adapter deleted": (lambda r: shutil.rmtree(r / ADAPTER), "adapter: is missing"),
    "adapters swapped": (
        lambda r: swap(r, ADAPTER, "tasks/02-capitals/adapter"),
        "number of its training is 2",
    ),
    "weights cut off": (
        lambda r: (r / WEIGHTS).write_bytes((r / WEIGHTS).read_bytes()[:-8]),
        "no safetensors",
    ),
    "weights deleted": (lambda r: (r / WEIGHTS).unlink(), "adapter_model.safetensors"),
    "fingerprint": (
        lambda r: edit(r, f"{ADAPTER}/undrift.json", lambda v: v.update(fingerprint="f" * 64)),
        "the base's fingerprint is fff",
    ),
    "adapter's options": (
        lambda r: edit(r, f"{ADAPTER}/undrift.json", lambda v: v["options"].update(rank=7)),
        "options is",
    ),
    "adapter's record deleted": (
        lambda r: (r / f"{ADAPTER}/undrift.json").unlink(),
        "undrift.json: is missing",
    ),
    "adapter's digest of rows": (
        lambda r: edit(r, f"{ADAPTER}/undrift.json", lambda v: v["learned"][0].update(digest="f")),
        "the digest of colours is f",
    ),
    "log": (
        lambda r: lines(r, "tasks/01-colours/train.jsonl", lambda rows: rows[:-2]),
        "ends with step",
    ),
    "task added": (
        lambda r: shutil.copytree(r / "tasks/02-capitals", r / "tasks/03-more"),
        "belongs to no task",
    ),
}
WRITTEN = {  # found by the digest of what was written
    "bit of an adapter": (lambda r: flip(r, WEIGHTS), WEIGHTS),
    "wrong answer for another": (
        lambda r: edit(r, CELL, lambda v: v.update(prediction="elephant"), 1),
        CELL,
    ),
    "loss": (
        lambda r: edit(r, "tasks/01-colours/train.jsonl", lambda v: v.update(loss=0.1), 0),
        "train.jsonl",
    ),
    "seconds": (
        lambda r: edit(r, "manifest.json", lambda v: v["seconds"].update(train=0.1)),
        "manifest.json",
    ),
    "adapters of two tasks": (
        lambda r: swap(r, WEIGHTS, "tasks/02-capitals/adapter/adapter_model.safetensors"),
        WEIGHTS,
    ),
    "cells of two stages": (lambda r: swap(r, CELL, "eval/after-00/on-01.jsonl"), CELL),
    "file added": (
        lambda r: shutil.copy(r / WEIGHTS, r / ADAPTER / "more.safetensors"),
        "more.safetensors",
    ),
    "digests": (lambda r: lines(r, "SHA256SUMS", lambda rows: rows[1:]), "is not in SHA256SUMS"),
    "no digests": (lambda r: (r / "SHA256SUMS").write_text("nothing\n"), "SHA256SUMS is damaged"),
}


def test_a_run_matches(run):
    found = verify(run)
    assert found.matches, found.wrong
    assert not found.left_over
    text = "\n".join(found.checked)
    assert "24 answers in 6 files" in text and "6 cells" in text and "2 adapters" in text
    assert "24 rows" in text and "digests of" in text
    assert any("the base: give --backbone" in line for line in found.unchecked)


def test_other_programs_know_the_digests(run):
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=run, check=True)


@pytest.mark.parametrize("name", COMPUTED)
def test_what_does_not_follow_from_the_files_is_found(run, name):
    (run / "SHA256SUMS").unlink()
    change, told = COMPUTED[name]
    change(run)
    found = verify(run)
    assert any(told in line for line in found.wrong), found
    assert any("no SHA256SUMS" in line for line in found.unchecked)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_not_what_was_written_is_found(run, name):
    change, told = WRITTEN[name]
    change(run)
    assert any(told in line for line in verify(run).wrong)


def test_data_that_is_not_at_hand_is_named(run, made, tmp_path):
    shutil.copytree(made / "data", tmp_path / "moved")
    (made / "data").rename(made / "gone")
    try:
        found = verify(run)
        assert found.matches
        assert any("data: not at hand (give --data)" in line for line in found.unchecked)
        assert any("24 rows" in line for line in verify(run, data=tmp_path / "moved").checked)
        file = tmp_path / "moved" / "colours-test.jsonl"
        file.write_text(file.read_text().replace("red", "lila"))
        found = verify(run, data=tmp_path / "moved")
        assert any("colours, test" in line for line in found.wrong)
    finally:
        (made / "gone").rename(made / "data")


def test_a_base_is_compared(run, backbone_folder):
    assert verify(run, backbone=str(backbone_folder)).matches
    found = verify(run, backbone="pocket")
    assert [line for line in found.wrong if "'pocket' is" in line] == found.wrong != []


def test_what_is_left_over_is_named_and_no_fault(run):
    for name in ("notes.txt", "eval/after-01/on-01.part", f"{WEIGHTS}.1-abc.writing"):
        (run / name).write_text("")
    found = verify(run)
    assert found.matches
    assert len(found.left_over) == 3


def test_a_run_that_goes_on_vouches_for_what_it_makes_only(run, made, backbone_folder):
    small = {"benchmark": "folder", "backbone": str(backbone_folder), "data": made / "data"}
    shutil.rmtree(run / "tasks/02-capitals")
    shutil.rmtree(run / "eval/after-02")
    edit(run, "eval/after-01/on-01.jsonl", lambda v: v.update(prediction="elephant"), 1)
    edit(run, "matrix.json", lambda v: v["metrics"].update(dict.fromkeys(v["metrics"])))
    unfinished = verify(run)
    assert any("capitals, which is not finished" in line for line in unfinished.unchecked)
    Run(resolve(LAYER, small, {"out": run})).go()
    wrong = verify(run).wrong
    assert wrong and all("eval/after-01/on-01.jsonl" in line for line in wrong)


def test_a_lesson_matches(learned, backbone_folder):
    found = verify(learned, backbone=str(backbone_folder))
    assert found.matches, found.wrong
    assert any("24 answers in 6 files" in line for line in found.checked), found.checked
    assert not any("gone on from" in line for line in found.unchecked)


LESSON = {
    "score": (
        lambda r: edit(r, "eval/after/01-colours.jsonl", lambda v: v.update(strict=0.5), 0),
        "score differs",
    ),
    "row deleted": (
        lambda r: lines(r, "eval/before/03-yes.jsonl", lambda rows: rows[1:]),
        "have no answer",
    ),
    "result": (
        lambda r: edit(r, "result.json", lambda v: v["tasks"][0].update(after=99.0)),
        "after of colours is 99",
    ),
    "task left out": (
        lambda r: edit(r, "result.json", lambda v: v["tasks"].pop(0)),
        "says nothing of colours",
    ),
    "scorer": (
        lambda r: edit(
            r, "manifest.json", lambda v: v["protocol"]["tasks"][0].update(scorer="anls")
        ),
        "scorer of yes is anls",
    ),
    "answers deleted": (lambda r: (r / "eval/after/02-capitals.jsonl").unlink(), "is missing"),
    "answers added": (
        lambda r: shutil.copy(r / "eval/after/03-yes.jsonl", r / "eval/after/04-no.jsonl"),
        "belongs to no cell",
    ),
    "adapter": (lambda r: flip(r, "adapter/adapter_model.safetensors"), "another digest"),
    "adapter deleted": (lambda r: shutil.rmtree(r / "adapter"), "no adapter"),
    "start": (
        lambda r: edit(
            r,
            "data.json",
            lambda v: next(reversed(v["rows"].values())).update({"undrift.json": ["f"]}),
        ),
        "the adapter that is gone on from",
    ),
    "configuration": (
        lambda r: (r / "learn.yaml").write_text(
            (r / "learn.yaml").read_text().replace("seed: 3", "seed: 4")
        ),
        "seed is 3",
    ),
}


@pytest.mark.parametrize("name", LESSON)
def test_what_does_not_match_of_a_lesson_is_found(learned, name):
    change, told = LESSON[name]
    change(learned)
    found = verify(learned)
    assert any(told in line for line in found.wrong), found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", r"learn.yaml is damaged: from: field required; get it from where"),
        (lambda text: text.replace("format: 1", "format: 99"), "by a newer undrift (format 99"),
        (lambda text: text[: text.index("\nrun:") + 1], "learn.yaml is damaged: run: field requ"),
        (lambda text: text.replace("\ntask:", "\ntusk:"), "learn.yaml is damaged: task: field"),
        (lambda text: text.replace("without: []", "without: 3"), "damaged: without: input should"),
        (lambda text: text + "guards: [{name: x}]\n", "learn.yaml is damaged: guards.0.test: fie"),
        (lambda text: text.replace("  seed: 3", "  seed: true"), "seed: expected a number"),
    ],
)
def test_a_lesson_that_does_not_say_what_was_asked(learned, change, told):
    file = learned / "learn.yaml"
    text = change(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    found = verify(learned)
    assert any(told in line for line in found.wrong), found.wrong
    assert not any("belongs to no cell" in line for line in found.wrong)
    assert start_before(learned / "adapter", "yes") is None or "run:" in text


def test_a_run_whose_configuration_is_empty(run):
    (run / "run.yaml").write_text("")
    found = verify(run)
    assert any("benchmark: field required" in line for line in found.wrong), found.wrong
    assert not any("belongs to no cell" in line for line in found.wrong)


def test_a_lesson_that_goes_on_from_itself_has_nothing_before_it(learned):
    file = learned / "learn.yaml"
    lines = file.read_text().splitlines(keepends=True)
    lines = [f"from: {learned}/adapter\n" if x.startswith("from:") else x for x in lines]
    file.write_text("".join(lines))
    assert start_before(learned / "adapter", "colours") is None


def test_data_that_nothing_here_is_of_is_told(learned, made):
    found = verify(learned, data=made / "data")
    assert not any("--data is for a benchmark" in line for line in found.unchecked)
    content = json.loads((learned / "adapter/undrift.json").read_text())
    content["learned"] = [note for note in content["learned"] if "benchmark" not in note]
    (learned / "adapter/undrift.json").write_text(json.dumps(content))
    found = verify(learned, data=made / "data")
    assert any("--data is for a benchmark" in line for line in found.unchecked), found


def test_the_command(run, learned):
    done = CliRunner().invoke(app, ["verify", str(run), str(learned)])
    assert done.exit_code == 0
    assert done.output.count("all that was checked matches") == 2
    edit(run, CELL, lambda v: v.update(strict=0.5), 1)
    done = CliRunner().invoke(app, ["verify", str(run), "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 1
    assert not told["matches"] and any(CELL in line for line in told["wrong"])
    assert told["run"] == str(run)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RunDirError, match="is not a run"):
        verify(tmp_path)
