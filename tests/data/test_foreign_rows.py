"""Rows as other people write them: read, or refused by name; nothing is dropped in silence."""

from __future__ import annotations

import base64
import io
import json
from unicodedata import normalize

import pytest
from PIL import Image

from undrift.data.benchmarks.folder import benchmark
from undrift.data.doctor import examine
from undrift.data.instructions import examples_of, read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.types import Example
from undrift.errors import DataError

ASKED = {"question": "Which colour?", "answer": "red"}
SAID = [{"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "red"}]
CHAT = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "red"}]
SHAPES = {
    "conversations": {"conversations": SAID},
    "ShareGPT": {
        "conversations": [
            {"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "red"}
        ]
    },
    "ShareGPT's words": {
        "conversations": [
            {"from": "user", "value": "Which colour?"}, {"from": "assistant", "value": "red"}
        ]
    },
    "messages": {"messages": CHAT},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}, CHAT[1]
        ]
    },
    "text": {"text": "Which colour?", "answer": "red"},
    "question": ASKED,
    "question, answers": {"question": "Which colour?", "answers": ["red"]},
    "query": {"query": "Which colour?", "response": "red"},
    "instruction": {"instruction": "Which", "input": "colour?", "output": "red"},
    "instruction alone": {"instruction": "Which colour?", "input": "", "output": "red"},
    "prompt": {"prompt": "Which colour?", "completion": "red"},
    "prompt of messages": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "problem": {"problem": "Which colour?", "solution": "red"},
}  # fmt: skip


def png(colour="red", size=(8, 6)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for name, colour in (("0.png", "red"), ("1.png", "blue"), ("2.png", "green")):
        (root / name).write_bytes(png(colour))
    return root


def one(row, root, **options):
    (example,) = examples_of(row, PictureFolder(root), **options)
    return example


def read(root, content, name="rows.json", **options):
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_examples(path, PictureFolder(root), **options)


@pytest.fixture
def undrift(monkeypatch, command_line):
    monkeypatch.setenv("COLUMNS", "250")

    return command_line


# ---------------------------------------------------------------- pictures


@pytest.mark.foreign("3.1")
@pytest.mark.foreign("3.2")
@pytest.mark.foreign("3.14")
@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", ["0.png", ["0.png"], ["1.png", "0.png"]])
@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_shown_in_every_shape(root, shape, value, key):
    example = one({**SHAPES[shape], key: value}, root)
    names = value if isinstance(value, list) else [value]
    assert [path.name for path in example.images] == names
    assert example.question.split() == ["Which", "colour?"] and example.answers == ("red",)
    assert not example.extra


@pytest.mark.foreign("3.20")
@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", ["", None, [], [""], [None], {"bytes": None, "path": None}])
@pytest.mark.parametrize("shape", ["conversations", "messages", "question", "query"])
def test_nothing_means_no_picture(root, shape, value, key):
    row = {"id": 1, **SHAPES[shape], key: value}
    (example,) = examples_of(row, PictureFolder(root))
    assert example.images == ()


def test_both_keys_hold_the_same_or_are_refused(root):
    assert len(one({**ASKED, "image": "0.png", "images": ["0.png"]}, root).images) == 1
    assert len(one({**ASKED, "image": "0.png", "images": []}, root).images) == 1
    with pytest.raises(DataError, match="image and images hold different pictures"):
        one({**ASKED, "image": "0.png", "images": ["1.png"]}, root)


def message(*parts, **more):
    content = [*parts, {"type": "text", "text": "Which colour?"}]
    return {"messages": [{"role": "user", "content": content}, CHAT[1]], **more}


DATA_URL = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


@pytest.mark.foreign("3.3")
@pytest.mark.foreign("3.15")
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "0.png"},
        {"type": "image", "url": "0.png"},
        {"type": "image", "path": "0.png"},
        {"type": "image", "image": {"bytes": png(), "path": None}},
        {"type": "image", "image": png()},
        {"type": "image", "image": Image.open(io.BytesIO(png()))},
        {"type": "image", "base64": base64.b64encode(png()).decode()},
        {"type": "image_url", "image_url": {"url": "0.png"}},
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "image", "image": DATA_URL},
        {"image": "0.png"},
    ],
    ids=lambda part: "-".join(part),
)
def test_a_part_brings_its_own_picture(root, part):
    example = one(message(part), root)
    (path,) = example.images
    with Image.open(path) as shown:
        assert shown.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    for shape in ("images", "image"):  # the same beside it does no harm, another is refused
        own = part.get("image")
        if isinstance(own, str):
            assert len(one(message(part, **{shape: [own]}), root).images) == 1
            with pytest.raises(DataError, match="parts hold pictures of their own"):
                one(message(part, **{shape: ["1.png"]}), root)


