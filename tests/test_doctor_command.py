"""`undrift doctor`, as a user meets it: three exit statuses, a page, and JSON for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from tests.data.damaged import bomb

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def doctor(tmp_path, monkeypatch, command_line):
    """Run the command in an empty folder; return status, output, errors."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        return command_line("doctor", *words)

    return run


@pytest.fixture
def spoiled(tmp_path):
    """MLLM-DCL with five pictures gone and a bomb."""
    root = Path(shutil.copytree(FIXTURES / "mllm_dcl", tmp_path / "mllm_dcl"))
    for name in ("train1", "train2", "train3", "test100", "test101"):
        (root / "RS/images" / f"{name}.png").unlink()
    bomb(root / "Fin/images/test_100.png", 30_000, 30_000)
    return root


def test_clean_data_is_ready(doctor):
    status, out, err = doctor("coin", "--data", FIXTURES / "coin", "--backbone", "pocket")
    assert status == 0, err
    for said in (
        "ScienceQA  train 4, test 3 rows, 4 pictures",
        "4 rows, and 12,726 were published",
        "prompts of up to 68 tokens, answers of up to 1 (pocket)",
        "pictures of 12 x 8 pixels",
        "1 file name shared by pictures of several folders",
        "ready: 0 errors, 0 warnings",
    ):
        assert said in out


def test_findings_are_told_with_places_and_what_to_do(doctor, spoiled):
    status, out, err = doctor("mllm_dcl", "--data", spoiled, "--workers", 1)
    assert status == 1
    for said in (
        "3 pictures are not there",
        "train.json, row 1: there is no picture",
        "where the nearest name is 'test102.png'",
        "get them, or leave their rows out with --skip-bad",
        "30000 x 30000 pixels are more than",
        "not ready: 3 errors, 0 warnings",
    ):
        assert said in " ".join(out.split())
    assert "Traceback" not in err and "DecompressionBomb" not in err
    assert doctor("mllm_dcl", "--data", spoiled, "--task", "Med", "--quiet") == (0, "", "")


def test_the_screen_shows_the_first_places_the_file_all(doctor, tmp_path):
    root = Path(shutil.copytree(FIXTURES / "trigap", tmp_path / "trigap"))
    rows = json.loads((root / "instructions/CLEVR/test_3000.json").read_text())
    many = [{"question_id": str(n), "text": "?", "image": rows[0]["image"]} for n in range(7)]
    (root / "instructions/CLEVR/test_3000.json").write_text(json.dumps([*rows, *many]))
    words = ("trigap", "--data", root, "--task", "CLEVR")
    status, out, _ = doctor(*words, "--out", "found/all.json")
    assert status == 1 and "and 4 more" in out and "written: found/all.json" in out
    written = json.loads((tmp_path / "found/all.json").read_text())
    (finding,) = (f for f in written["findings"] if f["severity"] == "error")
    assert (finding["check"], finding["count"]) == ("row", 7)
    assert [item["row"] for item in finding["items"]] == [4, 5, 6, 7, 8, 9, 10]
    status, out, _ = doctor(*words, "--json")
    assert status == 1 and json.loads(out) | {"format": 1} == written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("coin", "--data", FIXTURES / "cion"), "where the nearest name is 'coin'"),
        (("coin", "--data", FIXTURES / "ucit"), "Instructions_Original"),
        (("coin",), "add --data DIR"),
        (("cion",), "did you mean 'coin'"),
        (("coin", "--data", FIXTURES / "coin", "--task", "GQQ"), "did you mean 'GQA'"),
        (("coin", "--data", FIXTURES / "coin", "--instructions", "Divers"), "mean 'Diverse'"),
        (("ucit", "--data", FIXTURES / "ucit", "--instructions", "Diverse"), "has no option"),
        (("coin", "--data", FIXTURES / "coin", "--backbone", "pokcet"), "did you mean 'pocket'"),
        (("none.yaml",), "unknown file or preset 'none.yaml'"),
    ],
)
def test_where_it_cannot_look_it_ends_with_2(doctor, words, said):
    status, out, err = doctor(*words)
    assert (status, out) == (2, "") and said in err and err.startswith("error: ")


