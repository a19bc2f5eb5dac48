"""Questions whose answers nobody knows yet are read from rows of every layout."""

from __future__ import annotations

import json

import pytest

from tests.run.tiny import COLOURS, picture
from undrift.data.picture_folder import PictureFolder
from undrift.data.questions import read_questions
from undrift.errors import DataError

TURN = {"from": "human", "value": "<image>\nwhich colour?"}
PARTS = [{"type": "image"}, {"type": "text", "text": "which colour?"}]
ROWS = {
    "llava": {"id": 7, "image": "1.png", "conversations": [TURN]},
    "llava-answered": {
        "id": 7, "image": "1.png", "conversations": [TURN, {"from": "gpt", "value": "red"}],
    },
    "messages": {
        "id": 7, "images": ["1.png"], "messages": [{"role": "user", "content": PARTS}],
    },
    "evaluation": {"question_id": 7, "image": "1.png", "text": "which colour?"},
    "answered": {"question_id": 7, "image": "1.png", "text": "which colour?", "answer": "red"},
    "a truth": {"id": 7, "image": "1.png", "question": "which colour?", "answer": True},
    "empty": {"id": 7, "image": "1.png", "question": "which colour?", "answer": ""},
    "null": {"id": 7, "image": "1.png", "question": "which colour?", "answer": None},
    "alpaca": {
        "id": 7, "image": "1.png", "instruction": "which colour?", "output": "red",
        "text": "### Instruction:\nwhich colour?\n\n### Response:\nred",
    },
    "answers of several names": {
        "id": 7, "image": "1.png", "question": "which colour?", "output": "red", "response": "blue",
        "answers": ["red"], "answer": "green",
    },
    "trl": {"id": 7, "images": ["1.png"], "prompt": [{"role": "user", "content": PARTS}]},
    "problem": {"id": 7, "image": "1.png", "problem": "which colour?"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    from random import Random

    picture(tmp_path, "1", COLOURS["red"], Random(0))
    return tmp_path


def read(folder, *rows, bad=None):
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(file, PictureFolder(folder), bad)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_question_is_read_with_its_answer_or_without(folder, row):
    (found,) = read(folder, row)
    assert (found.id, found.question, [path.name for path in found.images]) == (
        "7", "which colour?", ["1.png"],
    )  # fmt: skip


def test_a_table_without_answers(folder):
    file = folder / "questions.csv"
    file.write_text("id,image,question\n1,1.png,which colour?\n2,1.png,how many?\n")
    found = read_questions(file, PictureFolder(folder))
    assert [(each.id, each.question) for each in found] == [("1", "which colour?"),
                                                            ("2", "how many?")]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 8, "image": "1.png"}, "no question and no answer"),
        ({"id": 8, "image": "2.png", "question": "what?"}, "2.png"),
        ({"id": 8, "question": "what?", "query": "what?"}, "leave out the keys that are not meant"),
        ({"id": 7, "question": "what?"}, "the id '7' is that of row 1 as well"),
        ({"id": 8, "conversations": []}, "expected turns"),
        ({"id": 8, "messages": "what?"}, "expected turns"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_or_left_out(folder, row, said):
    good = ROWS["evaluation"]
    with pytest.raises(DataError, match="row 2") as told:
        read(folder, good, row)
    assert said in str(told.value)
    bad = []
    assert len(read(folder, good, row, bad=bad)) == 1
    assert [each.row for each in bad] == [2]
