"""Rows of messages: from a saved dataset, and from parquet, with the pictures inside."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from undrift.data.benchmarks.folder import benchmark
from undrift.data.doctor import examine
from undrift.data.instructions import examples_of, read_examples
from undrift.data.picture_folder import PictureFolder
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
    examples = read_examples(path, PictureFolder(tmp_path))
    assert [e.id for e in examples] == ["1", "2", "3"]
    assert [e.question for e in examples] == ["which colour?", "which colour?", "say hello"]
    assert [e.answers for e in examples] == [("red",), ("blue",), ("hello",)]
    assert [len(e.images) for e in examples] == [1, 1, 0]
    assert examples[0].images[0].read_bytes() == png("red")  # as stored, never encoded anew
    assert examples[1].images[0].suffix == ".png"
    again = read_examples(path, PictureFolder(tmp_path))
    assert [e.images for e in again] == [e.images for e in examples]


def test_a_folder_of_datasets_is_a_benchmark(tmp_path):
    made = datasets.DatasetDict({"train": dataset(), "test": dataset()})
    made.save_to_disk(tmp_path / "data" / "colours")
    (task,) = benchmark(tmp_path / "data", progress=False).tasks
    assert (task.name, len(task.train), len(task.test)) == ("colours", 3, 3)
    report = examine("folder", tmp_path / "data")
    assert [(split.name, split.rows) for split in report.splits] == [("train", 3), ("test", 3)]
    assert {finding.check for finding in report.findings if finding.severity != "note"} == {
        "overlap"  # the test is the training set
    }


def test_what_is_no_conversation_is_told():
    nowhere = PictureFolder(Path("nowhere"))
    for kind, said in (
        ("video", "of type 'video': that is not"),
        ("tool", "text and image; found"),
    ):
        with pytest.raises(DataError, match=said):
            examples_of({"messages": [{"role": "user", "content": [{"type": kind}]}]}, nowhere)
    with pytest.raises(DataError, match="expected turns from human, gpt"):
        examples_of({"messages": "hello"}, nowhere)


def test_a_tool_or_a_picture_that_is_not_there_makes_a_row_bad(tmp_path):
    made = rows()
    made["messages"][0].insert(0, {"role": "tool", "content": [{"type": "text", "text": "x"}]})
    made["images"][1] = [{"bytes": None, "path": "gone.png"}]
    datasets.Dataset.from_dict(made).to_parquet(tmp_path / "train.parquet")
    bad = []
    examples = read_examples(tmp_path / "train.parquet", PictureFolder(tmp_path), bad=bad)
    assert [e.id for e in examples] == ["3"]
    assert "turns from human, gpt" in bad[0].reason and "tool" in bad[0].reason
    assert "there is no picture" in bad[1].reason and "gone.png" in bad[1].reason
