"""Answers as other people's models and files write them, and the rules of public evaluators."""

from __future__ import annotations

import json
import random

import pytest

from undrift.errors import DataError
from undrift.scoring import error_kind, score, score_all
from undrift.scoring.boxes import find_box
from undrift.scoring.rules_undrift import box, letter

AT = "[100, 100, 200, 200]"
BOXES = [
    '{"bbox_2d": [100, 100, 200, 200]}',
    '```json\n[{"bbox_2d": [100, 100, 200, 200], "label": "bus 42"}]\n```',
    "<ref>bus 42</ref><box>(100,100),(200,200)</box>",
    "<|object_ref_start|>bus 42<|object_ref_end|><|box_start|>(100,100),(200,200)<|box_end|>",
    "<ref>bus</ref><box>[[100, 100, 200, 200]]</box>",
    "[[100, 100], [200, 200]]",
    "((100 100) (200 200))",
    "[100 100 200 200]",
    "100,100,200,200",
    "100.0, 1e2, 2E+2, +200.",
    "Step 1: the box is [100, 100, 200, 200].",
    "1. [100, 100, 200, 200]",
    "bus (42) [100, 100, 200, 200]",
    "bus 42: 100, 100, 200, 200",
    "On 2024-01-02 v1.2.3.4 saw 3 dogs at (100, 100), (200, 200)",
    "[100, 100, 200, 200] and [0, 0, 5, 5]",  # of several the first
    "100 100 200 200, 0 0 5 5",
    "[100px, 100px, 200px, 200px]",
    "[100, 100, 200, 200, 0.97]",  # with a confidence behind it
    "[100, 100, 200, 200",  # cut off
    '{"bbox": {"x1": 100, "y1": 100, "x2": 200, "y2": 200}}',
    "y1=100 x1=100, y2: 200, x2: 200",
    "{'xmin': 100, 'ymin': 100, 'xmax': 200, 'ymax': 200}",
    "left: 100, top: 100, right: 200, bottom: 200",
    '["100", "100", "200", "200"]',
    "{'x1': '100', 'y1': '100', 'x2': '200', 'y2': '200'}",
    '{"x0": 100, "y0": 100, "x1": 200, "y1": 200}',
    '{"width": 640, "height": 480, "x1": 100, "y1": 100, "x2": 200, "y2": 200}',
    "(100,100)-(200,200)",
    "(100, 100) \u2013 (200, 200)",
    "(100, 100) to (200, 200)",
    "[[100, 100, 200, 200]]",
    "{<100><100><200><200>}",
    "(box: 100 100 200 200)",
    '[100, 100, 200, 200, "bus"]',
    "[100, 100, 200, 200 | bus]",
    "[100PX, 100PX, 200PX, 200PX]",
    '{"x": 100, "y": 100, "w": 100, "h": 100}',
    '{"x1": 100, "y1": 100, "width": 100, "height": 100}',
    '{"bbox": [100, 100, 100, 100], "format": "xywh"}',
    "bbox_xywh: 100 100 100 100",
    "[x, y, width, height] = [100, 100, 100, 100]",
    '{"bbox": [100, 100, 200, 200], "format": "xyxy", "width": 640, "height": 480}',
]
NONE = [
    "bbox_2d",
    "x1 y1 x2 y2",
    "v1.2.3.4",
    "1 dog, 2 cats, 3 birds, 4 fish",
    "[100, 100, 200]",
    "[200, 200, 100, 100]",  # corners swapped
    "[100, 100, 100, 200]",  # no area
    "[nan, 0, 1, 1]",
    "[1e999, 0, 1, 1]",
    "bus 42 100 100 200 200",  # five: nobody can say which four
    '{"x1": 100, "y1": 100, "width": 100, "bottom": 200}',
    "[100, 100, 200, 200, 300]",
    "[1,000, 2, 3,000, 4]",  # six: were these thousands?
    "[1/2, 0, 3, 4]",
    "[1/2, 0, 3, 4, 5]",
    '["100", "100", "200", "200", "300"]',
    "[nan, 0, 1, 1, 5]",
    "1/2, 0, 3, 4",
    '{"bbox": [100, 100, 100, 100], "format": "cxcywh"}',
    "xywh or xyxy: [100, 100, 200, 200]",
    "<loc_100><loc0100><loc_200><loc0200>",
    "<loc_1000><loc_100><loc_200><loc_200>",
]


