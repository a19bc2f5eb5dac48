"""Planted errors of form are counted by kind and traced to where they come from."""

from __future__ import annotations

import pytest

from undrift.errors import RunDirError
from undrift.report.forms import OTHER_NOTATION, Slip, form_cells
from undrift.rundir import RunDir, read_json, read_lines, write_lines

from .conftest import FORGETS
from .planted import TRUTH, plant, right


def cells_of(folder):
    return {(cell.task, cell.after): cell for cell in form_cells(folder)}


def test_every_cell_by_hand(write_run):
    said = right()
    said[1, 3] = ["a", "b", "C", "A"]
    said[2, 3] = ["Sandal", "One", "7", "saddle"]
    said[3, 3] = ["7", "One", "Two.", "six"]
    found = cells_of(plant(write_run, "run", said))
    assert list(found) == [(1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]

    charts = found[1, 3]
    assert (charts.name, charts.strict, charts.lenient, charts.form) == ("charts", 25, 75, 50)
    assert (charts.wrong, charts.errors) == (3, {"case": 2})
    assert charts.case_only == pytest.approx(200 / 3)
    assert charts.worn == {"words": 2}  # small letters; `A` looks like its own
    assert charts.alone == {Slip("case", "a", "A"): 1, Slip("case", "b", "B"): 1}

    words = found[2, 3]
    assert (words.strict, words.lenient, words.form, words.wrong) == (25, 50, 50, 3)
    assert words.errors == {"case": 2}  # `7` is wrong in a right form
    assert words.worn == {"digits": 2}  # nobody learned since says `7`
    assert words.alone == {Slip("case", "Sandal", "sandal"): 1}

    digits = found[3, 3]
    assert (digits.strict, digits.lenient, digits.form, digits.wrong) == (25, 100, 50, 3)
    assert digits.errors == {OTHER_NOTATION: 1, "punctuation": 1, "case": 1}
    assert digits.worn == {}  # nothing was learned since


def test_right_answers_have_no_errors(write_run):
    for cell in form_cells(plant(write_run, "run", right())):
        assert (cell.strict, cell.lenient, cell.form, cell.wrong) == (100, 100, 100, 0)
        assert cell.case_only is None
        assert not cell.errors and not cell.worn and not cell.alone


def test_the_named_kinds_are_counted(write_run):
    truth = {"charts": ["A", "B", "C", "D", "A", "B"], "boxes": ["[0.0,0.0,0.2,0.2]"] * 6}
    said = right(tasks=truth)
    said[1, 2] = ["(A)", "", "The answer is not known", "I cannot tell", "d", "[0.1,0.2,0.3,0.4]"]
    said[2, 2] = ["[0.0,0.0]", "left", "A", "[0.5,0.5,0.9,0.9]", "", truth["boxes"][0]]
    found = cells_of(plant(write_run, "run", said, truth=truth, scorers=["exact", "box"]))
    assert found[1, 2].errors == {
        "punctuation": 1,
        "empty": 1,
        "sentence instead of letter": 2,
        "refusal": 1,
        "case": 1,
    }
    assert found[1, 2].worn == {"boxes": 1}
    assert found[2, 2].errors == {"unparsable box": 3, "empty": 1}
    assert (found[2, 2].wrong, found[2, 2].strict) == (5, pytest.approx(100 / 6))


def test_captions_have_the_matrix_cell_and_their_errors_of_form(write_run):
    truth = {
        "captions": ["A dog runs over the grass.", "Two men sit on a bench."],
        "words": ["a"] * 2,
    }
    said = right(tasks=truth)
    said[1, 2] = ["A dog runs over the grass", "a"]
    folder = plant(write_run, "run", said, truth=truth, scorers=["ucit/Flickr30k", "exact"])
    found = cells_of(folder)[1, 2]
    assert found.strict == read_json(folder / "matrix.json")["matrix"][1][0]
    assert (found.lenient, found.form, found.case_only) == (None, 0, None)
    assert (found.wrong, found.errors, found.alone) == (2, {"punctuation": 2}, {})
    assert found.worn == {"words": 2}  # the one for its missing period, the other word for word


def test_a_run_trained_once_has_cells_for_the_end_alone(write_run):
    said = {(on, 1): answers for on, answers in enumerate(TRUTH.values(), 1)}
    said[2, 1] = ["Sandal", "lemon", "hazel", "saddle"]
    found = cells_of(plant(write_run, "joint", said, method="joint"))
    assert list(found) == [(1, 3), (2, 3), (3, 3)]
    assert found[2, 3].strict == 75 and found[2, 3].errors == {"case": 1}


def test_what_was_not_trained_or_not_recorded_has_no_cells(write_run):
    assert form_cells(write_run("zeroshot", "zeroshot", [[1.0] * 3], trained=False)) == []
    assert form_cells(write_run("old", "same", FORGETS)) == []


def test_cells_that_were_not_measured_are_left_out(write_run):
    said = {key: answers for key, answers in right().items() if key != (1, 2)}
    assert list(cells_of(plant(write_run, "run", said))) == [(1, 1), (2, 2), (1, 3), (2, 3), (3, 3)]


def test_a_prediction_that_lacks_something_is_named(write_run):
    folder = plant(write_run, "run", right())
    file = RunDir(folder).predictions(3, 1)
    write_lines(file, [{k: v for k, v in row.items() if k != "strict"} for row in read_lines(file)])
    with pytest.raises(RunDirError, match=r"on-01\.jsonl is damaged: 0\.strict: field required"):
        form_cells(folder)
