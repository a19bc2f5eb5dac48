"""Files of rows, and pictures by their names: what is read, and what each error says."""

from __future__ import annotations

import builtins
import json
import os

import pytest

from undrift.data.picture_folder import PictureFolder, existing
from undrift.data.row_files import BadRow, read_json, read_rows
from undrift.errors import DataError, MissingExtra


def rows_of(path, text, **options):
    path.write_text(text, encoding="utf-8")
    return list(read_rows(path, **options))


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "images"
    for name in ("a/000001.jpg", "b/000001.jpg", "b/000002.JPG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not even a picture: nothing is opened")
    return PictureFolder(root)


def test_an_array_lines_and_parquet_give_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": 1, "image": "a.jpg"}, {"id": 2, "image": None}]
    expected = [(1, {"id": 1, "image": "a.jpg"}), (2, {"id": 2})]
    assert rows_of(tmp_path / "x.json", json.dumps(rows)) == expected
    assert rows_of(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)) + "\n") == expected
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert list(read_rows(tmp_path / "x.parquet")) == expected


def test_a_byte_order_mark_and_a_line_separator_inside_a_text_do_no_harm(tmp_path):
    text = '\ufeff{"text": "one\u2028line"}\r\n\r\n{"text": "two"}'
    found = rows_of(tmp_path / "x.jsonl", text)
    assert found == [(1, {"text": "one\u2028line"}), (3, {"text": "two"})]


def test_damaged_json_is_named_with_line_and_column(tmp_path):
    with pytest.raises(DataError, match=r"x\.json is damaged at line 3, column 11: .*delimiter"):
        rows_of(
            tmp_path / "x.json", '[\n {"id": 1},\n {"id": 2\n "text": ""}]'.replace("2\n ", "2 ")
        )
    with pytest.raises(DataError, match=r"x\.jsonl, row 2: no JSON at line 2, column 8"):
        rows_of(tmp_path / "x.jsonl", '{"id": 1}\n{"id": }\n')


def test_bad_lines_can_be_collected_but_not_a_broken_array(tmp_path):
    bad = []
    found = rows_of(tmp_path / "x.jsonl", '{"id": 1}\n{"id"\n[2]\n{"id": 3}', bad=bad)
    assert [row["id"] for _, row in found] == [1, 3]
    assert [(row.file.name, row.row) for row in bad] == [("x.jsonl", 2), ("x.jsonl", 3)]
    assert str(bad[1]).endswith("x.jsonl, row 3: expected an object, found list '[2]'")
    with pytest.raises(DataError, match="damaged"):
        rows_of(tmp_path / "x.json", '[{"id": 1}, {"id"', bad=[])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[1]", "row 1: expected an object, found int '1'"),
        ("x.txt", "id,text", r"expected JSON, a table ending in \.csv or \.tsv, parquet"),
        ("x.parquet", "no parquet", "cannot read .*x.parquet"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path, name, text, message):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, text)


def test_what_is_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe[")
    for path in (tmp_path / "x.json", tmp_path / "absent.json"):
        with pytest.raises(DataError, match=f"cannot read .*{path.name}"):
            read_json(path)


def test_parquet_without_pyarrow_names_the_command_that_mends_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=r"pip install 'undrift\[parquet\]'"):
        list(read_rows(tmp_path / "x.parquet"))


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "test_3000.json").write_text("[]")
    assert existing(tmp_path / "task", ("test.json", "test_3000.json")).name == "test_3000.json"
    with pytest.raises(DataError, match=r"test\.json does not exist.*nearest name is 'test_3000"):
        existing(tmp_path / "task", ("test.json",))
    with pytest.raises(DataError, match=r"'tsk' is missing in .*nearest name is 'task'"):
        existing(tmp_path / "tsk", ("test.json",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"\(nor b\.json\); 'a.json' is missing in .*empty, which is empty"
    ):
        existing(tmp_path / "empty", ("a.json", "b.json"))


# ---------------------------------------------------------------- pictures


def test_pictures_are_found_by_their_whole_name(pictures):
    assert pictures.find("a/000001.jpg") == pictures.root / "a" / "000001.jpg"
    assert pictures.find("./b//000001.jpg") == pictures.root / "b" / "000001.jpg"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("000001.jpg", "'000001.jpg' is missing in .*images, where the nearest name is '[ab]'"),
        ("c/000001.jpg", "'c' is missing in .*images, where the nearest name is '[ab]'"),
        ("b/000002.jpg", "'000002.jpg' is missing in .*b, where the nearest name is '000002.JPG'"),
        ("a", "there is no picture .*a"),
        ("a/000001.jpg/x.jpg", "there is no picture"),
    ],
)
def test_there_is_no_fallback_to_the_base_name(pictures, name, message):
    """Prism looks for the base name anywhere, and shows the wrong picture without a word."""
    with pytest.raises(DataError, match=message):
        pictures.find(name)


def test_the_nearest_name_is_looked_for_a_hundred_times(pictures):
    """Thousands may be missing, and each comparison takes milliseconds."""
    said = []
    for n in range(101):
        with pytest.raises(DataError, match=f"there is no picture .*a/{n}.jpg") as error:
            pictures.find(f"a/{n}.jpg")
        said.append("the nearest name is" in str(error.value))
    assert said == [True] * 100 + [False]


@pytest.mark.parametrize(
    "name",
    ["../images/a/000001.jpg", "a/../../x.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", "./"],
)
def test_names_stay_inside_the_root(pictures, name):
    with pytest.raises(DataError, match="is not a path inside"):
        pictures.find(name)
    with pytest.raises(DataError, match="is not a path inside"):
        pictures.place("a/\0.jpg")
    assert pictures.place("./absent/1.jpg") == pictures.root / "absent" / "1.jpg"


def test_links_stay_inside_the_root(pictures, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").write_bytes(b"")
    (pictures.root / "folder").symlink_to(tmp_path / "outside")
    (pictures.root / "b" / "x.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    (pictures.root / "b" / "inner.jpg").symlink_to(pictures.root / "a" / "000001.jpg")
    (pictures.root / "b" / "dangling.jpg").symlink_to(pictures.root / "a" / "absent.jpg")
    (pictures.root / "b" / "loop.jpg").symlink_to(pictures.root / "b" / "loop.jpg")
    for name in ("folder/x.jpg", "b/x.jpg"):
        with pytest.raises(DataError, match="is a link that leads out of"):
            pictures.find(name)
    assert pictures.find("b/inner.jpg").is_file()
    for name in ("b/dangling.jpg", "b/loop.jpg"):
        with pytest.raises(DataError, match=r"there is no picture|cannot follow"):
            pictures.find(name)


def test_the_root_itself_may_be_a_link(pictures, tmp_path):
    (tmp_path / "data").symlink_to(pictures.root)
    assert PictureFolder(tmp_path / "data").find("a/000001.jpg").is_file()


def test_a_missing_root_is_told(tmp_path):
    with pytest.raises(DataError, match="'absent' is missing"):
        PictureFolder(tmp_path / "absent").find("a/1.jpg")


def test_a_folder_is_listed_once(pictures, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    for _ in range(3):
        pictures.find("b/000001.jpg")
        with pytest.raises(DataError):
            pictures.find("b/000003.jpg")
    assert listed == [pictures.root / "b"]


def test_a_bad_row_reads_well(tmp_path):
    assert str(BadRow(tmp_path, 3, "so")) == f"{tmp_path}, row 3: so"
