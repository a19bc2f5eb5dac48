"""The doctor: faults planted in copies of the fixtures are found, and clean data has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.data.damaged import bomb, cut
from undrift.data.doctor import examine
from undrift.data.doctor_checks import RowQuestion, Split, format_line, picture_sizes, same_files
from undrift.data.types import Benchmark, Example, Task
from undrift.errors import ConfigError, DataError, UnknownName
from undrift.registry import BENCHMARKS

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("coin", "ucit", "trigap", "mllm_dcl")
GQA, VIZWIZ = "Instructions_Original/GQA", "instructions/VizWiz"
WORD = "Answer the question using a single word or phrase."


@pytest.fixture
def copied(tmp_path):
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def edit(path, change):
    """Change a JSON file: `change` gets its content, in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first(check, report):
    """Return the only finding of a check."""
    (finding,) = (finding for finding in report.findings if finding.check == check)
    return finding


# ---------------------------------------------------------------- planted faults


def missing_picture(root):
    (root / "GQA/images/2331.jpg").rename(root / "GQA/images/2331.jpeg")


def truncated_picture(root):
    cut(root / "VizWiz/val/VizWiz_val_00000101.jpg", 0.5)


def oversized_picture(root):
    bomb(root / "ScienceQA/test/5/image.png", 30_000, 30_000)


def same_id(root):
    edit(root / GQA / "test.json", lambda rows: rows[2].update(question_id=201307251))


def two_kinds_of_ids(root):
    edit(root / GQA / "train.json", lambda rows: rows[1].update(id=2332))


def trained_on(root):
    text = {"image": "GQA/images/2333.jpg", "text": f"Is there  a dog?\n{WORD}"}
    edit(root / GQA / "test.json", lambda rows: rows[1].update(text))


def trained_on_under_another_name(root):
    shutil.copy(root / "GQA/images/2333.jpg", root / "GQA/images/n235859.jpg")
    edit(root / GQA / "test.json", lambda rows: rows[1].update(text=f"Is there a dog?\n{WORD}"))


def no_suffix(root):
    edit(root / GQA / "test.json", lambda rows: rows[1].update(text="Who wears it?"))


def two_suffixes(root):
    text = f"Who wears it?\n{WORD}\n{WORD}"
    edit(root / GQA / "test.json", lambda rows: rows[1].update(text=text))


def other_suffix_in_the_test(root):
    path = root / GQA / "test.json"
    path.write_text(path.read_text().replace(WORD, "Give one word."))


def no_caption(root):
    file = root / VIZWIZ / "val_coco_type_3000.json"
    edit(file, lambda content: content["images"].pop(1))


def shared_name(root):
    (root / "GQA/images/train").mkdir()
    shutil.copy(root / "GQA/images/2333.jpg", root / "GQA/images/train/2331.jpg")
    moved = {"image": "GQA/images/train/2331.jpg"}
    edit(root / GQA / "train.json", lambda rows: rows[2].update(moved))


def outside(root):
    edit(root / GQA / "test.json", lambda rows: rows[1].update(image="../../etc/passwd.jpg"))


def no_answer(root):
    edit(root / "Instructions_Original/VQAv2/val.json", lambda rows: rows[1].pop("answer"))


def empty_answer(root):
    edit(root / "Instructions_Original/VQAv2/val.json", lambda rows: rows[1].update(answer=" "))


def broken_json(root):
    path = root / GQA / "train.json"
    path.write_text(path.read_text()[:-40])


def no_file(root):
    (root / GQA / "test.json").rename(root / GQA / "tests.json")


def no_rows(root):
    (root / GQA / "test.json").write_text("[]")


def narrow(root):
    Image.new("RGB", (2010, 10)).save(root / "GQA/images/2331.jpg")


FAULTS = [
    (missing_picture, "coin", "missing picture", "error", "GQA", "train", "name is '2331.jpeg'"),
    (truncated_picture, "coin", "unreadable picture", "error", "VizWiz", "test", "damaged"),
    (
        oversized_picture,
        "coin",
        "unreadable picture",
        "error",
        "ScienceQA",
        "test",
        "30000 x 30000 pixels",
    ),
    (same_id, "coin", "repeated id", "error", "GQA", "test", "id of row 1 as well"),
    (same_id, "coin", "id types", "warning", "GQA", "test", "201307251"),
    (two_kinds_of_ids, "coin", "id types", "warning", "GQA", "train", "2332"),
    (trained_on, "coin", "overlap", "warning", "GQA", "test", "row 3 of train asks the same"),
    (trained_on_under_another_name, "coin", "overlap", "warning", "GQA", "test", "row 3 of train"),
    (no_suffix, "coin", "format line", "warning", "GQA", "test", "ends in 'Who wears it?'"),
    (two_suffixes, "coin", "format line twice", "warning", "GQA", "test", f"twice '{WORD[:9]}"),
    (other_suffix_in_the_test, "coin", "format differs", "warning", "GQA", "", "Give one word."),
    (no_caption, "ucit", "caption ids", "error", "VizWiz", "test", "VizWiz_val_00000101.jpg"),
    (no_caption, "ucit", "caption ids", "error", "VizWiz", "test", "2 pictures, and there are 3"),
    (shared_name, "coin", "ambiguous name", "note", "", "", "2331.jpg"),
    (outside, "coin", "picture outside", "error", "GQA", "test", "not a path inside"),
    (no_answer, "coin", "row", "error", "VQAv2", "test", "no answer beside 'text'"),
    (empty_answer, "coin", "row", "error", "VQAv2", "test", "no answer or an empty one"),
    (broken_json, "coin", "file", "error", "GQA", "train", "damaged at line 63, column 12"),
    (no_file, "coin", "file", "error", "GQA", "", "nearest name is 'tests.json'"),
    (no_rows, "coin", "file", "error", "GQA", "test", "holds no row"),
    (narrow, "coin", "narrow picture", "warning", "GQA", "", "2010 x 10"),
]


