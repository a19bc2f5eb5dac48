"""Rows of messages: from a saved dataset, and from parquet, with the pictures inside."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from undrift.data.benchmarks.folder import benchmark
from undrift.data.files import Pictures
from undrift.data.instructions import read_examples
from undrift.data.messages import as_conversation
from undrift.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "png")
    return file.getvalue()


def rows() -> dict[str, list[object]]:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "which colour?"}]
    plain = [{"type": "text", "text": "say hello"}]
    said = [("red", parts), ("blue", parts), ("hello", plain)]
    return {
        "messages": [
            [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
            for answer, content in said
        ],
        "images": [[{"bytes": png("red")}], [{"bytes": png("blue"), "path": "b.PNG"}], []],
    }


def dataset() -> object:
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": [PART]}],
            "images": datasets.List(datasets.Image()),
        }
    )
    return datasets.Dataset.from_dict(rows(), features=features)


PART = {"type": datasets.Value("string"), "text": datasets.Value("string")}


@pytest.mark.parametrize("kind", ["dataset", "parquet"])
def test_messages_with_pictures_inside(kind, tmp_path):
    if kind == "dataset":
        dataset().save_to_disk(tmp_path / "train")
        path = tmp_path / "train"
    else:
        path = tmp_path / "train.parquet"
        dataset().to_parquet(path)
    examples = read_examples(path, Pictures(tmp_path))
    assert [e.id for e in examples] == ["1", "2", "3"]
    assert [e.question for e in examples] == ["which colour?", "which colour?", "say hello"]
    assert [e.answers for e in examples] == [("red",), ("blue",), ("hello",)]
    assert [len(e.images) for e in examples] == [1, 1, 0]
    assert examples[0].images[0].read_bytes() == png("red")  # as stored, never encoded anew
    assert examples[1].images[0].suffix == ".png"
    again = read_examples(path, Pictures(tmp_path))
    assert [e.images for e in again] == [e.images for e in examples]


def test_a_folder_of_datasets_is_a_benchmark(tmp_path):
    made = datasets.DatasetDict({"train": dataset(), "test": dataset()})
    made.save_to_disk(tmp_path / "data" / "colours")
    (task,) = benchmark(tmp_path / "data", progress=False).tasks
    assert (task.name, len(task.train), len(task.test)) == ("colours", 3, 3)


def test_what_is_no_conversation_is_told():
    with pytest.raises(DataError, match=r"parts of text and image; found .*video"):
        as_conversation({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 1)
    with pytest.raises(DataError, match="list of messages"):
        as_conversation({"messages": "hello"}, 1)


def test_a_system_message_or_a_picture_without_bytes_makes_a_row_bad(tmp_path):
    made = rows()
    made["messages"][0].insert(0, {"role": "system", "content": [{"type": "text", "text": "x"}]})
    made["images"][1] = [{"bytes": None, "path": "gone.png"}]
    datasets.Dataset.from_dict(made).to_parquet(tmp_path / "train.parquet")
    bad = []
    examples = read_examples(tmp_path / "train.parquet", Pictures(tmp_path), bad=bad)
    assert [e.id for e in examples] == ["3"]
    assert "turns from human, gpt" in bad[0].reason and "system" in bad[0].reason
    assert "holds no bytes" in bad[1].reason
