"""Rows of instruction files: both shapes, ids, pictures, turns, and every way a row can be bad."""

from __future__ import annotations

import json

import pytest

from undrift.data.instructions import examples_of, read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.errors import DataError

SAID = [
    {"from": "human", "value": "<image>\nWhat is it?\nOne word."},
    {"from": "gpt", "value": "Tea"},
]
MORE = [{"from": "human", "value": "Is it hot?\nOne word."}, {"from": "gpt", "value": "yes"}]
ABSENT = object()


@pytest.fixture
def pictures(tmp_path):
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"")
    return PictureFolder(tmp_path)


def talk(**changes):
    return changed({"id": "7", "image": "1.jpg", "conversations": SAID}, changes)


def asked(**changes):
    row = {"question_id": 7, "image": "1.jpg", "text": "What is it?", "answer": "Tea"}
    return changed(row, changes)


def changed(row, changes):
    return {k: v for k, v in {**row, **changes}.items() if v is not ABSENT}


def read(pictures, *rows, **options):
    path = pictures.root / "rows.json"
    path.write_text(json.dumps(rows))
    return read_examples(path, pictures, **options)


def test_a_training_row(pictures):
    (example,) = examples_of(talk(), pictures)
    assert (example.id, example.question) == ("7", "What is it?\nOne word.")
    assert (example.answers, example.images) == (("Tea",), (pictures.root / "1.jpg",))
    assert dict(example.extra) == {}


def test_an_evaluation_row_keeps_what_it_holds_besides(pictures):
    (example,) = examples_of(asked(category="drink", metadata={}), pictures)
    assert (example.id, example.question, example.answers) == ("7", "What is it?", ("Tea",))
    assert dict(example.extra) == {"category": "drink", "metadata": {}}


@pytest.mark.parametrize("make", [talk, asked])
@pytest.mark.parametrize("key", ["id", "question_id"])
@pytest.mark.parametrize("value", [17, "17"])
def test_ids_are_texts_under_either_key(pictures, make, key, value):
    row = make(**{"id": ABSENT, "question_id": ABSENT, key: value})
    assert examples_of(row, pictures)[0].id == "17"


def test_each_question_of_a_conversation_is_an_example(pictures):
    first, second = examples_of(talk(conversations=SAID + MORE), pictures)
    assert (first.id, second.id) == ("7#1", "7#2")
    assert (second.question, second.answers) == ("Is it hot?\nOne word.", ("yes",))
    assert first.images == second.images == (pictures.root / "1.jpg",)


def test_text_only(pictures):
    for row in (asked(image=ABSENT), talk(image=ABSENT, conversations=MORE)):
        assert examples_of(row, pictures)[0].images == ()


def test_several_pictures_keep_their_order_and_leave_the_text(pictures):
    text = "Compare <image> with <image>."
    (example,) = examples_of(asked(image=["2.jpg", "1.jpg"], text=text), pictures)
    assert [path.name for path in example.images] == ["2.jpg", "1.jpg"]
    assert "<image>" not in example.question


def test_a_box_is_the_answer_and_its_size_is_kept(pictures):
    row = asked(answer=ABSENT, answer_bbox="[0.10,0.20,0.30,0.40]", size=[640, 480])
    (example,) = examples_of(row, pictures)
    assert example.answers == ("[0.10,0.20,0.30,0.40]",)
    assert dict(example.extra) == {"size": [640, 480]}


def test_ten_answers_keep_their_repeats_and_the_one_beside_them(pictures):
    (example,) = examples_of(asked(answers=["tea"] * 9 + ["cup"]), pictures)
    assert example.answers == ("tea",) * 9 + ("cup",)
    assert example.extra["answer"] == "Tea"


@pytest.mark.parametrize(("value", "text"), [(4, "4"), (0, "0"), (0.57, "0.57"), (["a", 2], "a")])
def test_numbers_and_lists_are_answers(pictures, value, text):
    assert examples_of(asked(answer=value), pictures)[0].answers[0] == text