@pytest.mark.parametrize(
    ("plant", "name", "check", "severity", "task", "split", "said"),
    FAULTS,
    ids=[f"{fault[0].__name__}-{fault[2]}-{number}" for number, fault in enumerate(FAULTS)],
)
def test_a_planted_fault_is_found(copied, plant, name, check, severity, task, split, said):
    root = copied(name)
    plant(root)
    report = examine(name, root)
    clean = [(f.check, f.task, f.split, f.message) for f in examine(name, FIXTURES / name).findings]
    new = [f for f in report.findings if (f.check, f.task, f.split, f.message) not in clean]
    (finding,) = (f for f in new if f.check == check)
    assert (finding.severity, finding.task, finding.split) == (severity, task, split)
    assert said in finding.message or any(said in f"{i.what} {i.reason}" for i in finding.items)
    assert report.sound == (severity == "note")
    worse = {f.check for f in new if f.severity != "note"} - {check}
    assert not worse or plant is same_id, "one fault is told once"


@pytest.mark.parametrize("name", NAMES)
def test_clean_data_has_notes_at_most(name):
    report = examine(name, FIXTURES / name)
    assert report.sound, [f for f in report.findings if f.severity != "note"]
    made = BENCHMARKS.load(name)(FIXTURES / name, progress=False)
    read = {(split.task, split.name): len(split.questions) for split in report.splits}
    assert read == {
        (task.name, split): len(getattr(task, split))
        for task in made.tasks
        for split in ("train", "test")
    }


def test_counts_that_differ_from_the_published_are_notes(copied):
    report = examine("coin", FIXTURES / "coin", only=["ScienceQA"])
    said = [f.message for f in report.findings if f.check == "count"]
    assert said == ["4 rows, and 12,726 were published", "3 rows, and 4,241 were published"]
    root = copied("coin")
    rows = json.loads((root / "Instructions_Original/ScienceQA/test.json").read_text())
    many = [{**rows[1], "question_id": str(number)} for number in range(4_241)]
    (root / "Instructions_Original/ScienceQA/test.json").write_text(json.dumps(many))
    (root / "ScienceQA/problems.json").unlink()
    report = examine("coin", root, only=["ScienceQA"])
    assert [f.split for f in report.findings if f.check == "count"] == ["train"]


def test_every_missing_picture_is_listed_once_and_never_opened(copied, monkeypatch):
    root = copied("ucit")
    shutil.rmtree(root / "datasets/ArxivQA")
    report = examine("ucit", root)
    missing = [f for f in report.findings if f.check == "missing picture"]
    assert [(f.task, f.split, len(f.items)) for f in missing] == [
        ("ArxivQA", "train", 3),
        ("ArxivQA", "test", 3),
    ]
    assert "'ArxivQA' is missing" in missing[0].items[0].reason
    content = report.content()
    assert json.loads(json.dumps(content)) == content
    listed = [f for f in content["findings"] if f["check"] == "missing picture"]
    assert [item["row"] for f in listed for item in f["items"]] == [1, 2, 3, 1, 2, 3]
    assert content["tasks"]["ArxivQA"]["train"]["rows"] == 3
    assert not content["sound"]
    # the rows themselves were looked at all the same
    assert content["tasks"]["ArxivQA"]["train"]["questions"] == 3


def test_repeated_ids_of_training_are_a_note():
    finding = first("repeated id", examine("ucit", FIXTURES / "ucit", only=["VizWiz"]))
    assert (finding.severity, finding.items[0].row) == ("note", 4)


def test_a_part_of_the_tasks_and_another_wording():
    report = examine("coin", FIXTURES / "coin", only=["GQA"], options={"instructions": "Diverse"})
    assert {split.task for split in report.splits} == {"GQA"}
    assert "Diverse" in str(report.splits[0].file)
    with pytest.raises(UnknownName, match="did you mean 'GQA'"):
        examine("coin", FIXTURES / "coin", only=["GQAs"])
    with pytest.raises(ConfigError, match="'ucit' has no option 'instructions'"):
        examine("ucit", FIXTURES / "ucit", options={"instructions": "Diverse"})


