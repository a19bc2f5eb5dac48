from __future__ import annotations

import random

import pytest

from undrift.data import Example
from undrift.errors import DataError, UnknownName
from undrift.scoring import Scores, read_predictions, score_file

LETTERS = [Example(str(n), "Which?", (letter,)) for n, letter in enumerate("ABCD")]


def rows(*texts, first=0):
    return [{"question_id": n, "text": text} for n, text in enumerate(texts, start=first)]


def test_averages_are_percentages_of_all_examples():
    found = score_file("coin/ScienceQA", rows("A", "b", "C.", "D"), LETTERS, "hide")
    assert found.strict == 50.0  # A and D
    assert found.official == 75.0  # A, `C.` and D
    assert found.lenient == 100.0
    assert found.form == 50.0
    assert found.errors == {"case": 1, "punctuation": 1}
    assert found.lines["1"] == Scores(0.0, 0.0, 1.0, 0.0)
    assert list(found.lines) == ["0", "1", "2", "3"]
    assert (found.scored, found.examples, found.partial) == (4, 4, False)


def test_scores_do_not_depend_on_line_order():
    lines = rows("A", "B", "A", "A")
    whole = score_file("coin/ScienceQA", lines, LETTERS, "hide")
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        assert score_file("coin/ScienceQA", lines, LETTERS, "hide") == whole


def test_the_number_17_and_the_text_17_are_one_id():
    example = Example("17", "Which?", ("A",))
    for key in (17, "17"):
        row = {"question_id": key, "text": "A"}
        assert score_file("coin/ScienceQA", [row], [example], "coin").strict == 100.0
    both = [{"question_id": 17, "text": "A"}, {"question_id": "17", "text": "B"}]
    for lines in (both, both[::-1]):
        with pytest.raises(DataError, match="prediction 2 is the second for the question_id '17'"):
            score_file("coin/ScienceQA", lines, [example], "coin")


def test_other_spellings_of_a_number_are_other_ids():
    with pytest.raises(DataError, match="has not got"):
        score_file("coin/GQA", [{"question_id": "017", "text": "a"}], LETTERS, "coin")


def test_a_partial_file_is_refused():
    message = (
        r"2 of 4 examples of coin/ScienceQA have no prediction, the first of them '2'.*--partial"
    )
    with pytest.raises(DataError, match=message):
        score_file("coin/ScienceQA", rows("A", "B"), LETTERS, "hide")


def test_a_partial_file_divides_by_the_predictions_if_asked_and_says_so():
    found = score_file("coin/ScienceQA", rows("A", "A"), LETTERS, "hide", partial=True)
    assert found.strict == 50.0
    assert found.partial
    whole = score_file("coin/ScienceQA", rows(*"ABCD"), LETTERS, "hide", partial=True)
    assert not whole.partial


def test_no_predictions_are_refused_even_as_a_partial_file():
    with pytest.raises(DataError, match="4 of 4"):
        score_file("coin/ScienceQA", [], LETTERS, "hide", partial=True)


def test_a_missing_prediction_is_wrong_even_where_an_empty_one_is_right():
    fish = [Example("0", "What?", ("tench",)), Example("1", "What?", ("eel",))]
    found = score_file("coin/ImageNet", rows("", None), fish, "coin")
    assert found.strict == 50.0
    assert found.lines["1"] == Scores(0.0, 0.0, 0.0, 0.0)
    assert found.errors == {"empty": 2}


def test_lucky_hits_are_counted():
    fish = [Example(str(n), "What?", ("tench",)) for n in range(4)]
    found = score_file("coin/ImageNet", rows("", "ten", "tench", "eel"), fish, "coin")
    assert found.strict == 75.0
    assert found.lenient == 25.0
    assert found.lucky == 2


def test_unknown_ids_are_an_error():
    with pytest.raises(DataError, match=r"1 predictions .* has not got, .* '9'"):
        score_file("coin/ScienceQA", [*rows(*"ABCD"), *rows("A", first=9)], LETTERS, "hide")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "A"}, "prediction 1 has the question_id None"),
        ({"question_id": True, "text": "A"}, "question_id True"),
        ({"question_id": 1.0, "text": "A"}, "question_id 1.0"),
        ({"question_id": 1}, "has no text: its keys are .'question_id'."),
        ({"question_id": 1, "text": 7}, "has no text: 'text' is 7; expected a text or null"),
        ({"question_id": 1, "text": ["A"]}, r"'text' is \['A'\]; expected a text or null"),
        (
            {"id": 1, "answer": "A"},
            r"its keys are \['answer', 'id'\]; expected question_id and text",
        ),
        ({"question_id": 1, "answer": "A"}, "expected question_id and text, or id, question and"),
        ({"id": 1, "question": "Which?", "answer": 7}, "'answer' is 7; expected a text or null"),
        ({"id": None, "question": "Which?", "answer": "A"}, "prediction 1 has the id None"),
    ],
)
def test_rows_that_cannot_be_read(row, message):
    with pytest.raises(DataError, match=message):
        score_file("coin/ScienceQA", [row], LETTERS, "hide")


def predicted(*texts, question="Which?", **more):
    """Rows as `undrift predict --out` writes them."""
    return [
        {"id": str(n), "question": question, "answer": text, **more} for n, text in enumerate(texts)
    ]


