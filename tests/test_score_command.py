"""`undrift score`: another code's predictions, by every public rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
SCIENCE = FIXTURES / "coin/Instructions_Original/ScienceQA/test.json"


@pytest.fixture
def undrift(monkeypatch, command_line):
    monkeypatch.setenv("COLUMNS", "160")

    return command_line


@pytest.fixture
def rows():
    """The right answers in LLaVA's form: the first in lower case, the second said in a sentence."""
    asked = json.loads(SCIENCE.read_text())
    texts = [row["answer"] for row in asked]
    texts[:2] = [texts[0].lower(), f"The answer is {texts[1]}."]
    return [
        {"question_id": row["question_id"], "text": text, "answer_id": "x", "metadata": {}}
        for row, text in zip(asked, texts, strict=True)
    ]


@pytest.fixture
def write(tmp_path):
    def made(rows, name="merge.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return made


def scores(out, path):
    return json.loads(out)["files"][str(path)]


def test_all_profiles_side_by_side(undrift, rows, write):
    path = write(rows)
    status, out, _ = undrift("score", "coin/ScienceQA", path, "--data", FIXTURES / "coin")
    assert status == 0
    lines = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines()]
    for expected in (
        ["strict, coin", "100.00"],
        ["strict, hide = prism", "66.67"],  # lower case is wrong
        ["lenient", "100.00"],
        ["form", "33.33"],
        ["form: case", "1"],
        ["form: sentence instead of letter", "1"],
    ):
        assert expected in lines


def test_json_has_each_profile_by_its_name(undrift, rows, write):
    path = write(rows[::-1])
    words = ("score", "coin/ScienceQA", path, "--answers", SCIENCE, "--json")
    found = scores(undrift(*words)[1], path)
    assert found["percent"]["hide"] == found["percent"]["prism"] == pytest.approx(200 / 3)
    assert found["percent"]["lenient"] == 100.0 and found["scored"] == 3
    assert found["errors"] == {"case": 1, "sentence instead of letter": 1}
    assert set(scores(undrift(*words, "--profile", "hide")[1], path)["percent"]) == {
        "hide",
        "lenient",
        "form",
    }
    official = scores(undrift(*words, "--profile", "official")[1], path)
    assert set(official["percent"]) == {"official", "lenient", "form"} and official["lucky"] == {}


def test_a_partial_file_is_refused_and_then_counted_both_ways(undrift, rows, write):
    path = write(rows[:2])
    words = ("score", "coin/ScienceQA", path, "--answers", SCIENCE)
    status, out, err = undrift(*words)
    assert status == 1 and out == ""
    assert "merge.jsonl: 1 of 3 examples of coin/ScienceQA have no prediction" in err
    assert "--partial" in err
    status, out, _ = undrift(*words, "--partial")
    assert status == 0 and "2 predictions" in out and "PARTIAL" in out
    found = scores(undrift(*words, "--partial", "--json")[1], path)
    assert found["percent"]["hide"] == 50.0
    assert found["missing_wrong"]["hide"] == pytest.approx(100 / 3)


def test_lucky_hits_are_counted(undrift, write):
    file = FIXTURES / "coin/Instructions_Original/ImageNet/test.json"
    asked = json.loads(file.read_text())
    path = write([{"question_id": row["question_id"], "text": ""} for row in asked])
    out = undrift("score", "coin/ImageNet", path, "--answers", file, "--json")[1]
    found = scores(out, path)
    assert found["percent"]["coin"] == 100.0 and found["percent"]["lenient"] == 0.0
    assert found["lucky"]["coin"] == len(asked)
    nothing = write([{"question_id": row["question_id"], "text": None} for row in asked])
    out = undrift("score", "coin/ImageNet", nothing, "--answers", file, "--json")[1]
    assert scores(out, nothing)["percent"]["coin"] == 0.0


def test_captions_have_their_metrics(undrift, write):
    file = FIXTURES / "ucit/instructions/Flickr30k/test_3000.json"
    asked = json.loads(file.read_text())
    path = write([{"question_id": row["question_id"], "text": "a man."} for row in asked])
    out = undrift("score", "ucit/Flickr30k", path, "--data", FIXTURES / "ucit", "--json")[1]
    found = scores(out, path)
    assert {"bleu_1", "cider", "rouge_l"} <= set(found["captions"])
    assert set(found["percent"]) == {"form"} and found["lucky"] == {}


@pytest.mark.foreign("5.3")
def test_boxes_in_other_units_are_said_beside_the_table_and_in_json(undrift, write):
    file = FIXTURES / "coin/Instructions_Original/Grounding/test.json"
    asked = json.loads(file.read_text())
    path = write([{"question_id": r["question_id"], "text": "[99, 9, 500, 700]"} for r in asked])
    words = ("score", "coin/Grounding", path, "--answers", file)
    status, out, err = undrift(*words)
    said = f"{len(asked)} of {len(asked)} predictions are boxes in other units than their answers"
    assert status == 0 and said in err and err.count("\n") == 1 and said not in out
    status, out, err = undrift(*words, "--json")
    assert scores(out, path)["units"].startswith(said) and said in err


@pytest.mark.foreign("5.11")
def test_the_first_official_rule_is_a_profile(undrift, rows, write):
    path = write(rows)
    words = ("score", "coin/ScienceQA", path, "--answers", SCIENCE, "--json")
    found = scores(undrift(*words, "--profile", "official-2015")[1], path)
    assert found["percent"].keys() == {"official-2015", "lenient", "form"}
    assert found["percent"]["official-2015"] == pytest.approx(200 / 3) and found["lucky"] == {}


def test_several_files_and_a_folder_of_parts(undrift, rows, write, tmp_path):
    whole = write(rows)
    write(rows[:1], "parts/2_0.jsonl")
    write(rows[1:], "parts/2_1.jsonl")
    words = ("score", "coin/ScienceQA", whole, tmp_path / "parts", "--answers", SCIENCE, "--json")
    found = json.loads(undrift(*words)[1])["files"]
    assert found[str(whole)] == found[str(tmp_path / "parts")]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("coin/ScienceQA", "m"), 2, "either --data DIR or --answers FILE"),
        (("coin/ScienceAQ", "m", "--data", "."), 2, "did you mean 'coin/ScienceQA'"),
        (("coin/GQA", "m", "--data", ".", "--profile", "hid"), 2, "did you mean 'hide'"),
        (("letter", "m", "--data", "."), 2, "letter is a scorer: give the test file of your"),
        (("leter", "m", "--answers", "f"), 2, "did you mean 'letter'"),
        (("letter", "m", "--answers", "f", "--profile", "hide"), 2, "unknown scoring profile"),
        (("coin/ScienceQA", "none.jsonl", "--answers", SCIENCE), 1, "cannot read none.jsonl"),
        (("coin/ScienceQA", "m", "--data", "nowhere"), 1, "nowhere"),
    ],
)
def test_mistakes_are_one_line(undrift, words, status, message):
    found, out, err = undrift("score", *words)
    assert (found, out) == (status, "") and message in err and err.count("\n") == 1
