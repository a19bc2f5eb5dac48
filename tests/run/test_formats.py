"""Every file that undrift writes says which format it has, but for those that belong to others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.run.own import list_tasks, write_task
from undrift.cli.compare import compare
from undrift.cli.report import report
from undrift.data.benchmarks.folder import OwnTask
from undrift.diagnose.questions import diagnose
from undrift.run import trainer
from undrift.run.adapters import open_adapter, origin_of
from undrift.run.config import resolve
from undrift.run.evaluate import examine
from undrift.run.learn import Learn, start_from
from undrift.run.learned_tasks import find_again
from undrift.run.progress import Progress
from undrift.run.task_loop import Run

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

BELONGS_TO_OTHERS = {
    "adapter_config.json": "PEFT's",
    "README.md": "PEFT's model card",
    "trainer_state.json": "transformers'; the files beside it in the snapshot have a format",
    "DONE": "an empty mark",
    "SHA256SUMS": "of the format that coreutils read",
    "report.html": "a page for people",
    "comparison.md": "a table for people",
}
NO_PLACE_FOR_IT = {".svg", ".pdf", ".webp", ".png"}  # figures and pictures


def without_format(folder: Path) -> list[str]:
    """List the files below a folder that should say their format and do not."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name in BELONGS_TO_OTHERS or file.suffix in NO_PLACE_FOR_IT:
            continue
        if "tfevents" in file.name:
            continue
        if not _says(file):
            found.append(str(file.relative_to(folder)))
    return found


def _says(file: Path) -> bool:
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get("undrift_format") == "1"
    text = file.read_text()
    if file.suffix == ".json":
        return json.loads(text).get("format") == 1
    if file.suffix == ".yaml":
        return text.startswith("format: 1\n")
    if file.suffix in (".jsonl", ".part"):
        return all(json.loads(line).get("format") == 1 for line in text.splitlines())
    return False


@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_file_of_a_run_and_of_what_follows_has_a_format(
    drawn, backbone_folder, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    for name in ("colours", "capitals"):
        write_task(data, name)
    list_tasks(data)
    out = tmp_path / "out"
    small = {
        "benchmark": "folder",
        "method": {"name": "same", "experts": 2, "rank": 2},
        "backbone": str(backbone_folder),
        "data": data,
        "out": out / "run",
        "train": {"batch_size": 4, "max_steps": 2, "checkpoint_steps": 1},
        "report_to": "tensorboard",
    }
    kept: dict[str, list[str]] = {}
    real = trainer.save_snapshot

    def looked(taught, method, folder):
        real(taught, method, folder)
        kept.setdefault("snapshot", without_format(folder))

    monkeypatch.setattr(trainer, "save_snapshot", looked)
    Run(resolve(small)).go()
    assert kept == {"snapshot": []}
    diagnose(out / "run", data=data, probe=2, rerouted="colours")
    if drawn:  # pages and their figures take most of the time
        report([out / "run"], None)
        compare([out / "run"], out=out / "both", markdown=True)
    adapter = out / "run/tasks/02-capitals/adapter"
    tasks = [task for task, _ in find_again(origin_of(adapter)["learned"], Progress())]
    examine(open_adapter(adapter, device="cpu"), tasks, out / "asked", 4, Progress())
    write_task(tmp_path / "more", "colours")
    file = tmp_path / "more/colours.jsonl"
    own = OwnTask("more", file, file.parent, max_new_tokens=6)
    Learn(start_from(str(adapter)), own, out / "learned", held_out=0.5).go()
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert {
        "run.yaml", "learn.yaml", "manifest.json", "matrix.json", "result.json", "undrift.json",
        "train.jsonl", "on-01.jsonl", "on-01.json", "01-colours.jsonl", "asked.json",
        "colours.jsonl", "routes.json", "experts.json", "causes.json", "reroute.json",
        "summary.json", "adapter_model.safetensors",
    } - names <= {"on-01.json", *(() if drawn else ("summary.json",))}  # fmt: skip
    assert without_format(out) == []
    assert without_format(tmp_path / "cache") == []
    assert not [name for name in names if re.search(r"\.(part|writing)$", name)]


def test_the_list_can_fail(tmp_path):
    (tmp_path / "a.json").write_text('{"b": 1}')
    (tmp_path / "b.txt").write_text("text")
    assert without_format(tmp_path) == ["a.json", "b.txt"]