def test_own_pictures_and_those_of_the_row_keep_their_places(root):
    row = message({"type": "image"}, {"type": "image", "image": "2.png"}, {"type": "image"})
    shown = one({**row, "images": ["0.png", "1.png"]}, root).images
    assert [path.name for path in shown] == ["0.png", "2.png", "1.png"]


@pytest.mark.foreign("3.4")
@pytest.mark.foreign("3.8")
def test_a_part_without_a_picture_is_named_with_the_key_that_may_hold_it(root):
    with pytest.raises(DataError, match=r"'imgs' is not read.*1 times <image> for 0 pictures"):
        one(message({"type": "image"}, imgs=[{"bytes": png(), "path": None}]), root)
    datasets = pytest.importorskip("datasets")
    rows = {"messages": [message({"type": "image"})["messages"]], "imgs": [["0.png"]]}
    rows["messages"][0][1] = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    datasets.Dataset.from_dict(rows).save_to_disk(root / "train")
    with pytest.raises(DataError, match=r"'imgs' is not read.*1 times <image> for 0 pictures"):
        read_examples(root / "train", PictureFolder(root))


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize("shape", ["text", "question", "query", "instruction", "problem", "prompt"])
@pytest.mark.parametrize(("marks", "pictures"), [(1, 0), (1, 2), (2, 1), (3, 2)])
def test_places_are_counted_against_pictures(root, shape, marks, pictures):
    row = dict(SHAPES[shape])
    key = next(iter(row))
    row |= {key: "<image>" * marks + row[key], "images": ["0.png", "1.png"][:pictures]}
    with pytest.raises(DataError, match=f"{marks} times <image> for {pictures} pictures"):
        one(row, root)


@pytest.mark.foreign("3.5")
@pytest.mark.parametrize(
    "more",
    [
        {"video": "a.mp4"}, {"videos": ["a.mp4"]}, {"Video": "a"}, {"audio": "a.wav"},
        {"audios": [{"bytes": b"RIFF", "path": None}]}, {"clip": "x/a.MP4"}, {"sound": ["a.mp3"]},
        {"question": "<video>\nWhat happens?"}, {"question": "What is said? <audio>"},
        {"media": {"kind": "x", "file": "a.webm"}}, {"x": "data:video/mp4;base64,AAAA"},
    ],
    ids=str,
)  # fmt: skip
def test_videos_and_sound_are_refused(root, more):
    with pytest.raises(DataError, match="videos and sound are not supported"):
        one({**ASKED, **more}, root)


@pytest.mark.foreign("3.5")
@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": "a.mp4"}, {"type": "audio", "audio": "a.wav"},
        {"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "input_audio"},
    ],
)  # fmt: skip
def test_parts_of_videos_and_sound_are_refused(root, part):
    with pytest.raises(DataError, match=f"of type '{part['type']}': that is not supported"):
        one(message(part), root)


