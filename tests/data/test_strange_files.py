"""What is no file in the place of one: refused in one line that names it, and never waited for."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.strange import KINDS, SAID, at_once, put
from undrift.data.benchmarks import folder
from undrift.data.instructions import read_examples
from undrift.data.picture_decoding import open_picture, survey
from undrift.data.picture_folder import PictureFolder, existing
from undrift.data.published_benchmark import find_published, questions_in, questions_of
from undrift.data.row_files import read_json, read_rows
from undrift.errors import UndriftError
from undrift.run.config import load_yaml, read_order, run_file
from undrift.run.image_features import FeatureStore
from undrift.scoring import read_predictions

FIXTURES = Path(__file__).parents[1] / "fixtures"
PICTURE_ROW = [{"id": 1, "image": "x.png", "text": "Which?", "answer": "red"}]


def _row_about(path):
    rows = path.with_name("rows.json")
    rows.write_text(json.dumps(PICTURE_ROW))
    return read_examples(rows, PictureFolder(path.parent))


def _second_file(path):
    root = Path(shutil.copytree(FIXTURES / "coin", path.parent / "coin"))
    (file,) = root.glob("**/TextVQA_0.5.1_val.json")
    file.unlink()
    path.rename(file)
    return questions_in(find_published("coin/TextVQA"), root)


DOORS = {
    "a row's picture": ("x.png", _row_about),
    "a picture opened": ("x.png", open_picture),
    "a small picture": ("x.png", lambda path: open_picture(path, 8)),
    "kept features": ("x.png", lambda p: FeatureStore(p.parent, torch.zeros).prepare([p])),
    "rows of an array": ("x.json", lambda path: list(read_rows(path))),
    "rows of lines": ("x.jsonl", lambda path: list(read_rows(path))),
    "rows of a table": ("x.parquet", lambda path: list(read_rows(path))),
    "a whole file": ("x.json", read_json),
    "a file that is sought": ("x.json", lambda path: existing(path.parent, ["x.json"])),
    "a second file": ("x.json", _second_file),
    "published questions": (
        "x.json",
        lambda path: questions_of(find_published("coin/ScienceQA"), path),
    ),
    "a configuration": ("x.yaml", load_yaml),
    "a configuration by name": ("x.yaml", lambda path: load_yaml(run_file(path))),
    "an order": ("x.txt", lambda path: read_order(str(path))),
    "a list of tasks": ("tasks.yaml", lambda path: folder.sources(path.parent)),
    "a list of tasks by name": ("x.yaml", lambda path: folder.sources(path)),
    "a task's rows": ("birds/train.json", lambda path: folder.benchmark(path.parents[1])),
    "predictions": ("x.jsonl", read_predictions),
    "a folder's predictions": ("merge.jsonl", lambda path: read_predictions(path.parent)),
}


@pytest.mark.foreign("2.5")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_no_door_lets_it_in(tmp_path, door, kind):
    name, enter = DOORS[door]
    path = put(tmp_path / name, kind)
    with at_once(), pytest.raises(UndriftError) as raised:
        enter(path)
    said = str(raised.value)
    assert "\n" not in said and re.search(r"x\.|tasks|train|merge|TextVQA_0", said)
    assert SAID[kind] in said or (kind == "device" and "leads out of" in said)


@pytest.mark.foreign("2.5")
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_are_none_are_surveyed_and_skipped(tmp_path, kind):
    good = tmp_path / "good.png"
    Image.new("RGB", (3, 2)).save(good)
    with at_once():
        found = survey([put(tmp_path / "x.png", kind), good])
    assert found.sizes == {good: (3, 2)}
    assert SAID[kind] in found.unreadable[tmp_path / "x.png"]


@pytest.fixture
def doctor(tmp_path, monkeypatch, command_line):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        with at_once(60):
            return command_line("doctor", *words)

    return run


@pytest.mark.foreign("2.5")
@pytest.mark.parametrize("kind", KINDS)
def test_doctor_lists_such_a_picture_and_looks_on(tmp_path, doctor, kind):
    task = tmp_path / "data" / "birds"
    rows = [{**PICTURE_ROW[0], "id": n, "image": f"{n}.png"} for n in range(4)]
    task.mkdir(parents=True)
    for n in range(4):
        Image.new("RGB", (40, 30), (n, 0, 0)).save(task / f"{n}.png")
    put(task / "2.png", kind)
    (task / "train.json").write_text(json.dumps(rows))
    status, out, err = doctor("folder", "--data", tmp_path / "data")
    assert status == 1, err
    if kind == "device":  # the link leads out of the folder
        assert "1 picture outside the pictures' folder" in out and "row 3" in out
    else:
        assert "1 picture is not there" in out and SAID[kind] in out and "row 3" in out
    assert "train 4" in out and "pictures of 40 x 30 pixels" in out


@pytest.mark.foreign("2.5")
def test_a_dataset_with_a_fifo_in_it_or_files_elsewhere_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    for name in ("fifo", "elsewhere"):
        datasets.Dataset.from_list([row]).save_to_disk(tmp_path / name)
    (arrow,) = (tmp_path / "fifo").glob("*.arrow")
    put(arrow, "fifo")
    with at_once(), pytest.raises(UndriftError, match=r"arrow is a fifo"):
        read_examples(tmp_path / "fifo", PictureFolder(tmp_path))
    state = tmp_path / "elsewhere/state.json"
    content = json.loads(state.read_text())
    os.mkfifo(tmp_path / "x")
    content["_data_files"] = [{"filename": "../x"}]
    state.write_text(json.dumps(content))
    with at_once(), pytest.raises(UndriftError, match=r"names a file '\.\./x' that is none of"):
        read_examples(tmp_path / "elsewhere", PictureFolder(tmp_path))


def test_a_folder_in_the_place_of_a_picture_is_named(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UndriftError, match=r"no picture .*x\.png: it is a folder"):
        PictureFolder(tmp_path).find("x.png")
    with pytest.raises(UndriftError, match=r"x\.png: it is a directory"):
        open_picture(tmp_path / "x.png")


def test_a_program_is_no_picture(tmp_path):
    """Pillow would start Ghostscript for it."""
    path = tmp_path / "x.eps"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UndriftError, match="PostScript"):
        open_picture(path)


def test_only_the_first_of_many_pages_is_read(tmp_path):
    pages = [Image.new("L", (5, 4), n % 250) for n in range(500)]
    for suffix in ("tiff", "gif"):
        path = tmp_path / f"x.{suffix}"
        pages[0].save(path, save_all=True, append_images=pages[1:])
        with at_once(5):
            assert open_picture(path).size == (5, 4)


def test_a_file_is_read_up_to_a_bound_and_only_if_it_is_utf8(tmp_path):
    from undrift.untrusted import NotAFile, read_regular, read_text

    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(path) == "abc" and read_regular(path, 6) == b"\xef\xbb\xbfabc"
    with pytest.raises(NotAFile, match="more than 5 bytes"):
        read_regular(path, 5)
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing
    with at_once(5), pytest.raises(UndriftError, match="more than 4,294,967,296 bytes"):
        read_json(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(UndriftError, match=r"not UTF-8 .byte 0xff at 2"):
        read_json(path)
