from __future__ import annotations

import pytest

from undrift.errors import DataError
from undrift.scoring import rules_public as public

NASTY = ("", " ", "\n", "...", "?!.,;:", "ß", "日本語", "\x00", "[,,,]", "nan", "inf,inf,inf,inf")
LONG = "a b c [1,2,3,4] " * 4000


def right(rule, prediction, *answers):
    return rule(prediction, answers, {}) == 1.0


def test_scienceqa_lower_case_a_is_right_in_coin_and_wrong_in_hide():
    assert right(public.scienceqa_first_word, "a", "A")
    assert not right(public.scienceqa_stated, "a", "A")


@pytest.mark.parametrize(
    ("prediction", "coin", "hide"),  # which letter each reads
    [
        ("C", "C", "C"),
        ("C. a cat", "C", "C"),
        ("c. a cat", "C", ""),
        ("C.", "C", ""),
        ("(C)", "C", ""),
        (" C", "C", ""),
        ("C: a cat", "C", ""),
        ("The answer is C.", "C", "C"),
        ("The answer is C", "C", ""),
        ("The answer is Cat", "", "C"),
        ("The answer is A. The answer is C.", "A", ""),
        ("the answer is C.", "C", ""),
        ("It is a cat", "A", ""),
        ("I say C", "I", ""),
        ("it's C", "S", ""),
        ("Cat", "", ""),
        ("FAILED", "", ""),
        ("", "", ""),
        ("é", "É", ""),
        ("F. none", "F", ""),
    ],
)
def test_scienceqa_golden(prediction, coin, hide):
    for letter in "ABCDEFISÉ":
        assert right(public.scienceqa_first_word, prediction, letter) == (letter == coin)
        assert right(public.scienceqa_stated, prediction, letter) == (letter == hide)


def test_imagenet_empty_prediction_is_right_under_the_public_rule():
    assert right(public.either_contains, "", "tench")


def test_imagenet_dog_is_right_for_hotdog_and_case_counts():
    assert right(public.either_contains, "dog", "hotdog")
    assert right(public.either_contains, "It is a hotdog.", "hotdog")
    assert not right(public.either_contains, "Hotdog", "hotdog")
    assert not right(public.either_contains, "cat", "hotdog")
    assert not right(public.either_contains, "hotdog ", "dogs")
    assert not right(public.either_contains, "dog", "cat", "dog")  # the first answer only


def test_ucit_accuracy_strips_neither_space_nor_period():
    assert right(public.same_upper, "Yes", "yes")
    for prediction in ("yes.", " yes", "yes ", "", "ye"):
        assert not right(public.same_upper, prediction, "yes")
    assert right(public.same_upper, "STRASSE", "straße")  # upper(), not casefold()


def test_chartqa_gets_no_tolerance_under_the_public_rule():
    assert not right(public.same_upper, "10.1", "10.0")
    assert not right(public.same_upper, "10", "10.0")


def test_vqav2_and_vizwiz_are_scored_against_one_answer():
    answers = ["yes", *["no"] * 9]
    assert right(public.same_upper, "yes", *answers)
    assert not right(public.same_upper, "no", *answers)


def test_ocrvqa_unanswerable_scores_nothing_even_where_it_is_the_answer():
    assert right(public.ocrvqa_lower, "Jane Doe", "jane doe")
    assert not right(public.ocrvqa_lower, "Unanswerable", "Unanswerable")
    assert right(public.ocrvqa_lower, "unanswerable", "Unanswerable")  # this spelling only
    assert not right(public.ocrvqa_lower, "Jane Doe.", "Jane Doe")


def test_gqa_drops_final_periods_and_folds_the_prediction_only():
    assert right(public.gqa, "Yes...", "yes")
    assert not right(public.gqa, "Yes. ", "yes")
    assert not right(public.gqa, "yes", "Yes")
    assert not right(public.gqa, "", "yes")


def test_rec_parser_of_coin_loses_the_outer_digits():
    # "[0.1,0.2,0.3,0.4]" is read as .1, 0.2, 0.3, "0." = 0: y2 below y1, no overlap.
    box = "[0.1,0.2,0.3,0.4]"
    assert not right(public.box_outer_digits_lost, box, box)
    assert right(public.box_first_numbers, box, box)
    # Two decimals lose one: [.10, 0.20, 0.50, 0.8] against 0.89: IoU 0.6 / 0.69 = 0.87.
    assert right(public.box_outer_digits_lost, "[0.10,0.20,0.50,0.89]", "[0.10,0.20,0.50,0.89]")
    # The leading 1 is lost too: the box begins at 0 and is far too wide.
    wide = "[1.00,0.00,1.40,1.00]"
    assert not right(public.box_outer_digits_lost, wide, wide)
    # One space before the bracket is removed; a second one is lost in the digit's place.
    assert not right(public.box_outer_digits_lost, f" {wide}", wide)
    assert right(public.box_outer_digits_lost, f"  {wide}", wide)
    # Text that shields the digits makes the same parser read them all.
    assert right(public.box_outer_digits_lost, f"({box})", box)


@pytest.mark.parametrize("rule", [public.box_outer_digits_lost, public.box_first_numbers])
def test_rec_needs_more_than_half_of_the_union(rule):
    # Padded so that both parsers read the same. Union 2, overlap 1: exactly 0.5.
    assert not right(rule, "([0,0,2,1])", "[0,0,1,1]")
    assert right(rule, "([0,0,1.99,1])", "[0,0,1,1]")


