from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.errors import DataError
from undrift.scoring import rules_official as official
from undrift.scoring import rules_public as public
from undrift.scoring.edit_distance import edit_distance, similarity
from undrift.scoring.vqa_normalisation import m4c_normalised, vqa_normalised

short = st.text(alphabet="abAB .", max_size=7)


@pytest.mark.parametrize(
    ("text", "vqa", "m4c"),
    [
        ("The Cat.", "cat", "cat"),
        ("A", "", ""),
        ("two dogs", "2 dogs", "2 dogs"),
        ("None", "0", "0"),
        ("eleven", "eleven", "eleven"),
        ("dont", "don't", "don't"),
        ("couldnt've been", "couldn't've been", "couldn't've been"),
        ("im", "im", "im"),  # the table has `Im`, which lower case never meets
        ("somebody'd", "somebodyd", "somebodyd"),
        ("black/white", "black white", "black white"),
        ("black /white", "black white", "black white"),
        ("red-blue", "red blue", "red blue"),
        ("red -blue", "red blue", "red blue"),
        ("red- blue-green", "red bluegreen", "red bluegreen"),  # one space, and all dashes go
        ("1,000", "1000", "1000"),
        ("1,000 (a-b)", "1000 ab", "1000 b"),  # the comma removes the dash; m4c has lost it
        ("3.5 m", "3.5 m", "3.5 m"),
        ("no. 5", "no 5", "no 5"),
        ("joe's", "joe's", "joe 's"),
        ("cat, dog", "cat dog", "cat dog"),
        ("cat,dog", "cat dog", "catdog"),
        ("a\nb\tc", "b c", "b c"),
        ("?!.,;", "", ""),
        ("", "", ""),
        ("日本", "日本", "日本"),
        ("." * 40, "." * 8, "." * 8),  # a flag passed as a count: 32 periods go
    ],
)
def test_normalisation_golden(text, vqa, m4c):
    assert vqa_normalised(text) == vqa
    assert m4c_normalised(text) == m4c


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
@pytest.mark.parametrize("rule", [official.vqa_soft_2015, official.textvqa_m4c])
def test_soft_accuracy_leaves_one_person_out(rule, matches, expected):
    ten = ["cat"] * matches + ["dog"] * (10 - matches)
    assert rule("The cat.", ten, {}) == pytest.approx(expected)
    assert rule("The cat.", ["cat"], {"human_answers": ten}) == pytest.approx(expected)


def test_vqa_answers_of_2015_lose_punctuation_only_and_only_if_they_differ():
    # Ten times the same: compared as they are, so the period cannot be matched.
    assert official.vqa_soft_2015("cat", ["cat."] * 10, {}) == 0.0
    assert official.vqa_soft_2015("cat", ["cat."] * 9 + ["dog"], {}) == 1.0
    assert official.vqa_soft_2015("the cat", ["the cat"] * 9 + ["dog"], {}) == 0.0
    assert official.textvqa_m4c("the cat", ["the cat"] * 10, {}) == 1.0


@pytest.mark.parametrize("rule", [official.vqa_soft, official.vqa_soft_2015, official.textvqa_m4c])
def test_ten_answers_are_needed(rule):
    for answers in (["cat"], ["cat"] * 9, ["cat"] * 11):
        with pytest.raises(DataError, match="ten people"):
            rule("cat", answers, {})


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
        ("日本", "日木", 1),
    ],
)
def test_edit_distance_golden(left, right, edits):
    assert edit_distance(left, right) == edit_distance(right, left) == edits


def naive_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        naive_distance(a[1:], b[1:]) + (a[0] != b[0]),
        naive_distance(a[1:], b) + 1,
        naive_distance(a, b[1:]) + 1,
    )


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_edit_distance_is_the_least_number_of_edits(a, b):
    assert edit_distance(a, b) == naive_distance(a, b)


def test_two_empty_texts_are_alike():
    assert similarity("", "") == 1.0


def test_official_anls_is_nothing_below_one_half():
    assert official.anls("abcd", ["axyz"], {}) == 0.0  # 0.25
    assert official.anls("abcd", ["abyz"], {}) == 0.5  # exactly the threshold stays
    assert official.anls("abcd", ["abcz", "no"], {}) == 0.75
    assert official.anls(" Ab  cd ", ["aB cd"], {}) == 1.0
    assert official.anls("", ["cat"], {}) == 0.0


@given(short, short)
def test_anls_of_prism_is_never_below_the_official_one_but_for_spaces(said, truth):
    said, truth = said.replace(" ", ""), truth.replace(" ", "")
    loose = public.anls_without_threshold(said, [truth], {})
    assert official.anls(said, [truth], {}) == (loose if loose >= 0.5 else 0.0)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("10.5", "10", 1.0),
        ("9.5", "10", 1.0),
        ("10.51", "10", 0.0),
        ("-10.2", "-10", 1.0),
        ("10", "-10", 0.0),
        ("12%", "0.12", 1.0),
        ("12 %", "12%", 1.0),
        ("12", "12%", 0.0),
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # compared as texts
        ("0.001", "0", 0.0),
        ("1,200", "1200", 0.0),
        ("1,200", "1,200", 1.0),
        ("Yes ", "yes", 1.0),
        ("Yes.", "yes", 0.0),
        ("nan", "10", 0.0),
        ("inf", "inf", 0.0),
        ("", "10", 0.0),
    ],
)
def test_relaxed_accuracy_golden(prediction, answer, expected):
    assert official.relaxed_accuracy(prediction, [answer], {}) == expected


def test_rec_one_half_is_right_officially_and_wrong_under_the_public_rule():
    # Union 2, overlap 1: IoU 0.5.
    assert official.box_half("[0,0,2,1]", ["[0,0,1,1]"], {}) == 1.0
    assert public.box_first_numbers("[0,0,2,1]", ["[0,0,1,1]"], {}) == 0.0


def test_letter_accuracy_knows_case_and_brackets():
    assert official.letter_accuracy("(C)", ["C"], {}) == 1.0
    assert official.letter_accuracy("c", ["C"], {}) == 0.0


def test_accuracy_folds_case_and_forgives_no_part_of_a_word():
    assert official.accuracy(" Hotdog ", ["hotdog"], {}) == 1.0
    assert official.accuracy("dog", ["hotdog"], {}) == 0.0
    assert official.accuracy("", ["hotdog"], {}) == 0.0


def test_no_text_breaks_a_rule():
    ten = ["cat"] * 10
    rules = (
        official.vqa_soft,
        official.vqa_soft_2015,
        official.textvqa_m4c,
        official.anls,
        official.relaxed_accuracy,
    )
    for rule in (*rules, official.letter_accuracy, official.accuracy):
        for prediction in ("", "\x00", "?!.,;:", "日本語" * 2000, "1" * 5000, "a" * 20000):
            assert rule(prediction, ten, {}) == 0.0
