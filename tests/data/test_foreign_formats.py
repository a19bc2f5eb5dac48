"""Files as other programs write them: tables of Excel, parts from the Hub, short floats, names."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from undrift import cli
from undrift.data.benchmarks.folder import benchmark, own_task
from undrift.data.doctor import examine
from undrift.data.instructions import read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.row_files import KEYS, read_rows
from undrift.data.row_layouts import PAIRS
from undrift.data.row_pictures import KEYS as PICTURE_KEYS
from undrift.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for name in ("0.png", "sub/0.png", "a b.png"):
        Image.new("RGB", (8, 6), "red").save(root / name)
    return root


def written(root, content, name="x.csv"):
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root / name


def read(root, content, name="x.csv", **options):
    return read_examples(written(root, content, name), PictureFolder(root), **options)


def said(examples):
    return [(one.question, *one.answers) for one in examples]


TWO = [("Which?", "red"), ("And now?", "blue")]
ROWS = [{"question": question, "answer": answer} for question, answer in TWO]
LINES = [json.dumps(row) for row in ROWS]

# ---------------------------------------------------------------- short floats


@pytest.mark.foreign("3.26")
@pytest.mark.parametrize("kind", ["saved", "parquet"])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_short_floats_read_as_they_were_written(root, kind, bits):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    np = pytest.importorskip("numpy")
    real = {16: pyarrow.float16(), 32: pyarrow.float32(), 64: pyarrow.float64()}[bits]
    values = np.array([0.1, 2.5, 3.0], dtype=f"float{bits}")
    answer = pyarrow.array([*values[:2], None], real)
    boxes = pyarrow.ListArray.from_arrays([0, 2, 3, 3], pyarrow.array(values, real))
    inner = pyarrow.StructArray.from_arrays([boxes, answer], names=["boxes", "score"])
    table = pyarrow.table(
        {"question": ["?", "!", "-"], "answer": answer, "boxes": boxes, "meta": inner}
    )
    if kind == "parquet":
        if bits == 16:
            pytest.importorskip("pyarrow", "15")
        path = root / "x.parquet"
        parquet.write_table(table, path)
    else:
        datasets = pytest.importorskip("datasets")
        path = root / "x"
        datasets.Dataset(table).save_to_disk(path)
    first, second, third = (row for _, row in read_rows(path))
    assert first["answer"] == 0.1 and first["boxes"] == [0.1, 2.5]
    assert first["meta"] == {"boxes": [0.1, 2.5], "score": 0.1}
    assert (second["answer"], second["boxes"], third["boxes"]) == (2.5, [3.0], [])
    assert "answer" not in third and third["meta"] == {"boxes": [], "score": None}
    found = read_examples(path, PictureFolder(root), bad=[])
    assert [one.answers for one in found] == [("0.1",), ("2.5",)]


@pytest.mark.foreign("3.26")
def test_short_floats_in_every_kind_of_column():
    pyarrow = pytest.importorskip("pyarrow")
    from undrift.data.row_files import table_rows

    short = pyarrow.float32()
    columns = {
        "map": pyarrow.array([[("a", 0.1)], None], pyarrow.map_(pyarrow.string(), short)),
        "fixed": pyarrow.array([[0.1, 0.7], None], pyarrow.list_(short, 2)),
        "coded": pyarrow.array([0.1, None], short).dictionary_encode(),
        "odd": pyarrow.array([float("inf"), 1e30], short),
    }
    (_, first), (_, second) = table_rows([pyarrow.table(columns)], {})
    assert first == {"map": [("a", 0.1)], "fixed": [0.1, 0.7], "coded": 0.1, "odd": float("inf")}
    assert second == {"map": None, "fixed": None, "coded": None, "odd": 1e30}


# ---------------------------------------------------------------- CSV and TSV


@pytest.mark.foreign("3.12")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "question, answer\nWhich?,red\nAnd now?,blue\n"),
        ("x.csv", "Question,ANSWER\nWhich?,red\nAnd now?,blue\n"),
        ("x.csv", "question;answer\nWhich?;red\nAnd now?;blue\n"),
        ("x.csv", "sep=;\nquestion;answer\nWhich?;red\nAnd now?;blue\n"),
        ("x.csv", '"sep=|"\r\nquestion|answer\r\nWhich?|red\r\nAnd now?|blue\r\n'),
        ("x.csv", "question,answer\rWhich?,red\rAnd now?,blue\r"),
        ("x.csv", '"question","answer"\r"Which?","red"\r\r"And now?","blue"'),
        ("x.tsv", "question\tanswer\rWhich?\tred\rAnd now?\tblue"),
        ("x.csv", "\n \nquestion,answer\nWhich?,red\nAnd now?,blue\n"),
        ("x.csv", ";;\r\nquestion;answer\r\nWhich?;red\r\n\r\nAnd now?;blue\r\n"),
    ],
)
def test_tables_as_other_programs_write_them(root, name, text):
    found = read(root, text, name)
    assert said(found) == TWO and not any(one.extra for one in found)
    assert [one.id for one in found] == ["1", "2"]


@pytest.mark.foreign("3.12")
def test_names_of_columns(root):
    (found,) = read(root, "Image, system ,Question,Answer,Note\n0.png,Be brief.,?,red,x\n")
    assert found.system == "Be brief." and found.images == (root / "0.png",)
    assert dict(found.extra) == {"Note": "x"}
    (found,) = read(root, "Question,question,answer\nno,?,red\n")
    assert found.question == "?" and dict(found.extra) == {"Question": "no"}
    with pytest.raises(DataError, match="two columns called 'answer'"):
        read(root, "question,Answer,ANSWER\n?,a,b\n")


def test_the_names_that_are_known_are_those_of_the_shapes():
    for pair in PAIRS:
        assert KEYS.issuperset({pair.question, *pair.answers, *filter(None, [pair.more])})
    assert KEYS.issuperset(PICTURE_KEYS)


@pytest.mark.foreign("3.12")
def test_cells(root):
    text = 'question,answers\n?,"[""red"", ""dark red""]"\n?,"[""[1]""]"\n?,[red\n?,NaN\n?, \n'
    bad = []
    found = read(root, text, bad=bad)
    assert [one.answers for one in found] == [
        ("red", "dark red"), ("[1]",), ("[red",), ("NaN",)
    ]  # fmt: skip
    assert [row.row for row in bad] == [5] and "no answer" in bad[0].reason
    text = 'images,question,answer\n"[""0.png"", ""a b.png""]",?,[laughs]\n'
    (found,) = read(root, text)
    assert len(found.images) == 2 and found.answers == ("[laughs]",)


@pytest.mark.foreign("3.12")
def test_quotation_marks_in_tables(root):
    head = "question\tanswer\nWhich?\tred\n"
    bad = []
    found = read(root, f'{head}"Red" is what?\ta colour\nAnd now?\tblue\n', "x.tsv", bad=bad)
    assert said(found) == TWO and [row.row for row in bad] == [2]
    assert "line 3: " in bad[0].reason and "double those inside" in bad[0].reason
    for text in (
        f'{head}a\t"red\nb\tblue"\nAnd now?\tblue\n',  # would be one row
        f'{head}"red\ta\n"blue\tb\n',
        f'{head}b\tb\n\n"red\ta\nb\tblue\n',
    ):
        with pytest.raises(DataError, match=r"x\.tsv is damaged at line [35] to [46]: "):
            read(root, text, "x.tsv", bad=[])
    (_, found) = read(root, f'{head}And now?\t"blue\nor green"\n', "x.tsv")
    assert found.answers == ("blue\nor green",)
    with pytest.raises(DataError, match=r"x\.csv is damaged at line 2 to 3: unexpected end"):
        read(root, 'question,answer\nWhich?,"red\nAnd now?,blue\n', bad=[])
    with pytest.raises(DataError, match=r"the header of .*x\.csv is damaged"):
        read(root, 'question,"answer\n')


# ---------------------------------------------------------------- JSON


@pytest.mark.foreign("3.13")
@pytest.mark.parametrize(
    "text",
    [
        f"{LINES[0]}{LINES[1]}\n{LINES[0]}",
        f"{LINES[0]},{LINES[1]}, {LINES[0]}",
        f"{LINES[0]},\n{LINES[1]},{LINES[0]}",
        ",\n".join(json.dumps(row, indent=1) for row in [*ROWS, ROWS[0]]),
        f"{LINES[0]}\n{LINES[1]}{LINES[0]}",
        f"{LINES[0]},\n{LINES[1]},\n{LINES[0]},\n",
        f"\r\n{LINES[0]},\r\n\r\n{LINES[1]} , \r\n{LINES[0]}\r\n",
        f"{LINES[0]}\r\n \r\n{LINES[1]}\r\n\r\n{LINES[0]}",
        f"{LINES[0]}\r{LINES[1]}\r{LINES[0]}\r",
    ],
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_rows_of_json_in_every_order(root, text, name):
    bad = []
    found = read(root, text, name, bad=bad)
    assert said(found) == [*TWO, TWO[0]] and not bad
    assert said(read(root, f"{LINES[0]},\n{LINES[1]}\n", name)) == TWO


@pytest.mark.foreign("3.13")
def test_a_second_row_on_a_later_line_is_named(root):
    bad = []
    text = "\n".join([*LINES, f"{LINES[0]},", LINES[1] + LINES[0], LINES[1]])
    found = read(root, text, "x.jsonl", bad=bad)
    assert len(found) == 3 and [row.row for row in bad] == [3, 4]
    assert all("a row a line, and nothing behind it" in row.reason for row in bad)
    bad = []
    assert said(read(root, "{oops\n" + "\n".join(LINES), "x.jsonl", bad=bad)) == TWO
    assert [row.row for row in bad] == [1]


# ---------------------------------------------------------------- parts from the Hub


def parts(folder, split, counts, suffix="parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, count in enumerate(counts):
        rows = [{"question": f"{split} {number} {n}?", "answer": "red"} for n in range(count)]
        made += [row["question"] for row in rows]
        path = folder / f"{split}-{number:05}-of-{len(counts):05}.{suffix}"
        if suffix == "parquet":
            pyarrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(
                pyarrow.Table.from_pylist(rows), path
            )
        else:
            path.write_text("\n".join(map(json.dumps, rows)))
    return made


@pytest.mark.foreign("3.16")
@pytest.mark.foreign("3.17")
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("inside", ["", "data"])
def test_parts_are_read_as_one_split(root, inside, suffix):
    folder = root / "birds" / inside
    train = parts(folder, "train", [3, 2, 4], suffix)
    test = parts(folder, "test", [2], suffix)
    (root / "birds/README.md").write_text("x")
    listed = root.parent / "listed.yaml"
    listed.write_text("- {name: listed, train: data/birds}")
    for place in (root / "birds", root, listed):
        (task,) = benchmark(place, progress=False).tasks
        assert task.name == ("listed" if place == listed else "birds")
        assert [one.question for one in task.train] == train
        assert [one.question for one in task.test] == test
        assert [one.id for one in task.train] == [str(n) for n in range(1, 10)]
    for place in (root, root / "birds"):
        report = examine("folder", place)
        assert report.sound and [(s.name, s.rows) for s in report.splits] == [
            ("train", 9), ("test", 2)
        ]  # fmt: skip
        (unread,) = (f.message for f in report.findings if f.check == "unread file")
        assert "README.md" in unread and "of-0" not in unread
    own = own_task(root / "birds")
    assert (own.name, own.images) == ("birds", root / "birds")
    (folder / "other-00000-of-00001.csv").write_text("question,answer\n?,red\n")
    for place in (root, root / "birds"):
        told = [f.message for f in examine("folder", place).findings if f.check == "unread file"]
        assert any("other-00000-of-00001.csv" in message for message in told)


@pytest.mark.foreign("3.16")
def test_parts_that_are_not_all_there(root, monkeypatch, capsys):
    parts(root / "birds", "train", [3, 2, 4], "jsonl")
    first, second, third = sorted((root / "birds").iterdir())
    with pytest.raises(DataError, match=r"a part of a table; name the first, train-00000-of-0000"):
        list(read_rows(second))
    third.unlink()
    for place in (root / "birds", root, first):
        with pytest.raises(DataError, match=r"one of 3 parts.*has those of.*'00000, 00001'; put"):
            benchmark(place, progress=False)
    monkeypatch.setattr(sys, "argv", ["undrift", "doctor", str(root)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code and "one of 3 parts" in "".join(capsys.readouterr())
    second.rename(root / "birds/test.jsonl")  # beside a part
    with pytest.raises(DataError, match="one of 3 parts"):
        benchmark(root, progress=False)
    first.rename(root / "birds/train.jsonl")
    (task,) = benchmark(root, progress=False).tasks
    assert (len(task.train), len(task.test)) == (3, 2)


@pytest.mark.foreign("3.16")
def test_parts_are_looked_into_as_one_file(root):
    parts(root, "rows", [3, 2], "jsonl")
    written(root, LINES[0], "a.jsonl")
    report = examine("folder", root)
    assert sorted(report.content()["tasks"]) == ["a.jsonl", "rows-00000-of-00002.jsonl"]


@pytest.mark.foreign("3.16")
def test_a_split_in_the_folder_and_parts_in_data_are_not_mixed(root):
    parts(root / "birds/data", "train", [3, 2], "jsonl")
    written(root / "birds", LINES[0], "test.json")
    with pytest.raises(DataError, match=r"birds/train\.json does not exist"):
        benchmark(root, progress=False)


@pytest.mark.foreign("3.16")
def test_parts_beside_a_whole_are_told(root):
    parts(root, "train", [3, 2], "jsonl")
    written(root, LINES[0], "train.json")
    with pytest.raises(DataError, match=r"holds train-00000-of-00002\.jsonl and train\.json, and"):
        benchmark(root, progress=False)


# ---------------------------------------------------------------- names of pictures


@pytest.mark.foreign("3.32")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("0.png ", "0.png"),
        (" 0.png\n", "0.png"),
        ("sub%2F0.png", "sub/0.png"),
        ("a%20b.png", "a b.png"),
        ("a%20b.png ", "a b.png"),
    ],
)
def test_names_with_spaces_and_percents(root, name, file):
    pictures = PictureFolder(root)
    assert pictures.find(name) == root / file
    (root / name.replace("%2F", "%2f").strip("\n")).write_bytes(b"x")
    asked = name.replace("%2F", "%2f").strip("\n")
    assert PictureFolder(root).find(asked) == root / asked  # a name as it stands goes before


@pytest.mark.foreign("3.32")
@pytest.mark.parametrize("name", ["sub/../0.png", "sub%2F..%2F0.png", "..%2F0.png", "%00.png"])
def test_names_that_lead_up_are_refused(root, name):
    with pytest.raises(DataError, match="is not a path inside"):
        PictureFolder(root).find(name)


@pytest.mark.foreign("3.32")
def test_a_name_that_is_nowhere_is_told_as_it_stands(root):
    with pytest.raises(DataError, match=r"no picture .*/c%20d\.png; "):
        PictureFolder(root).find("c%20d.png")
