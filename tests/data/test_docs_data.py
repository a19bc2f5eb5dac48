"""docs/data.md: every block of it is read as it stands, so that the page cannot lie."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from undrift.data.benchmarks.folder import benchmark, own_task
from undrift.data.instructions import read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.row_layouts import LAYOUTS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: ([\w.]+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "birds/photos"):
        Path(folder).mkdir(parents=True)
        for name in "12":
            Image.new("RGB", (40, 30)).save(Path(folder, f"{name}.png"))


def blocks(kind):
    found = [(name, text) for language, name, text in BLOCKS if language == kind]
    assert found
    return found


def test_every_block_of_rows_is_read(tmp_path):
    for kind in ("json", "csv"):
        for name, text in blocks(kind):
            if not name:
                path = tmp_path / f"rows.{kind}"
                path.write_text(text)
                examples = read_examples(path, PictureFolder(tmp_path))
                assert examples and not any(example.extra for example in examples)


def test_there_is_a_row_of_every_layout():
    rows = []
    for name, text in blocks("json"):
        text = text.strip()
        while text and not name:
            row, end = json.JSONDecoder().raw_decode(text)
            rows += row if isinstance(row, list) else [row]
            text = text[end:].strip()
    assert [layout.name for layout in LAYOUTS if not any(map(layout.fits, rows))] == []


def test_the_lists_of_tasks_are_read(tmp_path):
    first, second = (text for _, text in blocks("yaml"))
    row = '{"image": "photos/1.png", "question": "Which?", "answer": "A"}'
    for split in ("train", "test"):
        (tmp_path / f"birds/{split}.jsonl").write_text(row)
    (tmp_path / "tasks.yaml").write_text(first)
    assert [task.scorer for task in benchmark(tmp_path, progress=False).tasks] == ["letter"]
    for name, text in blocks("json"):
        if name:
            (tmp_path / name).write_text(text)
    (tmp_path / "tasks.yaml").write_text(second)
    boxes, facts = benchmark(tmp_path, progress=False).tasks
    assert boxes.test[0].answers == ("[10, 20, 30, 40]",)
    assert facts.test[0].answers == ("Yes",)


def test_what_python_saves_is_read(tmp_path):
    pytest.importorskip("datasets")
    ((_, text),) = blocks("python")
    exec(text, {})
    for place in ("train.parquet", "train"):
        (example,) = read_examples(tmp_path / place, PictureFolder(tmp_path))
        assert example.answers == ("wren",) and len(example.images) == 1
    assert own_task(tmp_path / "birds").test == tmp_path / "birds" / "test"