@pytest.mark.foreign("3.7")
@pytest.mark.parametrize(
    "more",
    [
        {"imgs": "a.png"}, {"img": "scan 1"}, {"Image": "1.png"}, {"mask": "masks/0.png"},
        {"IMAGES": ["1"]},
        {"picture": "x"}, {"photo_path": "a"}, {"image_url": "https://x.org/a"}, {"scan": "a.JPG"},
        {"pages": ["a.tiff", "b.tiff"]}, {"meta": {"shown": {"file": "a.webp"}}},
        {"blob": png()}, {"x": {"bytes": png(), "path": None}}, {"x": [DATA_URL]},
        {"x": base64.b64encode(png("red", (99, 99)) * 2).decode()},
        {"x": Image.new("RGB", (2, 2))}, {"image1": "a", "image2": "b"},
    ],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
@pytest.mark.parametrize("shape", ["conversations", "messages", "text", "query"])
def test_what_looks_like_a_picture_and_is_not_read_is_an_error(root, shape, more):
    key = next(iter(more))
    with pytest.raises(DataError, match=f"the key '{key}' is not read, and looks like a picture"):
        one({"id": 1, **SHAPES[shape], "image": "0.png", **more}, root)


@pytest.mark.foreign("3.7")
def test_a_picture_inside_a_turn_or_part_is_no_exception(root):
    row = {"conversations": [{**SAID[0], "image": "0.png"}, SAID[1]]}
    with pytest.raises(DataError, match=r"'conversations\[\]\.image' is not read"):
        one(row, root)
    part = {"type": "text", "text": "Which?", "image": "0.png"}
    with pytest.raises(DataError, match=r"'messages\[\]\.content\[\]\.image' is not read"):
        one({"messages": [{"role": "user", "content": [part]}, CHAT[1]]}, root)


def test_what_is_no_picture_is_kept_beside_the_example(root):
    more = {"image_id": 17, "image_size": [8, 6], "file_name": "0.png", "source": "see a.png now",
            "video_id": "x", "imgs": [], "width": 8}  # fmt: skip
    example = one({**ASKED, "image": "photos/../0.png".removeprefix("photos/../"), **more}, root)
    assert dict(example.extra) == more


@pytest.mark.foreign("3.10")
def test_doctor_lists_once_what_rows_hold_besides(root):
    rows = [{**ASKED, "image": "0.png", "category": "x", "level": n} for n in range(5)]
    rows[0]["messages_of"] = "somebody"
    (root / "train.json").write_text(json.dumps(rows))
    (root / "test.json").write_text(json.dumps(rows[:1]))
    (found,) = [f for f in examine("folder", root).findings if f.check == "extra keys"]
    assert "'category' (6), 'level' (6), 'messages_of' (2)" in found.message


@pytest.mark.foreign("3.9")
def test_a_task_without_pictures_is_a_warning_where_the_model_sees(root):
    (root / "train.json").write_text(json.dumps([ASKED] * 20))

    def told(**options):
        found = examine("folder", root, **options).findings
        return [f.severity for f in found if f.check == "no picture"]

    assert told() == ["note"] and told(sees=True) == ["warning"]
    (root / "train.json").write_text(json.dumps([{**ASKED, "image": "0.png"}, *[ASKED] * 20]))
    assert told(sees=True) == []


# ---------------------------------------------------------------- turns


@pytest.mark.foreign("3.31")
def test_each_turn_sees_the_pictures_up_to_its_own(root):
    said = [
        {"from": "human", "value": "What is a picture?"}, {"from": "gpt", "value": "a thing"},
        {"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "red"},
        {"from": "human", "value": "And <image> or <image>?"}, {"from": "gpt", "value": "blue"},
    ]  # fmt: skip
    names = ["0.png", "1.png", "2.png"]
    row = {"conversations": said, "images": names}
    seen = [[p.name for p in e.images] for e in examples_of(row, PictureFolder(root))]
    assert seen == [[], names[:1], names]
    unmarked = [{**turn, "value": turn["value"].replace("<image>", "it")} for turn in said]
    row = {"conversations": unmarked, "images": names}
    assert [len(e.images) for e in examples_of(row, PictureFolder(root))] == [3, 3, 3]
    parts = [
        CHAT[0], CHAT[1],
        {"role": "user", "content": [{"type": "image", "image": "2.png"}, {"text": "Which?"}]},
        CHAT[1],
    ]  # fmt: skip
    assert [len(e.images) for e in examples_of({"messages": parts}, PictureFolder(root))] == [0, 1]


@pytest.mark.foreign("3.6")
@pytest.mark.foreign("3.22")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_system_turn_is_no_extra(root, shape):
    example = one({**SHAPES[shape], "system": "Be brief."}, root)
    assert example.system == "Be brief." and not example.extra
    assert one({**SHAPES[shape], "system": ""}, root).system == ""
    with pytest.raises(DataError, match="system should be a text"):
        one({**SHAPES[shape], "system": 3}, root)


@pytest.mark.foreign("3.22")
@pytest.mark.parametrize(
    "turn",
    [
        {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"from": "system", "value": "Be brief."},
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_turn_may_be_the_first(root, key, turn):
    assert one({key: [turn, *CHAT]}, root).system == "Be brief."
    first, second = examples_of({key: [turn, *SAID, *CHAT]}, PictureFolder(root))
    assert first.system == second.system == "Be brief."
    with pytest.raises(DataError, match="expected turns from human, gpt"):
        one({key: [*CHAT, turn]}, root)
    with pytest.raises(DataError, match="system and the first turn"):
        one({key: [turn, *CHAT], "system": "Be long."}, root)


def test_a_system_turn_is_part_of_every_digest(root):
    from undrift.data.published_benchmark import fingerprint
    from undrift.data.types import Task
    from undrift.methods.replay import ReplayMemory
    from undrift.run import input_changes, learned_tasks

    plain, told = (Example("1", "?", ("!",), system=system) for system in ("", "Be brief."))
    assert learned_tasks.examples_digest([plain]) != learned_tasks.examples_digest([told])
    assert input_changes._texts(plain) != input_changes._texts(told)
    tasks = [Task("a", (one,), (), (one,), "exact", 8) for one in (plain, told)]
    assert fingerprint(tasks[:1], root) != fingerprint(tasks[1:], root)
    memory = ReplayMemory()
    memory.add([plain, told], 2)
    assert ReplayMemory.of(memory.values()).tasks == [[plain, told]]


@pytest.mark.foreign("3.14")
def test_a_history_is_earlier_turns(root):
    row = {"query": "And now?", "response": "blue", "history": [["<image>Which?", "red"]]}
    first, second = examples_of({**row, "images": ["0.png"]}, PictureFolder(root))
    assert (first.question, first.answers) == ("Which?", ("red",))
    assert (second.question, len(second.images)) == ("And now?", 1) and not second.extra
    assert one({**row, "history": []}, root).question == "And now?"
    with pytest.raises(DataError, match="history should be a list of"):
        one({**row, "history": [["a"]]}, root)


def test_a_row_of_two_shapes_is_refused(root):
    with pytest.raises(DataError, match="can be read as conversations and as question and answer"):
        one({**ASKED, "conversations": SAID}, root)


# ---------------------------------------------------------------- ids and answers


@pytest.mark.foreign("3.11")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_without_an_id_has_its_number(root, shape):
    rows = [SHAPES[shape], {**SHAPES[shape], "id": "x"}, {**SHAPES[shape], "id": None}]
    assert [e.id for e in read(root, json.dumps(rows))] == ["1", "x", "3"]


@pytest.mark.foreign("3.19")
def test_truth_values_are_words_only_if_told_so(root):
    from undrift.data.row_layouts import AnswerReader

    for key in ("answer", "answers"):
        for value in (True, [True]):
            row = {"question": "Is it?", key: value}
            with pytest.raises(DataError, match=r"truth value true.*booleans: yes-no"):
                one(row, root)
            assert one(row, root, answers=AnswerReader(booleans="yes-no")).answers == ("Yes",)
    (root / "x.json").write_text('[{"question": "Is it?", "answer": false}]')
    task = "- {name: x, train: x.json, test: x.json%s}"
    (root / "tasks.yaml").write_text(task % ", booleans: yes-no")
    assert benchmark(root, progress=False).tasks[0].test[0].answers == ("No",)
    (root / "tasks.yaml").write_text(task % "")
    with pytest.raises(DataError, match="truth value false"):
        benchmark(root, progress=False)


@pytest.mark.foreign("3.21")
def test_answers_may_be_objects_as_in_vqa(root):
    answers = [{"answer": "red", "answer_id": n} for n in range(9)] + [{"answer": "dark red"}]
    example = one({"question": "Which?", "answers": answers}, root)
    assert example.answers == ("red",) * 9 + ("dark red",)
    with pytest.raises(DataError, match="answers should be a text or a number, found None"):
        one({"question": "Which?", "answers": [{"said": "red"}]}, root)


@pytest.mark.foreign("3.26")
def test_numbers_of_tables(root):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [1.0, 2.5, float("nan"), None, -3.0]
    table = pyarrow.table(
        {"id": [1.0, 2.0, 3.0, 4.0, 5.0], "question": ["?"] * 5, "answer": values}
    )
    parquet.write_table(table, root / "x.parquet")
    bad = []
    found = read_examples(root / "x.parquet", PictureFolder(root), bad=bad)
    assert [(e.id, e.answers) for e in found] == [("1", ("1",)), ("2", ("2.5",)), ("5", ("-3",))]
    assert [row.row for row in bad] == [3, 4] and "found nan" in bad[0].reason
    with pytest.raises(DataError, match="NaN"):
        read(root, '[{"question": "?", "answer": NaN}]')
    assert read(root, '{"question": "?", "answer": 1.0}')[0].answers == ("1",)


@pytest.mark.foreign("3.27")
def test_a_list_of_numbers_is_a_box_or_asked_about(root):
    from undrift.data.row_layouts import AnswerReader

    row = {"question": "Where?", "answer": [10, 20, 30, 40]}
    assert one(row, root, answers=AnswerReader("box")).answers == ("[10, 20, 30, 40]",)
    part = {**row, "answer": [0.1, 0.25, 1.0, 1.0]}
    assert one(part, root, answers=AnswerReader("box")).answers == ("[0.1, 0.25, 1, 1]",)
    with pytest.raises(DataError, match=r"list of numbers '\[10, 20, 30, 40\]'; for a box say"):
        one(row, root)
    with pytest.raises(DataError, match="a box has four numbers"):
        one({**row, "answer": [1, 2]}, root, answers=AnswerReader("box"))
    assert one({**row, "answer": ["10", "20"]}, root).answers == ("10", "20")
    (root / "train.json").write_text(json.dumps([row, row, {**row, "image": "0.png"}]))
    assert not examine("folder", root, options={"held_out": 0}).sound
    told = {"held_out": 0, "scorer": "box"}
    assert [
        f.check for f in examine("folder", root, options=told).findings if f.severity == "error"
    ] == []


# ---------------------------------------------------------------- files


ROWS = [
    {"id": 1, "question": "Which “colour” is café?", "answer": "red", "image": "0.png"},
    {"id": 2, "question": "Which?", "answer": "blue", "image": "1.png"},
]
FORMS = {
    "array": json.dumps(ROWS, ensure_ascii=False),
    "pretty array": json.dumps(ROWS, ensure_ascii=False, indent=1),
    "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "lines with gaps": "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n",
    "objects on one line": "".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "pretty objects": "\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in ROWS),
    "arrays": "\n".join(json.dumps([row], ensure_ascii=False) for row in ROWS),
}


@pytest.mark.foreign("3.13")
@pytest.mark.foreign("3.24")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.txt"])
@pytest.mark.parametrize("form", FORMS)
def test_json_is_told_by_its_content(root, form, name, encoding):
    found = read(root, FORMS[form].encode(encoding), name)
    assert [(e.id, e.question, e.answers) for e in found] == [
        (str(row["id"]), row["question"], (row["answer"],)) for row in ROWS
    ]


@pytest.mark.foreign("3.13")
@pytest.mark.parametrize("form", [*FORMS, "csv"])
def test_latin_1_is_named(root, form):
    text = FORMS.get(form, "question,answer\nWhich café?,red\n").replace("“", "").replace("”", "")
    name = "x.csv" if form == "csv" else "x.json"
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 0xe9.*Latin-1 \(Windows-1252\)"):
        read(root, text.encode("latin-1"), name)


@pytest.mark.foreign("3.12")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "delimiter"), [("x.csv", ","), ("x.csv", ";"), ("x.tsv", "\t")])
def test_tables_with_a_header(root, name, delimiter, encoding):
    lines = [
        ["image", "question", "answer", "note"],
        ["0.png", '"Which, ""exactly""; of\nthese\tcafés?"', "red", ""],
        ["", "Which?", "1.0", "x"],
    ]
    text = "".join(delimiter.join(cells) + "\r\n" for cells in lines)
    first, second = read(root, text.encode(encoding), name)
    assert first.question == 'Which, "exactly"; of\nthese\tcafés?' and not first.extra
    assert (first.id, len(first.images), second.images) == ("1", 1, ())
    assert second.answers == ("1.0",) and dict(second.extra) == {"note": "x"}


@pytest.mark.foreign("3.12")
def test_lines_of_tables_that_cannot_be_used(root):
    bad = []
    found = read(root, "question,answer\nWhich?,red\nWhich, now?,red\nWhich?\n", "x.csv", bad=bad)
    assert [e.id for e in found] == ["1"]
    assert [(row.row, row.reason[:10]) for row in bad] == [(2, "it has 3 c"), (3, "it has 1 c")]
    with pytest.raises(DataError, match="two columns called 'answer'"):
        read(root, "question,answer,answer\na,b,c\n", "x.csv")
    with pytest.raises(DataError, match="no answer beside 'question'"):
        read(root, "question,answer\nWhich?,\n", "x.csv")


@pytest.mark.foreign("3.25")
@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.tsv"])
def test_an_empty_file_is_called_empty(root, name, content):
    with pytest.raises(DataError, match=rf"{name} is empty"):
        read(root, content, name)


@pytest.mark.foreign("3.25")
def test_an_empty_table_is_called_empty(root):
    with pytest.raises(DataError, match=r"x\.parquet is empty"):
        read(root, b"", "x.parquet")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 ...", "as Excel's files are; save it as CSV"),
        (b"\x1f\x8b\x08 ...", "compressed with gzip"),
        (b"\x80\x04\x95 ...", "a pickle, which is a program"),
        (b"question answer", "expected JSON, a table"),
    ],
)
def test_what_is_not_read_is_told_by_its_content(root, content, said):
    with pytest.raises(DataError, match=said):
        read(root, content, "x.xlsx")


