"""Every key, part and value of a row is read, kept and named, or refused: none vanishes."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from undrift.data.doctor import examine
from undrift.data.instructions import examples_of, read_examples
from undrift.data.picture_folder import PictureFolder
from undrift.data.row_layouts import AnswerReader, check_answer
from undrift.errors import DataError

ASKED = {"question": "Which colour?", "answer": "red"}
ALPACA = {"instruction": "Which colour?", "output": "red"}
NAMES = ["0.png", "1.png", "2.png"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for name in (*NAMES, "sub/0.png", "a b.png"):
        Image.new("RGB", (8, 6)).save(root / name)
    return root


def one(row, root, **options):
    (example,) = examples_of(row, PictureFolder(root), **options)
    return example


def table(root, text, **options):
    (root / "x.csv").write_text(text)
    return read_examples(root / "x.csv", PictureFolder(root), **options)


def parts(*content, **more):
    turns = [{"role": "user", "content": [*content]}, {"role": "assistant", "content": "red"}]
    return {"messages": turns, **more}


TEXT = {"type": "text", "text": "Which colour?"}

# ---------------------------------------------------------------- pictures inside a text


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize(
    "mark",
    ['<img src="2.png">', "<IMG alt=x src='2.png' />", "<img src=2.png>", '<img data-src="1.png">',
     "![x](2.png)", '![](2.png "1.png")', "![x]( )", '<image src="2.png">', "<image: 2.png>",
     '<img src="https://x.org/1.png">', "<img src='data:image/png;base64,iVBORw0KGgo='>",
     '<img src="0.png"> and <img src="2.png">'],
)  # fmt: skip
@pytest.mark.parametrize("pictures", [{}, {"images": ["0.png", "1.png"]}])
def test_a_picture_inside_a_text_that_is_not_shown_is_refused(root, mark, pictures):
    with pytest.raises(DataError, match=r"question 1 holds .*put its name under image"):
        one({**ASKED, **pictures, "question": f"Is it as {mark}?"}, root)


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize(
    "mark",
    ['<img src="1.png">', "<img width=3 src=1.png height=2>", "<img src='a b.png'/>", "![x](1.png)",
     '![](1.png "2.png")', "![](<1.png>)"],
)  # fmt: skip
def test_one_that_is_shown_may_stand_in_the_text_as_well(root, mark):
    example = one({**ASKED, "images": ["1.png", "a b.png"], "question": f"Is it as {mark}?"}, root)
    assert mark in example.question and len(example.images) == 2


def test_a_picture_of_a_later_turn_is_not_shown_to_an_earlier_one(root):
    said = ["See ![](1.png)?", "red", "<image>And now?", "blue"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said,
                                                                   strict=True)]  # fmt: skip
    with pytest.raises(DataError, match="question 1 holds"):
        examples_of({"messages": turns, "image": "1.png"}, PictureFolder(root))


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize(
    "mark",
    ["[IMG]", "[img]", "[IMG_BREAK]", "[IMG_END]", "[IMG0]", "[image]", "<start_of_image>",
     "<end_of_image>", "<|begin_of_image|>", "<im_start>", "<im_end>", "<im_patch>",
     "<|vision_start|>", "<|vision_end|>", "<vision_start>", "<|image_start|>", "<IMG_CONTEXT>",
     "<image_soft_token>", "<image_token>", "<|IMAGE_PLACEHOLDER|>", "<fake_token_around_image>",
     "<global-img>", "<|media_pad|>", "<__media__>", "<__image__>", "<image_00>"],
)  # fmt: skip
@pytest.mark.parametrize("row", [ASKED, {"system": "Be brief.", **ASKED}, parts(TEXT)], ids=len)
def test_a_place_that_a_model_of_others_knows_is_refused(root, mark, row):
    key = next(iter(row))
    row = {**row, "image": "0.png"}
    row |= parts({**TEXT, "text": mark + "?"}) if key == "messages" else {key: f"{mark} {row[key]}"}
    with pytest.raises(DataError, match=r"the text holds .*the place of a picture is <image>"):
        one(row, root)


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user",
        "a[img]",
        "[img_1]",
        "[1]",
        "<imagine>",
        "<im>",
        "an [image of it]",
        "<b>",
    ],
)
def test_texts_that_only_look_like_a_place(root, text):
    assert text in one({**ASKED, "question": f"What is {text}?"}, root).question


def test_a_long_text_that_almost_holds_a_place_takes_a_moment(root):
    one({**ASKED, "question": f"Is <image_{'1_' * 50_000}?"}, root)
    one({**ASKED, "question": f"Is <image{'_' * 50_000} {' ' * 50_000}?"}, root)


# ---------------------------------------------------------------- parts and turns


@pytest.mark.foreign("3.3")
@pytest.mark.parametrize("number", [1, 1.0])
def test_an_index_is_a_whole_number(root, number):
    row = parts({"type": "image", "index": number}, {"type": "image", "index": 0}, TEXT)
    shown = one({**row, "images": NAMES[:2]}, root).images
    assert [path.name for path in shown] == ["1.png", "0.png"]


@pytest.mark.foreign("3.3")
@pytest.mark.parametrize("number", ["1", 0.5, True, [0], ""])
def test_an_index_of_another_kind_is_refused(root, number):
    row = parts({"type": "image", "index": number}, {"type": "image", "index": 0}, TEXT)
    with pytest.raises(DataError, match=r"the index of a part is .*; expected a whole number"):
        one({**row, "images": NAMES[:2]}, root)


@pytest.mark.foreign("3.3")
def test_numbers_leave_no_picture_out(root):
    row = parts({"type": "image"}, {"type": "image", "index": 0}, TEXT, images=NAMES[:2])
    assert [path.name for path in one(row, root).images] == ["1.png", "0.png"]
    row = parts({"type": "image", "index": 0}, {"type": "image", "index": 0}, TEXT)
    with pytest.raises(DataError, match=r"parts name pictures \[0, 0\] of 2; name each once"):
        one({**row, "images": NAMES[:2]}, root)


def test_an_index_beside_a_picture_of_its_own_is_kept(root):
    found = one(parts({"type": "image", "image": "1.png", "index": 3}, TEXT), root)
    assert found.extra == {"messages[].content[].index": 3} and found.images[0].name == "1.png"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "1.png", "text": "Answer in French."},
        {"type": "image", "text": "Answer in French."},
        {"type": "image_url", "image_url": {"url": "1.png"}, "text": "Answer in French."},
    ],
)
def test_the_text_of_a_picture_is_refused(root, part):
    with pytest.raises(DataError, match=r"holds the text 'Answer in French.'; write it as a part"):
        one(parts(part, TEXT, images=["1.png"]), root)
    part["text"] = ""  # as tables write that there is none
    assert len(one(parts(part, TEXT, images=["1.png"]), root).images) == 1


def test_the_text_of_a_part_stands_under_text(root):
    part = {"type": "text", "content": "Answer in French."}
    with pytest.raises(DataError, match="expected a text under 'text', found None; the keys are"):
        one(parts(part, TEXT), root)
    empty = {"type": "text", "text": None, "image": None, "image_url": ""}
    assert one(parts(empty, TEXT), root).question == "Which colour?"


def test_a_turn_holds_one_text(root):
    turn = {"from": "human", "value": "Which colour?", "role": "user", "content": "How many?"}
    answer = {"from": "gpt", "value": "red"}
    with pytest.raises(DataError, match="different texts as content and value"):
        one({"conversations": [turn, answer]}, root)
    turn["content"] = turn["value"]
    assert one({"conversations": [turn, answer]}, root).question == "Which colour?"


# ---------------------------------------------------------------- questions


@pytest.mark.foreign("3.14")
@pytest.mark.parametrize(
    ("row", "key"),
    [
        *((ALPACA, key) for key in ("question", "text", "prompt", "problem", "query")),
        *((ASKED, key) for key in ("instruction", "input", "query")),
        ({"question": "Which colour?", "response": "red"}, "problem"),
        ({"prompt": "Which colour?", "completion": "red"}, "text"),
        *((parts(TEXT), key) for key in ("question", "input", "prompt")),
    ],
)
def test_a_question_that_nothing_reads_is_refused(root, row, key):
    with pytest.raises(DataError, match=f"{key} is not read here; put it into what is asked"):
        one({**row, key: "Answer in French."}, root)
    for same in ("Which colour?", "<image>\nWhich colour?", ""):
        assert one({**row, key: same}, root).question == "Which colour?"


@pytest.mark.foreign("3.14")
def test_the_whole_of_a_row_may_stand_beside_its_parts(root):
    row = {"instruction": "Which colour?", "input": "One word.\nNo more.", "output": "red"}
    whole = "Below is a task.\n\n### Instruction:\nWhich colour?\n\n### Input:\nOne word.\nNo more."
    assert one({**row, "text": f"{whole}\n\n### Response:\nred"}, root).extra["text"]
    with pytest.raises(DataError, match="text is not read here"):
        one({**row, "text": "Which colour? is what I ask. One word.\nNo more."}, root)


def test_a_history_beside_turns_is_refused(root):
    with pytest.raises(DataError, match="history is not read beside turns"):
        one(parts(TEXT, history=[["Which?", "red"]]), root)
    assert one(parts(TEXT, history=[]), root).question == "Which colour?"


# ---------------------------------------------------------------- answers


@pytest.mark.foreign("3.21")
def test_what_an_answer_of_several_holds_besides_is_kept(root):
    answers = [{"answer": "red", "answer_id": n, "answer_confidence": "yes"} for n in (1, 2)]
    found = one({"question": "?", "answers": answers}, root)
    assert found.answers == ("red", "red")
    assert found.extra == {
        "answers[].answer_id": [1, 2], "answers[].answer_confidence": "yes",
    }  # fmt: skip
    (root / "train.json").write_text(json.dumps([{"question": "?", "answers": answers}] * 9))
    report = examine("folder", root, options={"held_out": 0})
    (finding,) = [found for found in report.findings if found.check == "extra keys"]
    assert "answers[].answer_confidence" in finding.message


@pytest.mark.foreign("3.21")
@pytest.mark.parametrize("held", [{"image": "2.png"}, {"seen": {"path": "x/2.png"}}])
def test_a_picture_of_an_answer_is_refused(root, held):
    row = {"question": "?", "image": "1.png", "answers": [{"answer": "red", **held}]}
    with pytest.raises(DataError, match=r"the key 'answers\[\]\.\w+' is not read, and looks like"):
        one(row, root)


@pytest.mark.foreign("3.14")
@pytest.mark.parametrize(
    ("row", "other", "same"),
    [
        (ASKED, {"output": "blue"}, {"output": "red"}),
        (ASKED, {"response": "blue"}, {"response": "red"}),
        (ASKED, {"completion": "Red"}, {"completion": ""}),
        (ASKED, {"solution": ["red", "blue"]}, {"solution": ["red"]}),
        ({"prompt": "?", "answer": "red"}, {"answers": ["red", "blue"]}, {"answers": ["red"]}),
        ({"question": "?", "answers": ["red", "blue"]}, {"output": "green"}, {"output": "blue"}),
        ({"question": "?", "answers": [{"answer": "red"}]}, {"output": "x"}, {"output": "red"}),
        ({"question": "?", "answer": 1}, {"output": "2"}, {"output": "1"}),
    ],
)
def test_two_different_answers_are_asked_about_in_every_layout(root, row, other, same):
    with pytest.raises(DataError, match="hold different answers; leave one of them out"):
        one({**row, **other}, root)
    alone = one(row, root).answers
    assert one({**row, **same}, root).answers == alone


@pytest.mark.foreign("3.14")
def test_an_answer_is_one_of_its_answers_unless_others_gave_these(root):
    row = {"id": 1, "question": "?", "answer": "red", "answers": ["crimson", "scarlet"]}
    check_answer({**row, "answers": ["crimson", "Red"]})
    check_answer({**row, "answers": [], "answer": "red"})
    (root / "x.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="row 1: answer is 'red', which is none of the answers"):
        read_examples(root / "x.json", PictureFolder(root))
    alone = {key: value for key, value in row.items() if key != "answers"}
    (root / "x.json").write_text(json.dumps([alone]))
    (found,) = read_examples(root / "x.json", PictureFolder(root), join=lambda _: row)
    assert found.answers == ("crimson", "scarlet") and found.extra["answer"] == "red"


# ---------------------------------------------------------------- lists in tables


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"'


@pytest.mark.foreign("3.12")
@pytest.mark.parametrize(
    "cell",
    ["['red', 'crimson']", "['red' 'crimson']", "[red, crimson]", "[True, False]", "[1 2]",
     '["red", "crimson"', "('red', 'crimson')", "{'answer': 'red'}", '["red", NaN]',
     '[{"answer": "red", "answer": "blue"}]'],
)  # fmt: skip
@pytest.mark.parametrize("key", ["answers", "image", "images"])
def test_a_list_that_is_none_of_json_is_refused(root, key, cell):
    bad = []
    rest = ",response\n" if key == "answers" else ",answer\n"
    assert table(root, f"question,{key}{rest}?,{quoted(cell)},red\n", bad=bad) == ()
    assert f"{key} is " in bad[0].reason and "no list of JSON; write it as" in bad[0].reason


@pytest.mark.foreign("3.12")
@pytest.mark.parametrize("key", ["answer", "response"])
@pytest.mark.parametrize(
    "cell", ["['red', 'crimson']", '["red", "crimson"]', '["red"]', "[1, 2]", '["red", 7]', "[]"]
)
def test_a_list_that_may_be_a_text_is_asked_about(root, key, cell):
    with pytest.raises(DataError, match=rf"row 1: {key} is the list .* that may be a text"):
        table(root, f"question,{key}\n?,{quoted(cell)}\n")


@pytest.mark.foreign("3.12")
@pytest.mark.parametrize("cell", ["[laughs]", '{"a": [1]}', "[1] yes", "[0.10, 0.20, 0.30, 0.4]"])
def test_an_answer_that_is_no_list_is_as_it_stands(root, cell):
    (found,) = table(root, f"question,answer\n?,{quoted(cell)}\n")
    assert found.answers == (cell,)


@pytest.mark.foreign("3.12")
def test_a_list_of_json_is_read_as_json_has_it(root):
    held = quoted('["blue", 7]')
    assert table(root, f"question,answers\n?,{held}\n")[0].answers == ("blue", "7")
    held = quoted('[{"answer": "red", "answer_id": 1}]')
    (found,) = table(root, f"question,answers\n?,{held}\n")
    assert found.answers == ("red",) and found.extra == {"answers[].answer_id": 1}
    for numbers in ("[1, 2]", "[1, 2, 3, 4]"):
        with pytest.raises(DataError, match="answers is the list of numbers"):
            table(root, f"question,answers\n?,{quoted(numbers)}\n")
    (found,) = table(root, f"question,answers\n?,{quoted(numbers)}\n", answers=AnswerReader("box"))
    assert found.answers == ("[1, 2, 3, 4]",)


@pytest.mark.foreign("3.12")
@pytest.mark.foreign("3.2")
@pytest.mark.parametrize("key", ["image", "images"])
def test_both_keys_of_pictures_hold_lists_in_tables(root, key):
    held = quoted('["1.png", "a b.png"]')
    found = table(root, f"question,answer,{key}\n?,red,{held}\n?,red,[]\n?,red,1.png\n")
    names = [[path.name for path in each.images] for each in found]
    assert names == [["1.png", "a b.png"], [], ["1.png"]]