@pytest.mark.foreign("5.1")
@pytest.mark.foreign("5.2")
@pytest.mark.parametrize("text", BOXES)
def test_a_box_is_four_numbers_that_stand_together(text):
    for said, truth in ((text, AT), (AT, text), (text, text)):
        assert box(said, [truth]) == 1.0, (said, truth)
    assert box(text, ["[100, 100, 200, 120]"]) == 0.0


@pytest.mark.foreign("5.1")
def test_the_digit_of_a_key_is_no_coordinate():
    assert box('{"bbox_2d": [100,10,200,500]}', ['{"bbox_2d": [100,10,200,20]}']) == 0.0


@pytest.mark.foreign("5.1")
@pytest.mark.parametrize("text", NONE)
def test_what_is_no_box_is_wrong_as_a_prediction_and_refused_as_an_answer(text):
    assert box(text, [AT]) == 0.0
    with pytest.raises(DataError, match="is not a box"):
        box(AT, [text])


@pytest.mark.foreign("5.2")
def test_location_tokens_are_shares_of_the_picture_y_first():
    tokens = "<loc0102><loc0205><loc0512><loc0922> bus 42"
    assert box(tokens, ["[0.2, 0.1, 0.9, 0.5]"]) == 1.0
    assert box(tokens, ["[0.1, 0.2, 0.5, 0.9]"]) == 0.0
    florence = "bus 42<loc_100><loc_200><loc_500><loc_900>"  # x first
    assert find_box(florence) == (0.1, 0.2, 0.5, 0.9)
    assert box("[10%, 20%, 50%, 90%]", ["[0.1, 0.2, 0.5, 0.9]"]) == 1.0
    assert box("(-10, -5), (10, 5)", ["[-10, -5, 10, 5]"]) == 1.0


@pytest.mark.foreign("5.1")
@pytest.mark.parametrize("minus", "-\u2212\u2013")
def test_a_minus_is_a_minus_however_it_is_printed(minus):
    assert find_box(f"[{minus}5, 10, 100, 1e2]") == (-5, 10, 100, 100)
    assert find_box(f"{minus}.5 {minus}.5 5e-1 0.5") == (-0.5, -0.5, 0.5, 0.5)
    assert find_box("100\u2013200, 3, 4, 5") is None  # a range


@pytest.mark.foreign("5.1")
@pytest.mark.parametrize("text", [f"{AT[:-1]}]", "bus 42", *BOXES])
def test_numbers_of_any_sort_before_a_box_in_brackets_change_nothing(text):
    draw = random.Random(text)
    for _ in range(20):
        before = " ".join(draw.choices(["bus 7", "No. 3:", "x_2", "(8)", "3.5 m", "#1"], k=3))
        assert box(f"{before} {AT}", ["[101, 101, 200, 200]"]) == 1.0


@pytest.mark.foreign("5.1")
def test_the_form_of_a_box_is_the_answers():
    asked = ['{"bbox_2d": [1, 2, 3, 4]}']
    assert error_kind("box", '{"bbox_2d": [100, 10, 20, 500]}', asked) is None
    assert error_kind("box", "[1, 2, 3, 4]", asked) == "punctuation"
    assert error_kind("box", '{"bbox_2d": [1, 2, 3]}', asked) == "unparsable box"


@pytest.mark.foreign("5.4")
@pytest.mark.parametrize(
    "answer",
    [
        "B", "B.", "(B)", "B)", "B. blue", "B: blue", " B ", "(B) blue", "The answer is B.",
        "[B]", "**B**", "*B*", "`B`", '"B"', "**B. blue**", "**B**: blue", "B - blue",
        "B \u2013 blue", "B.blue", "Answer: B", "**Answer:** B", "Answer: (B) blue",
        "Final answer: B", "option B", "Option (B)", "The correct answer is B", "The answer is: B",
        "The answer is option B.", "It flies. The right option is **B**.", "B. The answer is B.",
        "B. vitamin A", "B. both A and C", "(B) both (A) and (R)", "B. E. coli", "B. J. F. Smith",
        "B. Rowling, J. K.", "B. -x", "B. blue\nB. blue",
    ],
)  # fmt: skip
def test_an_answer_is_reduced_to_its_letter_as_a_prediction_is(answer):
    assert letter(answer, [answer]) == letter("B", [answer]) == letter(answer, ["B"]) == 1.0
    assert letter(answer.casefold(), ["B"]) == 0.0
    assert letter("b", [answer]) == letter("A", [answer]) == letter("A. blue", [answer]) == 0.0
    assert score("letter", "b", [answer]) == (0.0, 1.0)