@pytest.mark.foreign("3.30")
@pytest.mark.parametrize("form", ["[%s, %s]", "%s\n%s\n"])
@pytest.mark.parametrize(
    "row",
    [
        '{"id": 2, "question": "Which?", "answer": "red", "answer": "blue"}',
        '{"id": 2, "conversations": [{"from": "human", "from": "gpt", "value": "?"}]}',
        '{"id": 2, "question": "Which?", "answer": "red", "meta": {"a": {"b": 1, "b": 2}}}',
    ],
)
def test_a_key_that_is_there_twice_makes_a_bad_row(root, form, row):
    bad = []
    found = read(root, form % ('{"id": 1, "question": "Which?", "answer": "red"}', row), bad=bad)
    assert [e.id for e in found] == ["1"] and [one.row for one in bad] == [2]
    assert "twice" in bad[0].reason


@pytest.mark.foreign("3.16")
@pytest.mark.parametrize("key", ["image", "images"])
def test_bytes_in_parquet(root, key):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    held = png() if key == "image" else [png(), png("blue")]
    table = pyarrow.Table.from_pylist([{**ASKED, key: held}, ASKED])
    parquet.write_table(table, root / "x.parquet")
    first, second = read_examples(root / "x.parquet", PictureFolder(root))
    assert first.images[0].read_bytes() == png() and second.images == ()
    assert len(first.images) == (1 if key == "image" else 2)