@pytest.mark.parametrize("rule", [public.box_outer_digits_lost, public.box_first_numbers])
def test_rec_what_cannot_be_parsed_is_wrong_and_not_an_error(rule):
    for prediction in (*NASTY, "[0,0,1]", "no box", "[a,b,c,d]", "0 0 1"):
        assert not right(rule, prediction, "[0,0,1,1]")
    for answer in ("", "[0,0,1]", "a cat"):
        with pytest.raises(DataError, match="is not a box"):
            rule("[0,0,1,1]", [answer], {})


def test_rec_prism_takes_the_first_four_numbers_whatever_is_around_them():
    assert not right(public.box_first_numbers, "x1 is 0 then 0, 1 and 1; or 7", "[0, 0, 1, 1]")
    assert right(public.box_first_numbers, "at 0 then 0, 1 and 1; or 7", "[0, 0, 1, 1]")


def test_rec_scaling_by_the_longer_side_changes_nothing():
    boxes = ("([0.1,0.2,0.5,0.9])", "[0.1,0.2,0.6,0.8]")
    scaled = ("([64,128,320,576])", "[64,128,384,512]")
    for said, truth in (boxes, scaled):
        # overlap 0.4 * 0.6 = 0.24; union 0.28 + 0.30 - 0.24 = 0.34; IoU 0.71
        assert right(public.box_outer_digits_lost, said, truth)


def test_anls_of_prism_has_no_threshold():
    # "abcd" against "axyz": three of four letters replaced, 1 - 3/4.
    assert public.anls_without_threshold("abcd", ["axyz"], {}) == 0.25


def test_anls_of_prism_is_the_best_over_the_answers_and_keeps_inner_spaces():
    assert public.anls_without_threshold("Cat", ["dog", "cat"], {}) == 1.0
    assert public.anls_without_threshold(" c at", ["cat "], {}) == 0.75
    assert public.anls_without_threshold("", ["cat"], {}) == 0.0


RULES = [
    public.scienceqa_first_word,
    public.scienceqa_stated,
    public.either_contains,
    public.same_upper,
    public.ocrvqa_lower,
    public.gqa,
    public.anls_without_threshold,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_text_breaks_a_rule(rule):
    for prediction in (*NASTY, LONG):
        assert 0.0 <= rule(prediction, ["Cat"], {}) <= 1.0


# The five domains of MLLM-DCL.
MAP = {"subset": "MapQA", "question": "Which states have a value of 3?"}


@pytest.mark.parametrize(
    ("rule", "prediction", "answer", "expected"),
    [
        (public.contains, "Yes, it is", "yes", 1.0),
        (public.contains, "yesterday", "yes", 1.0),
        (public.contains, "", "yes", 0.0),
        (public.contains, "no", "yes", 0.0),
        (public.contains_word, "no", "no", 1.0),
        (public.contains_word, "snow", "no", 1.0),  # no space, so plain containment
        (public.contains_word, "it snows", "no", 0.0),
        (public.contains_word, "well, No.", "no", 1.0),
        (public.contains_word, "a casino is", "no", 1.0),  # one side is enough
        (public.contains_word, "turn left, then stop", "turn left", 1.0),
        (public.contains_word, "", "no", 0.0),
        (public.same_without_spaces, " B. ", "b", 1.0),
        (public.same_without_spaces, "T r u e", "true", 1.0),
        (public.same_without_spaces, "up trend", "up trend", 0.0),  # the answer keeps its space
        (public.same_without_spaces, "(B)", "B", 0.0),
    ],
)
def test_domains_golden(rule, prediction, answer, expected):
    assert rule(prediction, [answer], {}) == expected


def test_domains_unanswerable_in_the_output_scores_nothing():
    extra = {"subset": "AI2D", "question": ""}
    text = "Unanswerable yes"
    rules = (public.contains, public.contains_word, public.science, public.same_without_spaces)
    for rule in rules:
        assert rule(text, [text], extra) == 0.0
    assert public.contains("unanswerable yes", ["yes"], {}) == 1.0  # this spelling only


@pytest.mark.parametrize("subset", ["AI2D", "TQA", "VQA", "SciVerse"])
def test_sci_wants_equality(subset):
    extra = {"subset": subset, "question": "Which states"}
    assert public.science("b", ["B"], extra) == 1.0
    assert public.science("B.", ["B"], extra) == 0.0


def test_sci_renaming_a_picture_changes_its_score():
    assert public.science("B.", ["B"], {"subset": "AI2D", "question": "?"}) == 0.0
    assert public.science("B.", ["B"], {"subset": "renamed", "question": "?"}) == 1.0


def test_mapqa_which_states_is_the_share_of_states_found_with_their_spaces():
    assert public.science("Ohio,Iowa", ["ohio,iowa,utah,maine"], MAP) == 0.5
    assert public.science("ohio, iowa", ["ohio,iowa"], MAP) == 0.5
    assert public.science("ohio, iowa", ["ohio, iowa"], MAP) == 1.0
    assert public.science("", ["ohio"], MAP) == 0.0
    other = {**MAP, "question": "Is Ohio higher?"}
    assert public.science("I say yes", ["Yes"], other) == 1.0


def test_sci_without_what_it_needs():
    with pytest.raises(DataError, match="'subset'"):
        public.science("a", ["a"], {})
    with pytest.raises(DataError, match="'question'"):
        public.science("a", ["a"], {"subset": "MapQA"})