@pytest.mark.foreign("5.4")
@pytest.mark.parametrize(
    "answer",
    [
        "blue", "A cat", "B or C", "AB", "", "7", "A. or B.", "(A) or (B)", "A, B", "A. B.",
        "A) B) C)", "A - B", "A. cat or B. dog", "A. cat\nB. dog", "(A) cat, (B) dog",
        "A. cat and B. dog", "A. The answer is B.", "The answer is A. or B.", "A.5", "A:30",
        "A.M.", "A. M.", "A.M", "The answer is A.M.", "Option A or B", "The answer is not A",
        "**A** cat", "Bs", "Answer: Blue",
    ],
)  # fmt: skip
def test_an_answer_without_a_letter_is_right_for_nobody(answer):
    """The doctor refuses it: even a perfect copy is wrong."""
    assert letter(answer, [answer]) == letter("A", [answer]) == letter("B", [answer]) == 0.0


@pytest.mark.foreign("5.4")
def test_the_official_rule_for_letters_stays():
    for said, right in (("A. or B.", 1), ("A.5", 1), ("The answer is A.", 1), ("[A]", 0), ("a", 0)):
        assert official("ucit/ArxivQA", said, ["A"]) == right


def official(task, said, answers, profile="official", **extra):
    return score_all(task, said, answers, extra, profile).strict


@pytest.mark.foreign("5.11")
@pytest.mark.parametrize("task", ["coin/VQAv2", "coin/VizWiz"])
@pytest.mark.parametrize(
    ("said", "ten", "now", "of_2015"),
    [
        ("none", ["none"] * 10, 1, 0),  # all agree: compared as they are
        ("None", ["none"] * 10, 0, 0),
        ("0", ["none"] * 10, 0, 0),
        ("two", ["two"] * 10, 1, 0),
        ("The cat.", ["cat"] * 10, 0, 1),
        (" cat\n", ["cat "] * 10, 1, 0),
        ("cat", ["the cat"] * 9 + ["dog"], 1, 0),  # they differ: both sides fully
        ("2", ["Two"] * 9 + ["dog"], 1, 0),
        ("The Cat.", ["a cat"] * 3 + ["cat"] + ["dog"] * 6, 1, 0.3),
        ("dont", ["don't"] * 2 + ["do not"] * 8, 0.6, 0.6),
        ("cat", ["cat."] * 9 + ["dog"], 1, 1),
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9, 0.9),
    ],
)
def test_vqa_as_the_official_repository_has_it_today(task, said, ten, now, of_2015):
    assert official(task, said, ["x"], human_answers=ten) == pytest.approx(now)
    old = official(task, said, ["x"], "official-2015", human_answers=ten)
    assert old == pytest.approx(of_2015 if "\n" not in said else 0)


@pytest.mark.foreign("5.11")
@pytest.mark.parametrize("profile", ["official", "official-2015"])
def test_only_a_single_comma_between_digits_makes_all_punctuation_vanish(profile):
    for truth, expected in (("1,,000", 0), ("1,000", 0.3)):
        ten = [truth, *["none"] * 9]
        assert official("coin/VQAv2", "1000", ["x"], profile, human_answers=ten) == pytest.approx(
            expected
        )


@pytest.mark.foreign("5.11")
def test_the_rule_of_2015_is_the_official_one_elsewhere():
    for task, said, answers in (("trigap/ChartQA", "12.5", ["12"]), ("coin/GQA", "Yes.", ["yes"])):
        found = [official(task, said, answers, p) for p in ("official", "official-2015")]
        assert found == [1.0, 1.0]
    with pytest.raises(DataError, match="official metric of mllm_dcl/RS is not known"):
        official("mllm_dcl/RS", "no", ["no"], "official-2015")


@pytest.mark.foreign("5.12")
@pytest.mark.parametrize("task", ["coin/VQAv2", "coin/VizWiz", "coin/OCRVQA"])
def test_prism_strips_both_sides(task):
    for said, truth in ((" 2", "2"), ("2", "2 "), ("\tYes\n", " yes")):
        found = {p: official(task, said, [truth], p) for p in ("coin", "hide", "prism")}
        assert found == {"coin": 0, "hide": 0, "prism": 1}
    assert official(task, "2.", ["2"], "prism") == 0
    refused = official(task, " Unanswerable", ["unanswerable"], "prism")
    assert refused == (0 if task == "coin/OCRVQA" else 1)