BAD_ROWS = {
    "an empty id": (asked(question_id=" "), "as id or question_id"),
    "a truth value as id": (talk(id=True), "found True"),
    "no question": (asked(text=ABSENT), "no question beside 'answer'; the keys are"),
    "an empty question": (asked(text=" <image>\n "), "question 1 is empty"),
    "no answer": (asked(answer=ABSENT), "no answer beside 'text'; the keys are"),
    "an empty answer": (asked(answer="  "), "has no answer or an empty one"),
    "no accepted answer": (asked(answers=[], answer=""), "has no answer or an empty one"),
    "an answer that is an object": (asked(answer={"a": 1}), "answer should be a text or a number"),
    "a box that is a list": (
        asked(answer_bbox=[0, 0, 1, 1]),
        r"answer_bbox is the list of numbers '\[0, 0, 1, 1\]'; for a box say scorer: box",
    ),
    "an empty answer in a turn": (
        talk(conversations=[*SAID, MORE[0], {"from": "gpt", "value": ""}]),
        "answer 2 is empty",
    ),
    "no turns": (talk(conversations=[]), "expected turns from human, gpt"),
    "turns that are no list": (talk(conversations="hello"), "found 'hello'"),
    "an unknown role": (
        talk(conversations=[{"from": "tool", "value": "a"}, {"from": "gpt", "value": "b"}]),
        r"expected turns from human, gpt, .* found \['tool', 'gpt'\]",
    ),
    "the answer first": (talk(conversations=SAID[::-1]), r"found \['gpt', 'human'\]"),
    "a question without answer": (talk(conversations=[*SAID, MORE[0]]), "expected turns"),
    "a turn without value": (
        talk(conversations=[{"from": "human"}, SAID[1]]),
        "expected a text under 'value', found None",
    ),
    "a placeholder without picture": (talk(image=ABSENT), "1 times <image> for 0 pictures"),
    "too few placeholders": (talk(image=["1.jpg", "2.jpg"]), "1 times <image> for 2 pictures"),
    "a placeholder in an answer": (
        talk(conversations=[SAID[0], {"from": "gpt", "value": "<image>"}]),
        "answer 1 holds <image>",
    ),
    "a picture without bytes": (asked(image={"bytes": "", "path": "1.jpg"}), "holds no bytes"),
    "a gap among pictures": (asked(image=["1.jpg", ""]), "image holds 1 pictures and 1 gaps"),
    "a picture that is a number": (asked(image=3), "image is 3; expected the name of a picture"),
    "a missing picture": (asked(image="3.jpg"), "no picture .*3.jpg; .*nearest name is '[12].jpg'"),
    "a picture outside": (asked(image="../1.jpg"), "is not a path inside"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(pictures, row, message):
    good = asked(question_id="good")
    with pytest.raises(DataError, match=rf"rows\.json, row 2: .*{message}"):
        read(pictures, good, row)
    bad = []
    assert [e.id for e in read(pictures, good, row, good | {"question_id": 3}, bad=bad)] == [
        "good", "3",
    ]  # fmt: skip
    assert [(problem.file.name, problem.row) for problem in bad] == [("rows.json", 2)]


def test_ids_are_unique_even_between_numbers_and_texts(pictures):
    rows = asked(question_id=7), asked(question_id="7")
    with pytest.raises(DataError, match="row 2: the id '7' is that of row 1 as well"):
        read(pictures, *rows)
    bad = []
    assert len(read(pictures, *rows, bad=bad)) == len(bad) == 1


def test_repeats_are_told_apart_where_nothing_is_matched_by_ids(pictures):
    rows = talk(), talk(), talk(conversations=SAID + MORE), talk(conversations=SAID + MORE)
    found = [example.id for example in read(pictures, *rows, number_repeats=True)]
    assert found == ["7", "7~2", "7#1", "7#2", "7#1~2", "7#2~2"]


def test_a_join_adds_to_rows_and_may_refuse_them(pictures):
    def join(row):
        if row["question_id"] == 8:
            raise DataError("nothing known about 8")
        return row | {"answers": ["a", "b"]}

    bad = []
    (example,) = read(pictures, asked(), asked(question_id=8), join=join, bad=bad)
    assert example.answers == ("a", "b")
    assert [problem.reason for problem in bad] == ["nothing known about 8"]


def test_no_picture_is_opened(pictures, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert read(pictures, asked(), talk(id=8))