def labelled(datasets):
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["cat", "dog"]),
            "answers": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
            "meta": {"kind": datasets.ClassLabel(names=["a", "b"])},
        }
    )
    rows = {"question": ["?", "!"], "answer": [1, 0], "answers": [[1], [0, 1]]}
    rows["meta"] = [{"kind": 1}, {"kind": 0}]
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.foreign("3.18")
@pytest.mark.parametrize("column", ["answer", "answers"])
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_classes_are_read_by_their_names(root, kind, column):
    datasets = pytest.importorskip("datasets")
    made = labelled(datasets).remove_columns({"answer": "answers", "answers": "answer"}[column])
    path = root / ("train" if kind == "saved" else "train.parquet")
    made.save_to_disk(path) if kind == "saved" else made.to_parquet(path)
    first, second = read_examples(path, PictureFolder(root))
    assert first.answers == ("dog",) and second.answers[0] == "cat"
    assert [e.extra["meta"] for e in (first, second)] == [{"kind": "b"}, {"kind": "a"}]


@pytest.mark.foreign("3.17")
def test_a_dict_of_datasets_gives_its_splits(root):
    datasets = pytest.importorskip("datasets")
    from undrift.data.benchmarks.folder import own_task

    rows = [{**ASKED, "question": f"{n}?"} for n in range(4)]
    made = {"train": rows, "validation": rows[:2], "test": rows[:1], "other": rows}
    made = {name: datasets.Dataset.from_list(part) for name, part in made.items()}
    datasets.DatasetDict(made).save_to_disk(root / "birds")
    (root / "tasks.yaml").write_text("- {name: listed, train: birds}")
    for place in (root / "birds", root / "tasks.yaml"):
        (task,) = benchmark(place, progress=False).tasks
        assert [len(s) for s in (task.train, task.validation, task.test)] == [4, 2, 1]
    own = own_task(root / "birds")
    assert (own.name, own.train.name, own.test.name) == ("birds", "train", "test")
    found = {f.check: f.message for f in examine("folder", root / "birds").findings}
    assert "other" in found["unread file"]