@pytest.mark.foreign("5.13")
@pytest.mark.parametrize("task", ["trigap/DocVQA", "trigap/InfographicVQA"])
def test_prism_strips_both_sides_of_documents(task):
    assert official(task, " Cat\n", ["cat "], "prism") == 1.0
    assert official(task, " c a t ", ["cat"], "prism") == pytest.approx(0.6)  # inner space stays
    assert official(task, "  ", ["cat"], "prism") == official(task, "", ["cat"], "prism") == 0.0


@pytest.mark.foreign("5.14")
@pytest.mark.parametrize("task", ["mllm_dcl/RS", "mllm_dcl/AD"])
@pytest.mark.parametrize(
    ("said", "truth", "expected"),
    [
        ("no", "No.", 1),
        ("2.5", "2.5", 0),  # 25 is not in it
        ("25", "2.5", 1),
        ("It is 2.5 m", "2.5", 0),
        ("it snows", "no", 0),
        ("snow", "no", 1),  # no space: plain containment
        ("well, no.", "no", 1),
        ("it is:no", "no", 0),  # neither a space before it nor a mark behind it
        ("it is.no", "no", 0),
        ("it says no,or", "no", 1),
        ("a casino is", "no", 1),
        ("turn left, then", "turn left", 1),
        ("turn left", "turn left.", 0),  # of two words: as it stands
        ("turn left.", "turn left.", 1),
        ("Unanswerable no", "no", 0),
    ],
)
def test_rs_and_ad_of_mllm_dcl(task, said, truth, expected):
    assert official(task, said, [truth], "coin") == expected


@pytest.mark.foreign("5.15")
def test_prism_reads_exponents():
    for said in ("[1e-1, 2E-1, 5e-1, 9.0e-1]", "at .1e+0 0.2, 5.e-1 and 0.9"):
        assert official("coin/Grounding", said, ["[0.1,0.2,0.5,0.9]"], "prism") == 1.0
    assert official("coin/Grounding", "1e999 0 1 1", ["[0,0,1,1]"], "prism") == 0.0


@pytest.mark.foreign("5.16")
@pytest.mark.parametrize("task", ["trigap/DocVQA", "trigap/InfographicVQA"])
def test_official_anls_measures_squeezed_texts_by_their_raw_lengths(task):
    assert official(task, "ABC  d", ["ABC"]) == pytest.approx(2 / 3)
    assert official(task, "ABC", ["ABC  d"]) == pytest.approx(2 / 3)
    assert official(task, "  abc  ", ["abd"]) == pytest.approx(6 / 7)  # space around it helps
    assert official(task, "a  b", ["a b"]) == 1.0
    assert official(task, "abyz", ["abcd"]) == 0.5


@pytest.mark.foreign("5.17")
def test_chartqa_takes_all_percent_signs():
    for said, truth in (("12%%", "12%"), ("12%", "12%%"), ("12%%%", "0.12")):
        assert official("trigap/ChartQA", said, [truth]) == 1.0
    assert official("trigap/ChartQA", "12%%", ["12"]) == 0.0


@pytest.mark.foreign("5.17")
@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "Infinity", "1e400", "inf%"])
def test_chartqa_is_within_five_percent_of_no_number_that_is_not_finite(text):
    for said, truth in ((text, text), ("10", text), (text, "10"), (text, "cat")):
        assert official("trigap/ChartQA", said, [truth]) == 0.0
    assert official("trigap/ChartQA", "1e308", ["-1e308"]) == 0.0


@pytest.mark.foreign("5.1")
def test_boxes_are_read_whatever_json_they_stand_in():
    draw = random.Random(5)
    for _ in range(200):
        x, y = draw.uniform(0, 900), draw.uniform(0, 900)
        corners = [round(c, draw.randint(0, 3)) for c in (x, y, x + 50, y + 50)]
        made = {draw.choice(["bbox_2d", "box2", "b_1", "bbox"]): corners, "id_3": "bus 42"}
        text = json.dumps(draw.choice([made, [made], {"objects": [made], "n": 7}]))
        assert box(text, [str(corners)]) == 1.0, text