def test_damaged_json_is_a_finding_and_the_rest_is_looked_at(doctor, tmp_path):
    root = Path(shutil.copytree(FIXTURES / "mllm_dcl", tmp_path / "mllm_dcl"))
    (root / "RS/test.json").write_text('[{"question_id": 1,\n "text" 2}]')
    status, out, _ = doctor("mllm_dcl", "--data", root, "--json")
    findings = {f["check"]: f for f in json.loads(out)["findings"] if f["severity"] != "note"}
    assert status == 1 and findings.keys() == {"file"}
    assert "is damaged at line 2, column 9" in findings["file"]["message"]
    (root / "RS/train.json").write_text("[")
    status, out, err = doctor("mllm_dcl", "--data", root, "--task", "RS")
    assert status == 2 and "train.json is damaged at line 1, column 2" in err


def test_a_runs_file_says_what_to_look_at(doctor, tmp_path):
    data = f"benchmark: coin\ndata: {FIXTURES / 'coin'}\norder: [GQA, REC]\nmethod: same\n"
    (tmp_path / "run.yaml").write_text(data)
    status, out, err = doctor("run.yaml", "--json")
    assert status == 0, err
    content = json.loads(out)
    assert list(content["tasks"]) == ["GQA", "REC"]
    lengths = [f for f in content["findings"] if f["check"] == "token lengths"]
    assert ["(pocket)" in f["message"] for f in lengths] == [True, True]
    (tmp_path / "run.yaml").write_text(data + "bakcbone: pocket\n")
    assert "did you mean 'backbone'" in doctor("run.yaml")[2]
    (tmp_path / "run.yaml").write_text(data + "reading: {instructions: 3}\n")
    assert "reading.instructions: expected a text (got 3)" in doctor("run.yaml")[2]


def test_help_teaches(doctor):
    status, out, _ = doctor("--help")
    assert status == 0
    for said in ("undrift doctor coin --data ~/CoIN", "its weights are not", "could not look"):
        assert said in out


PICTURED = {"question": "Which?", "answer": "red", "image": "0.png"}
ODD = {  # a task's file, and what is said of it
    "array.jsonl": ([PICTURED] * 2, None),
    "images.json": ([{**PICTURED, "images": ["1.png"]}], "hold different pictures"),
    "imgs.json": ([{**PICTURED, "imgs": ["1.png"]}], "the key 'imgs' is not read"),
    "video.json": ([{**PICTURED, "video": "a.mp4"}], "videos and sound are not supported"),
    "mark.json": ([{**PICTURED, "question": "<image><image>?"}], "2 times <image> for 1 pictures"),
    "web.json": ([{**PICTURED, "image": "https://x.org/1.png"}], "nothing is fetched"),
    "outside.json": ([{**PICTURED, "image": "/etc/x.png"}], "is not a path inside"),
    "missing.json": ([{**PICTURED, "image": "9.png"}], "there is no picture"),
    "truth.json": ([{**PICTURED, "answer": True}], "booleans: yes-no"),
    "box.json": ([{**PICTURED, "answer": [1, 2, 3, 4]}], "for a box say scorer: box"),
    "nan.json": ('[{"question": "?", "answer": NaN}]', "NaN"),
    "twice.json": ('[{"question": "?", "answer": "a", "answer": "b"}]', "twice"),
    "shape.json": ([{"caption": "a"}], "no question and no answer"),
    "both.json": ([{**PICTURED, "text": "?"}], "can be read as"),
    "tool.json": ([{"messages": [{"role": "tool", "content": "?"}]}], "expected turns"),
    "latin.json": ('[{"question": "café?", "answer": "a"}]'.encode("latin-1"), "Latin-1"),
    "cut.json": ('[{"question": "?", "ans', "is damaged at line 1"),
    "empty.json": ("", "is empty"),
    "none.json": ("[]", "holds no row"),
    "one.json": ([PICTURED], "the hold-out would take all"),
    "head.csv": ("question,answer,answer\na,b,c\n", "two columns"),
    "wide.csv": ("question,answer\na,b,c\n", "has 3 cells"),
    "book.xlsx": (b"PK\x03\x04", "Excel"),
    "zip.gz": (b"\x1f\x8b", "compressed with gzip"),
    "program.pkl": (b"\x80\x04", "a pickle"),
    "words.txt": ("hello", "it is no JSON"),
    "table.parquet": (b"PAR1", "cannot read"),
    "plain.json": ([{"question": f"{n}?", "answer": "a"} for n in range(9)], "shows a picture"),
}