# ---------------------------------------------------------------- names of pictures


@pytest.mark.foreign("3.23")
def test_absolute_paths_lead_into_the_folder_that_is_named(root, tmp_path):
    for name in (str(root / "0.png"), (root / "0.png").as_uri(), f"{root}//./0.png"):
        assert one({**ASKED, "image": name}, root).images == (root / "0.png",)
    assert one({**ASKED, "image": str(root / "0.png")}, tmp_path).images == (root / "0.png",)
    (tmp_path / "link").symlink_to(root)
    assert one({**ASKED, "image": str(root / "0.png")}, tmp_path / "link").images[0].is_file()
    (tmp_path / "other").mkdir()
    for name in (str(root / "0.png"), "/etc/passwd", f"{tmp_path}/other/../data/0.png"):
        with pytest.raises(DataError, match=r"is not a path inside .*--images DIR"):
            one({**ASKED, "image": name}, tmp_path / "other")
    with pytest.raises(DataError, match="is not a path inside"):
        one({**ASKED, "image": f"{root}/../data/0.png"}, root)


@pytest.mark.foreign("3.23")
@pytest.mark.parametrize("name", ["http://x.org/a.png", "HTTPS://x.org/a.png", "s3://b/a.png"])
def test_web_addresses_are_not_fetched(root, name):
    for row in ({**ASKED, "image": name}, message({"type": "image_url", "image_url": name})):
        with pytest.raises(DataError, match="is a web address, and nothing is fetched"):
            one(row, root)


