"""Parts of rows as other people write them: what a turn, a part or a picture's object holds."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from undrift.data.instructions import examples_of
from undrift.data.picture_decoding import open_picture
from undrift.data.picture_folder import PictureFolder
from undrift.errors import DataError

ASKED = {"question": "Which colour?", "answer": "red"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for name in ("0.png", "1.png", "sub/0.png"):
        Image.new("RGB", (8, 6)).save(root / name)
    return root


def read(row, root):
    return examples_of(row, PictureFolder(root))


def turns(*more):
    """A chat of two questions whose turns hold more than their texts."""
    said = [("user", "Which?"), ("assistant", "red"), ("user", "And now?"), ("assistant", "blue")]
    return {
        "messages": [
            {"role": role, "content": text, **held}
            for (role, text), held in zip(said, more, strict=True)
        ]
    }


@pytest.mark.foreign("3.7")
@pytest.mark.parametrize("key", ["images", "attachment"])
def test_what_a_later_turn_holds_is_not_hidden_by_an_earlier_one(root, key):
    row = turns({key: []}, {key: []}, {key: ["1.png"]}, {key: []})
    with pytest.raises(DataError, match=f"messages.*{key}.*is not read"):
        read(row, root)
    asked = read(turns({"id": 1}, {"id": 2}, {"id": 3}, {}), root)
    assert asked[0].extra == {"messages[].id": [1, 2, 3]}


@pytest.mark.foreign("3.7")
@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"path": "0.png", "overlay": "1.png"}, "image.overlay"),
        ({"image": "0.png", "video": "a.mp4"}, "videos and sound"),
        ({"image_url": {"url": "0.png", "mask": "1.png"}}, "image.mask"),
    ],
)
def test_what_stands_beside_the_name_of_a_picture_is_read_or_refused(root, held, said):
    with pytest.raises(DataError, match=said):
        read({**ASKED, "image": held}, root)
    (example,) = read({**ASKED, "images": [{"path": "0.png", "caption": "left"}]}, root)
    assert example.extra == {"image.caption": ["left"]}


@pytest.mark.foreign("3.8")
def test_a_name_between_qwens_own_marks_is_a_picture_in_its_place(root):
    said = "Picture 1: <img>0.png</img>\nPicture 2: <img>1.png</img>\nWhich?"
    row = [{"from": "user", "value": said}, {"from": "assistant", "value": "red"}]
    (example,) = read({"conversations": row}, root)
    assert [path.name for path in example.images] == ["0.png", "1.png"]
    assert "<img>" not in example.question and "0.png" not in example.question


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize("pictures", [{}, {"image": "0.png"}])
@pytest.mark.parametrize(
    "mark",
    ["<image_1>", "<image 1>", "<|image_1|>", "<Image>", "<IMAGE>", "<image/>", "<ImageHere>",
     "<image_placeholder>", "<img>", "<|video_pad|>", "<VIDEO>", "<speech>"],
)  # fmt: skip
def test_places_of_other_kinds_are_refused(root, mark, pictures):
    with pytest.raises(DataError, match=r"text holds"):
        read({"question": f"{mark} Which?", "answer": "red", **pictures}, root)


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize(
    "mark", ['<img src="0.png">', "![x](0.png)", "0.png", "data:image/png;base64,iVBO"]
)
def test_a_question_that_is_about_a_picture_nobody_is_shown(root, mark):
    with pytest.raises(DataError, match="question 1 holds"):
        read({"instruction": "Describe", "input": mark, "output": "red"}, root)


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize(
    "question", ["Data: 1, 2 and 3", "What is in 0.png ?", "Is <b>it</b> red?"]
)
def test_questions_that_only_look_like_it(root, question):
    assert read({"question": question, "answer": "red"}, root)[0].question == question


@pytest.mark.foreign("3.8")
def test_objects_that_a_trainer_would_fill_in(root):
    row = {"query": "Find <ref-object>", "response": "<bbox>", "image": "0.png",
           "objects": {"ref": ["dog"], "bbox": [[1, 2, 3, 4]]}}  # fmt: skip
    with pytest.raises(DataError, match="objects are not filled in"):
        read(row, root)


@pytest.mark.foreign("3.7")
@pytest.mark.parametrize(
    "more",
    [
        *({key: "000001"} for key in (
            "frames", "thumbnail", "media", "jpg", "png", "input_image", "image_list",
            "img_path_list", "left_image", "image_left", "target_image")),
        *({"other": text} for text in (
            "0.png\n1.png", '["0.png", "1.png"]', "https://x.org/a.png#x", "a.jxl", "a.3gp",
            "UklGR" + "A" * 300, "R0lGOD" + "A" * 300)),
        {"fig": {"bytes": None, "path": "abc"}},
        {"image": "sub/0.png", "image2": "0.png"},
    ],
)  # fmt: skip
def test_more_of_what_looks_like_a_picture(root, more):
    with pytest.raises(DataError, match=r"looks like a picture|videos and sound"):
        read({**ASKED, **more}, root)


@pytest.mark.foreign("3.7")
@pytest.mark.parametrize(
    "more",
    [{"image_id": "000001"}, {"video_id": "abc"}, {"num_images": 2}, {"note": "as in 1.png, red"},
     {"image": "sub/0.png", "file_name": "0.png"}, {"image": "sub/0.png", "image_name": "0.png"}],
)  # fmt: skip
def test_what_only_sounds_like_a_picture_is_kept(root, more):
    (example,) = read({**ASKED, **more}, root)
    assert set(example.extra) == set(more) - {"image"}


@pytest.mark.foreign("3.6")
@pytest.mark.parametrize(
    "key",
    ["system_prompt", "system_message", "system_instruction", "System", " system", "sys"],
)
def test_a_system_turn_under_another_key_is_refused(root, key):
    with pytest.raises(DataError, match="call it system"):
        read({**ASKED, key: "Answer shortly."}, root)
    with pytest.raises(DataError, match="instruction is not read here"):
        read({**ASKED, "instruction": "Answer shortly."}, root)


@pytest.mark.foreign("3.8")
@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "response": "a", "history": [["q1", "<image> yes"]]},
        {"question": "q", "answers": ["<image>"]},
    ],
)
def test_pictures_belong_to_questions_everywhere(root, row):
    with pytest.raises(DataError, match="pictures belong to questions"):
        read({**row, "image": "0.png"}, root)


@pytest.mark.foreign("3.14")
def test_two_different_answers_are_asked_about(root):
    row = {"instruction": "Which?", "response": "red", "output": "blue"}
    with pytest.raises(DataError, match="hold different answers"):
        read(row, root)
    for output in ("red", ""):
        assert read({**row, "output": output}, root)[0].answers == ("red",)
    assert read({**row, "response": ""}, root)[0].answers == ("blue",)


@pytest.mark.foreign("3.14")
@pytest.mark.parametrize(
    "row",
    [
        {"problem": "q", "answer": "a"},
        {"prompt": "q", "answer": "a"},
        {"question": "q", "response": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
        {"query": "q", "response": "a", "history": ""},
        {"conversations": [
            {"from": "human", "value": "q", "role": None, "content": None},
            {"from": "gpt", "value": "a", "role": None, "content": None}]},
        {"system": "S ", "messages": [
            {"role": "system", "content": "S"}, {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"}]},
    ],
)  # fmt: skip
def test_more_shapes(root, row):
    (example,) = read({**row, "image": "0.png"}, root)
    assert (example.question, example.answers, len(example.images)) == ("q", ("a",), 1)


@pytest.mark.foreign("3.3")
def test_a_part_may_name_the_rows_picture_by_its_number(root):
    parts = [{"type": "image", "index": 1}, {"type": "text", "text": "Which?"},
             {"type": "image", "index": 0}]  # fmt: skip
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    (example,) = read({**row, "images": ["0.png", "1.png"]}, root)
    assert [path.name for path in example.images] == ["1.png", "0.png"]
    with pytest.raises(DataError, match="parts name pictures"):
        parts[0]["index"] = 2
        read({**row, "images": ["0.png", "1.png"]}, root)


@pytest.mark.foreign("3.3")
@pytest.mark.parametrize("own", [{"source": {"type": "url", "url": "x"}}, {"file_id": "abc"}])
def test_a_part_with_a_picture_of_another_kind_is_refused(root, own):
    parts = [{"type": "image", **own}, {"type": "text", "text": "Which?"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(DataError, match="no picture can be made"):
        read({**row, "images": ["0.png"]}, root)


@pytest.mark.foreign("3.3")
def test_an_answer_in_parts_is_one_text(root):
    parts = [{"type": "text", "text": "re"}, {"type": "text", "text": "d"}]
    row = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": parts}]
    assert read({"messages": row}, root)[0].answers == ("red",)


@pytest.mark.foreign("3.7")
@pytest.mark.parametrize("more", [{"tool_calls": [{"id": "1"}]}, {"weight": 0}, {"loss": False}])
def test_turns_that_are_no_plain_answers_are_refused(root, more):
    with pytest.raises(DataError, match=r"tools|not to be learned"):
        read(turns({}, more, {}, {}), root)


@pytest.mark.foreign("3.27")
def test_several_accepted_boxes(root):
    from undrift.data.row_layouts import AnswerReader

    row = {"question": "Where?", "answers": [[1, 2, 3, 4], [2, 3, 4, 5]]}
    (example,) = examples_of(row, PictureFolder(root), answers=AnswerReader("box"))
    assert example.answers == ("[1, 2, 3, 4]", "[2, 3, 4, 5]")


def opened(picture, root):
    (example,) = read({**ASKED, "image": picture}, root)
    return open_picture(example.images[0])


@pytest.mark.foreign("4.1")
@pytest.mark.foreign("3.3")
def test_a_picture_in_memory_is_turned(root):
    turn, file = Image.Exif(), io.BytesIO()
    turn[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 32)).save(file, "jpeg", exif=turn)
    assert opened(Image.open(file), root).size == (32, 64)


@pytest.mark.foreign("4.2")
@pytest.mark.foreign("4.3")
@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "F", "I;16B"])
def test_a_picture_in_memory_is_seen_as_people_see_it(root, mode):
    picture = Image.new(mode, (4, 4), {"F": 1.0, "I;16B": 65535}.get(mode, 0))
    assert opened(picture, root).getextrema() == ((255, 255),) * 3


def test_the_file_of_a_picture_in_memory_lies_in_the_cache(root, tmp_path):
    (example,) = read({**ASKED, "image": Image.new("RGB", (4, 4))}, root)
    assert example.images[0].is_relative_to(Path(tmp_path / "cache"))