def odd_pictures(folder: Path) -> list[str]:
    """Draw pictures that are changed before a model sees them, or refused; return their names."""
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    grey = Image.new("L", (40, 30))
    Image.new("RGB", (40, 30)).save(folder / "lying.jpg", exif=lying)
    Image.new("RGBA", (40, 30)).save(folder / "clear.png")
    Image.new("I;16", (40, 30), 40000).save(folder / "deep.png")
    grey.save(folder / "moving.gif", save_all=True, append_images=[Image.new("L", (40, 30), 9)])
    Image.new("F", (40, 30), 300).save(folder / "float.tiff")
    (folder / "cut.png").write_bytes((folder / "deep.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("not found")
    return [path.name for path in sorted(folder.iterdir())]


def test_every_odd_file_of_many_is_named_the_worst_first(doctor, tmp_path):
    pytest.importorskip("pyarrow")
    for name, (content, _) in ODD.items():
        folder = tmp_path / "odd" / name.partition(".")[0]
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
        content = json.dumps(content) if isinstance(content, list) else content
        path = folder / f"train.{name.partition('.')[2]}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("labels.txt", "more.csv", "README.md", *(f"part-{n}.json" for n in range(9))):
        (tmp_path / "odd/plain" / name).write_text("[]")
    (tmp_path / "odd/two").mkdir()
    for suffix in ("json", "jsonl"):
        (tmp_path / f"odd/two/train.{suffix}").write_text("[]")
    (tmp_path / "odd/looks").mkdir()
    rows = [{**PICTURED, "image": name} for name in odd_pictures(tmp_path / "odd/looks")]
    (tmp_path / "odd/looks/train.json").write_text(json.dumps(rows))
    (tmp_path / "odd/lost").mkdir()
    (tmp_path / "odd/lost/tarin.json").write_text("[]")
    (tmp_path / "odd/stray.docx").write_bytes(b"PK\x03\x04")
    status, out, err = doctor(tmp_path / "odd", "--out", "found.json")
    assert status == 1, err
    plain = " ".join(out.split())
    for name, (_, said) in ODD.items():
        assert name.partition(".")[0] in out and (said is None or said in plain), (name, plain)
    parts = [f"part-{n}.json" for n in range(9)]
    for said in ("train.json and train.jsonl", "nearest name is 'tarin.json'", "stray.docx",
                 "labels.txt", "more.csv", "README.md", *parts):  # fmt: skip
        assert said in plain
    findings = json.loads(Path("found.json").read_text())["findings"]
    listed = [item["what"] for finding in findings for item in finding["items"]]
    for row in rows:
        assert any(what.endswith(f"looks/{row['image']}") for what in listed), row["image"]
    tasks = list(dict.fromkeys(finding["task"] for finding in findings))
    assert len(tasks) == len(set(tasks)) and tasks[-1] == ""
    worst = ["error", "warning", "note"]
    for task in tasks:
        own = [worst.index(f["severity"]) for f in findings if f["task"] == task]
        assert own == sorted(own)


@pytest.mark.foreign("3.9")
def test_a_model_that_sees_is_a_reason_to_warn(doctor, tmp_path):
    rows = [{"question": f"{n}?", "answer": "a"} for n in range(9)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert doctor("train.json")[0] == 0
    status, out, _ = doctor("train.json", "--backbone", "pocket")
    assert status == 1 and "no question shows a picture, and the model takes pictures" in out