@pytest.mark.foreign("3.23")
def test_the_root_of_pictures_is_an_option(root, tmp_path, undrift):
    rows = [{**ASKED, "question": f"{n}?", "image": f"{root}/{n % 3}.png"} for n in range(9)]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.json").write_text(json.dumps(rows))
    status, out, err = undrift("doctor", tmp_path / "rows", "--images", root)
    assert status == 0 and "3 pictures" in out, out + err
    assert undrift("doctor", tmp_path / "rows")[0] == 1
    made = benchmark(tmp_path / "rows", progress=False, images=root)
    assert all(example.images for example in made.tasks[0].train)


@pytest.mark.foreign("3.29")
def test_accents_may_be_written_in_two_ways(root):
    name = "é/café.png"
    for there, asked in (("NFD", "NFC"), ("NFC", "NFD")):
        path = root / there / normalize(there, name)
        path.parent.mkdir(parents=True)
        path.write_bytes(png())
        row = {**ASKED, "image": f"{there}/{normalize(asked, name)}"}
        assert one(row, root).images == (path,)
    (root / normalize("NFC", "ü.png")).write_bytes(png())
    (root / normalize("NFD", "ü.png")).write_bytes(png("blue"))
    for form in ("NFC", "NFD"):
        shown = one({**ASKED, "image": normalize(form, "ü.png")}, root).images[0]
        assert shown.name == normalize(form, "ü.png")


# ---------------------------------------------------------------- hold-out, folders, doctor


def rows_of(count, **more):
    return [{"question": f"{n}?", "answer": "red", **more} for n in range(count)]