def test_what_undrift_predicts_is_read():
    found = score_file("coin/ScienceQA", predicted(*"ABCA"), LETTERS, "hide")
    assert found == score_file("coin/ScienceQA", rows(*"ABCA"), LETTERS, "hide")
    mixed = [*predicted("A"), *rows("B", "C", "D", first=1)]
    assert score_file("coin/ScienceQA", mixed, LETTERS, "hide").strict == 100.0
    with pytest.raises(DataError, match="prediction 5 is the second for the id '0'"):
        score_file("coin/ScienceQA", predicted(*"ABCD") + predicted("A"), LETTERS, "hide")


def test_what_is_predicted_for_other_questions_is_refused():
    """Rows without ids are numbered, so that the ids alone would match."""
    with pytest.raises(DataError, match=r"'0' answers 'How many\?'.* asks 'Which\?' there"):
        score_file("coin/ScienceQA", predicted(*"ABCD", question="How many?"), LETTERS, "hide")


def test_a_row_of_data_is_no_prediction():
    with pytest.raises(DataError, match="prediction 1 has the question_id None"):
        score_file("coin/ScienceQA", predicted(*"ABCD", image="1.png"), LETTERS, "hide")


def test_examples_that_cannot_be_scored():
    with pytest.raises(DataError, match="two examples have the id '1'"):
        score_file("coin/ScienceQA", [], [*LETTERS, LETTERS[1]], "hide")
    with pytest.raises(DataError, match="no examples"):
        score_file("coin/ScienceQA", [], [], "hide")
    with pytest.raises(UnknownName, match="unknown scorer"):
        score_file("coin/Chess", rows(*"ABCD"), LETTERS, "hide")


def test_one_example_without_ten_answers_leaves_no_official_average():
    ten = {"human_answers": ["a"] * 10}
    examples = [Example("0", "?", ("a",), extra=ten), Example("1", "?", ("a",))]
    found = score_file("coin/VQAv2", rows("a", "a"), examples, "coin")
    assert found.strict == 100.0
    assert found.official is None


def test_the_question_is_there_for_the_rules_that_ask_for_it():
    example = Example("0", "Which states are red?", ("ohio,utah",), extra={"subset": "MapQA"})
    assert score_file("mllm_dcl/Sci", rows("ohio"), [example], "hide").strict == 50.0


CAPTIONS = [
    Example("1", "?", ("A cat sits on a mat.", "The cat is on a mat.")),
    Example("2", "?", ("Two dogs run in the snow.",)),
    Example("3", "?", ("A man rides a red bicycle.",)),
]
SAID = ("A cat sits on a mat.", "Dogs run in snow.", "A man rides a horse.")


def test_caption_scores_do_not_depend_on_line_order():
    lines = rows(*SAID, first=1)
    straight = score_file("ucit/Flickr30k", lines, CAPTIONS, "hide")
    assert score_file("ucit/Flickr30k", lines[::-1], CAPTIONS, "hide") == straight
    by_line = score_file("ucit/Flickr30k", rows(*SAID[::-1], first=1), CAPTIONS, "hide")
    assert by_line.captions["cider"] < straight.captions["cider"]  # what matching by line would do


def test_captions_are_scored_with_their_file():
    found = score_file("ucit/VizWiz", rows(*SAID, first=1), CAPTIONS, "hide")
    assert (found.strict, found.lenient, found.lucky) == (None, None, 0)
    assert found.official == found.captions["cider"] > 0
    assert found.form == 100 * 2 / 3  # `Dogs run in snow.` has four words
    assert found.errors == {"too short": 1}
    assert set(found.lines.values()) == {Scores(None, None, None, f) for f in (0.0, 1.0)}


def test_a_missing_caption_is_an_empty_one():
    lines = rows(SAID[0], None, SAID[2], first=1)
    empty = rows(SAID[0], "", SAID[2], first=1)
    missing = score_file("ucit/VizWiz", lines, CAPTIONS, "hide")
    assert missing.captions == score_file("ucit/VizWiz", empty, CAPTIONS, "hide").captions


def test_files_are_read_as_llava_writes_them(tmp_path):
    (tmp_path / "2_0.jsonl").write_text('{"question_id": 1, "text": null}\n\n')
    (tmp_path / "2_1.jsonl").write_text('\ufeff{"question_id": "2", "text": "B\u2028"}\r\n')
    parts = [{"question_id": 1, "text": None}, {"question_id": "2", "text": "B\u2028"}]
    assert read_predictions(tmp_path) == parts
    (tmp_path / "merge.jsonl").write_text('{"question_id": 3, "text": "A"}')
    assert read_predictions(tmp_path) == [{"question_id": 3, "text": "A"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1}\n{"question', "line 2, column 2: no JSON"),
        ("[1, 2]", "line 1: expected an object"),
        (
            '{"question_id": 1, "text": "A", "text": "Z"}',
            "line 1: it holds an object that has the key 'text' twice",
        ),
        (None, "cannot read"),
    ],
)
def test_what_is_no_predictions_file(tmp_path, text, message):
    path = tmp_path / "answers.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_predictions(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no predictions"):
        read_predictions(tmp_path / "empty")
