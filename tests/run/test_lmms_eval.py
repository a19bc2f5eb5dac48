"""lmms-eval's own command, on a task of pictures of one's own: the answers are undrift's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needed import needed
from tests.run.own import write_rows
from undrift.run.adapters import open_adapter
from undrift.run.evaluate import ask, examine
from undrift.run.learned_tasks import find_again
from undrift.run.progress import Progress

pytestmark = pytest.mark.slow
needed("lmms_eval")

ROOT = Path(__file__).parents[2]
TASK = """\
task: own_colours
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {root}/test.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: !function colours.pictures
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6{more}}}
process_results: !function colours.right
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
CODE = """\
def pictures(doc):
    return [doc["image"]]

def right(doc, results):
    return {"acc": float(results[0] == doc["answer"])}
"""


@pytest.fixture
def learned(lesson, data, tmp_path):
    """An adapter whose answers to every other test question are made the right ones."""
    lesson("colours").go()
    file = data / "colours-test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    adapter = open_adapter(tmp_path / "colours")
    for row in rows[::2]:
        row["answer"] = ask(adapter, row["text"], (data / row["image"],), 6)
    assert all(row["answer"] for row in rows)
    write_rows(file, rows)
    return tmp_path / "colours"


def own_task(folder: Path, data: Path, more: str = "") -> Path:
    """Write the test questions as a task of lmms-eval's, the pictures inside a table."""
    datasets = needed("datasets")
    folder.mkdir()
    rows = [json.loads(line) for line in (data / "colours-test.jsonl").read_text().splitlines()]
    table = datasets.Dataset.from_list(
        [{"image": str(data / r["image"]), "question": r["text"], "answer": r["answer"]}
         for r in rows]
    )  # fmt: skip
    table.cast_column("image", datasets.Image()).to_parquet(str(folder / "test.parquet"))
    (folder / "colours.yaml").write_text(TASK.format(root=folder, more=more))
    (folder / "colours.py").write_text(CODE)
    return folder


def lmms_eval(task: Path, out: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    words = ["--model", "undrift", "--model_args", arguments, "--tasks", "own_colours"]
    words += ["--include_path", str(task), "--batch_size", "3", "--device", "cpu"]
    home = {"HF_HOME": str(out.parent / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lmms_eval", *words, "--output_path", str(out), "--log_samples"],
        capture_output=True,
        text=True,
        env={**os.environ, **home, "PYTHONPATH": str(ROOT / "src")},
        cwd=out.parent,
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    """What it said; it ends with status 0 after most errors."""
    return done.stdout + done.stderr


def result(out: Path) -> tuple[float, list[str]]:
    """The accuracy, and what was answered in the order of the documents."""
    (file,) = out.rglob("*_results.json")
    (samples,) = out.rglob("*_samples_own_colours.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    said = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return json.loads(file.read_text())["results"]["own_colours"]["acc,none"], said


def test_its_accuracy_is_that_of_undrift_eval(learned, data, backbone_folder, tmp_path):
    adapter = open_adapter(learned)
    ((task, changed),) = find_again(adapter.origin["learned"], Progress())
    assert changed  # the answers were written anew
    scores = examine(adapter, [task], tmp_path / "asked", 3, Progress())
    rows = [
        json.loads(line) for line in (tmp_path / "asked/colours.jsonl").read_text().splitlines()
    ]
    ours = tmp_path / "task"
    done = lmms_eval(own_task(ours, data), tmp_path / "out", f"adapter={learned}")
    assert "|own_colours|" in told(done), told(done)[-3000:]
    accuracy, said = result(tmp_path / "out")
    assert said == [row["prediction"] for row in rows]
    assert 100 * accuracy == scores["colours"]["strict"] == 50.0
    done = lmms_eval(ours, tmp_path / "bare", f"backbone={backbone_folder}")
    assert "|own_colours|" in told(done), told(done)[-3000:]
    assert result(tmp_path / "bare")[1] != said


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ("adapter={adapter},speed=3", "", "--model undrift does not know speed"),
        ("max_new_tokens=2", "", "say what is asked: --model_args adapter=PATH"),
        ("adapter={adapter}", ", do_sample: true, temperature: 0.7", "undrift answers greedily"),
    ],
)
def test_what_it_cannot_do_is_said(lesson, data, tmp_path, arguments, more, message):
    lesson("colours").go()
    task = own_task(tmp_path / "task", data, more)
    done = lmms_eval(task, tmp_path / "out", arguments.format(adapter=tmp_path / "colours"))
    assert message in told(done)
    assert not list((tmp_path / "out").rglob("*_results.json"))