@pytest.mark.foreign("3.28")
@pytest.mark.parametrize(
    "rows", [rows_of(1), rows_of(9, image="0.png")], ids=["one row", "one picture"]
)
def test_a_hold_out_that_takes_everything_is_told(root, rows, undrift):
    (root / "train.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"hold-out would take all.*--test FILE.*--held-out 0"):
        benchmark(root, progress=False)
    status, out, _ = undrift("doctor", root)
    assert status == 1 and "the hold-out would take all" in out
    (task,) = benchmark(root, progress=False, held_out=0).tasks
    assert task.train == task.test and len(task.train) == len(rows)
    assert examine("folder", root, options={"held_out": 0}).findings[0].severity == "note"


@pytest.mark.foreign("3.32")
def test_a_file_a_tasks_folder_and_a_folder_of_tasks_can_be_looked_into(root, undrift, tmp_path):
    task = tmp_path / "mine/a"
    task.mkdir(parents=True)
    (task / "train.jsonl").write_text("\n".join(map(json.dumps, rows_of(20))))
    for place, name in ((task / "train.jsonl", "train"), (task, "a"), (tmp_path / "mine", "a")):
        for words in (("folder", "--data", place), (place,)):
            status, out, err = undrift("doctor", *words)
            assert status == 0, out + err
            assert f"\n{name}  train 20 rows" in out
            assert [t.name for t in benchmark(place, progress=False).tasks] == [name]
    (task / "b").mkdir()
    (task / "b/train.json").write_text("[]")
    status, _, err = undrift("doctor", task)
    assert status == 2 and "rows of train, and tasks' folders as well (b)" in err


@pytest.mark.foreign("3.33")
def test_a_bad_row_is_named_once(root, undrift):
    (root / "train.json").write_text(json.dumps([{"id": 1}, *rows_of(20)]))
    status, out, _ = undrift("doctor", root)
    assert status == 1 and out.count("row 1") == 1
    assert "train.json, row 1: no question and no answer" in out


def test_files_that_are_not_read_are_named(root, undrift):
    task = root / "birds"
    task.mkdir()
    for name, content in (
        ("train.json", json.dumps(rows_of(20))), ("labels.txt", "a"), ("extra.csv", "a,b"),
        ("README.md", "x"), (".hidden", "x"), ("1.jpg", "x"),
    ):  # fmt: skip
        (task / name).write_text(content)
    (root / "fish").mkdir()
    (root / "fish/tain.xlsx").write_bytes(b"PK\x03\x04")
    status, out, _ = undrift("doctor", root)
    assert status == 1 and "extra.csv, labels.txt" in out and "README.md" in out
    assert "tain.xlsx" in out and "1.jpg" not in out and ".hidden" not in out
    (root / "fish/train.xlsx").write_bytes(b"PK\x03\x04")
    (task / "train.jsonl").write_text("")
    status, out, _ = undrift("doctor", root, "--task", "birds")
    with pytest.raises(DataError, match=r"holds train\.json and train\.jsonl, and only one"):
        benchmark(root, progress=False)
    (task / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"train\.xlsx: it is a zip archive, as Excel's"):
        benchmark(root, progress=False)


def test_a_folder_without_tasks_is_looked_into_file_by_file(root, undrift, monkeypatch):
    for name in ("a.json", "b.csv"):
        (root / name).write_text("question;answer\nWhich?;red\n" if name == "b.csv" else "[7]")
    (root / "c.xlsx").write_bytes(b"PK\x03\x04")
    status, out, _ = undrift("doctor", root)
    assert status == 1 and "a.json, row 1: expected an object, found int" in out
    assert "\nb.csv  train 1 rows" in out and "3 files not read: a.json, b.csv, c.xlsx" in out
    with pytest.raises(DataError, match="holds no task"):
        benchmark(root, progress=False)
    (root / "train.json").write_text(json.dumps(rows_of(20)))
    monkeypatch.chdir(root)
    status, out, _ = undrift("doctor", ".")
    assert "\ndata  train 20 rows" in out and "3 files not read: a.json, b.csv, c.xlsx" in out
    status, _, err = undrift("doctor", "nowhere/at/all")
    assert status == 2 and "nowhere/at/all does not exist" in err