def test_where_nothing_can_be_found_the_doctor_does_not_run(copied):
    with pytest.raises(DataError, match="nearest name is 'coin'"):
        examine("coin", FIXTURES / "coinn")
    with pytest.raises(DataError, match="does not exist"):
        examine("trigap", FIXTURES / "mllm_dcl")
    root = copied("mllm_dcl")
    for split in ("train", "test"):
        (root / "RS" / f"{split}.json").write_text("[")
    with pytest.raises(DataError, match=r"train\.json is damaged at line 1, column 2"):
        examine("mllm_dcl", root, only=["RS"])


def test_your_own_folder(tmp_path):
    rows = [
        {"id": 1, "image": "a.png", "conversations": talk("How much?", "3")},
        {"id": "2", "image": "b.png", "conversations": talk("How much?", "4")},
        {"id": 3, "image": "c.png", "conversations": talk("Who?", "me")},
    ]
    (tmp_path / "bills").mkdir()
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "bills/train.jsonl").write_text(f"{lines}\n{{'id'\n[]")
    Image.new("RGB", (40, 40)).save(tmp_path / "bills/a.png")
    Image.new("RGB", (40, 50)).save(tmp_path / "bills/b.png")
    seen = []
    options = {"held_out": 0.3}  # of the benchmark, though not about its files
    report = examine("folder", tmp_path, options=options, progress=lambda *now: seen.append(now))
    found = {f.check: f for f in report.findings}
    assert set(found) == {"row", "missing picture", "id types", "picture sizes", "file"}
    assert found["file"].severity == "note" and "held out" in found["file"].message
    assert [(item.row, item.reason[:12]) for item in found["row"].items] == [
        (4, "no JSON at l"),
        (5, "expected an "),
    ]
    assert report.splits[0].rows == 5
    assert [item.what for item in found["id types"].items] == ["'2'"]
    assert found["picture sizes"].message == (
        "pictures of 40 x 40 to 40 x 50 pixels, median 40 x 40"
    )
    last = {what: (done, total) for what, done, total in seen}
    assert last == {"reading files": (1, 1), "opening pictures": (2, 2), "comparing": (1, 1)}


def talk(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_a_benchmark_that_does_not_tell_its_files_is_looked_at_by_its_examples(
    tmp_path, monkeypatch
):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    examples = [Example(str(n), f"{n}?", ("x",), (tmp_path / f"{n}.png",)) for n in "ab"]
    task = Task("own", tuple(examples), (), tuple(examples[:1]), "exact", 4)
    made = Benchmark("own", "1", (task,), "CC0", {}, "1")
    monkeypatch.setattr(type(BENCHMARKS), "load", lambda *_: lambda root, progress: made)
    report = examine("own")
    assert [(f.check, f.split) for f in report.findings if f.severity != "note"] == [
        ("unreadable picture", "train"),
        ("overlap", "test"),
    ]
    with pytest.raises(UnknownName, match="'onw'"):
        examine("own", only=["onw"])


# ---------------------------------------------------------------- parts


def split_of_questions(*questions):
    examples = [Example(str(n), text, ("x",)) for n, text in enumerate(questions)]
    asked = tuple(RowQuestion(row, example) for row, example in enumerate(examples, 1))
    return Split("t", "train", None, len(examples), asked)


@pytest.mark.parametrize(
    ("questions", "line"),
    [
        (["a?\nSay.", "b?\nSay.", "c?\n\n Say. ", "d?"], "Say."),
        (["a?\nSay.", "b?\nSay.", "d?"], None),
        (["a?\n1\n2", "b?\n2\n3", "c?\n3\n1", "d?\n1\n3"], None),
        (["What is it?", "What is it?", "What is it?"], None),
        ([], None),
    ],
)
def test_the_format_line_is_a_last_line_that_most_share(questions, line):
    assert format_line([split_of_questions(*questions)]) == line


def test_files_with_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in "abcde"]
    for path, content in zip(paths, (b"1", b"2", b"1", b"22", b"1"), strict=True):
        path.write_bytes(content)
    a, _, c, _, e = paths
    assert same_files([*paths[::-1], tmp_path / "absent"]) == {c: a, e: a}


def test_sizes(tmp_path):
    sizes = {tmp_path / f"{n}.png": size for n, size in enumerate([(28, 28), (27, 90), (5, 1001)])}
    asked = tuple(
        RowQuestion(n, Example(str(n), "?", ("x",), (path,))) for n, path in enumerate(sizes, 1)
    )
    found = list(picture_sizes([Split("t", "test", None, 3, asked)], sizes))
    assert [(f.check, [item.row for item in f.items]) for f in found] == [
        ("picture sizes", []),
        ("tiny picture", [2, 3]),
        ("narrow picture", [3]),
    ]
