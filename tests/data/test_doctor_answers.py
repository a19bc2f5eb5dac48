"""The doctor scores every answer with itself: a perfect copy must be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.within import held
from undrift.data.doctor import examine
from undrift.data.doctor_checks import RowQuestion, Split, scored_answers
from undrift.data.types import Example
from undrift.errors import DataError
from undrift.scoring import copy_fault, score_file


def split(scorer, answers, name="test", **extra):
    """A split of one example for each answer, or each tuple of answers."""
    asked = [
        RowQuestion(n, Example(str(n), "?", (a,) if isinstance(a, str) else a, (), extra))
        for n, a in enumerate(answers, 1)
    ]
    return Split("t", name, Path(f"{name}.json"), len(asked), tuple(asked), scorer=scorer)


def found(*splits):
    return [(f.check, f.severity, f.split, [i.what for i in f.items])
            for f in scored_answers(splits)]  # fmt: skip


@pytest.mark.foreign("5.4")
@pytest.mark.parametrize(
    ("scorer", "answers", "expected"),
    [
        ("exact", ["red", " red.", ("7", "seven")], []),
        ("letter", ["B", "B. blue", "(B)", ("A", "B.")], []),
        ("letter", ["B", "[B]", "**B**", "Answer: B", "B - blue", "The answer is: B"], []),
        ("letter", ["B", "blue", ("A", "A or B"), "A.M."], [("perfect copy", ["2", "3", "4"])]),
        ("box", ["[1, 2, 30, 40]", '{"bbox_2d": [1, 2, 3, 4]}'], []),
        ("box", ["[1,000, 2, 3,000, 4]", "[1/2, 0, 3, 4]"], [("answer", ["1", "2"])]),
        ("box", ["[1, 2, 30, 40]", "[3, 4, 1, 2]", "left"], [("answer", ["2", "3"])]),
        ("leter", ["B"], [("scorer", [])]),
    ],
)
def test_what_no_prediction_could_get_right_is_listed(scorer, answers, expected):
    assert found(split(scorer, answers)) == [(c, "error", "test" if c != "scorer" else "", items)
                                             for c, items in expected]  # fmt: skip


@pytest.mark.foreign("5.4")
def test_every_split_is_looked_at_and_every_reason_given():
    splits = [split("letter", ["B", "blue"], name) for name in ("train", "validation", "test")]
    assert [row[2] for row in found(*splits)] == ["train", "validation", "test"]
    (finding,) = scored_answers(splits[:1])
    assert finding.items[0].reason == "a copy of 'blue' scores 0" and finding.items[0].row == 2


@pytest.mark.foreign("5.4")
def test_a_published_rule_is_as_it_is():
    lost = split("coin/Grounding", ["[0.1,0.2,0.3,0.4]"])  # whose parser loses the outer digits
    assert found(lost) == [("perfect copy", "note", "test", ["1"])]
    assert found(split("mllm_dcl/RS", ["2.5"])) == [("perfect copy", "note", "test", ["1"])]
    assert found(split("mllm_dcl/Sci", ["a"])) == [("answer", "error", "test", ["1"])]  # no subset
    assert found(split("mllm_dcl/Sci", ["a"], "train")) == []


@pytest.mark.foreign("5.11")
@pytest.mark.parametrize("profile", ["official", "official-2015", "lenient"])
def test_of_ten_people_the_commonest_answer_gets_what_they_agree_on(profile):
    for ten in (["cat"] * 10, ["cat"] * 3 + list("abcdefg"), list("abcdefghij")):
        extra = {"human_answers": ten, "question": "?"}
        assert copy_fault("coin/VQAv2", ["cat"], extra, profile) is None
    cats = {"human_answers": ["the cat"] * 9 + ["dog"]}
    fault = copy_fault("coin/VQAv2", ["cat"], cats, profile)
    assert (fault is None) == (profile != "official-2015")  # that rule cannot match an article
    with pytest.raises(DataError, match="ten people"):
        copy_fault("coin/VQAv2", ["cat"], {}, "official")


def test_captions_need_a_word_and_company():
    assert found(split("ucit/Flickr30k", ["A dog.", "Two cats."])) == []
    checks = found(split("ucit/Flickr30k", [("A dog.", "...")]))
    assert checks == [
        ("perfect copy", "note", "test", ["1"]), ("single caption", "warning", "test", []),
    ]  # fmt: skip


@pytest.mark.foreign("5.3")
def test_boxes_of_two_units_are_named():
    test, train = (
        split("box", ["[0.1, 0.2, 0.3, 0.4]"]),
        split("box", ["[1, 2, 30, 40]"] * 3, "train"),
    )
    assert found(test, train) == [("box units", "error", "", ["1"])]
    (finding,) = scored_answers([test, train])
    assert "1 answer with a box in other units than 3 others" in finding.message
    assert finding.items[0].reason == "test: 0.1, 0.2, 0.3, 0.4"
    assert found(split("box", ["[0, 0, 1, 1]", "[0.5, 0, 1, 1]"])) == []


@pytest.mark.foreign("5.3")
@pytest.mark.parametrize(("said", "said_units"), [("[0.1, 0.1, 0.4, 0.4]", 2), ("[5, 5, 9, 9]", 0),
                                                 ("a bus", 0)])  # fmt: skip
@pytest.mark.parametrize("scorer", ["box", "coin/Grounding"])
def test_predictions_in_other_units_are_counted(scorer, said, said_units):
    asked = [Example(str(n), "?", ("[100, 100, 400, 400]",)) for n in range(3)]
    rows = [{"question_id": n, "text": text} for n, text in enumerate([said, said, "[1, 1, 9, 9]"])]
    units = score_file(scorer, rows, asked, "prism").units
    assert (
        units.startswith(f"{said_units} of 3 predictions are boxes in other units")
        if (said_units)
        else units == ""
    )


@pytest.mark.foreign("5.4")
def test_the_doctor_reads_a_folder(tmp_path):
    rows = [{"id": n, "text": "which?", "answer": a} for n, a in enumerate(["B", "(B)", "blue"])]
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    listed = "- {name: a, train: train.json, test: test.json, scorer: letter}\n"
    (tmp_path / "tasks.yaml").write_text(listed)
    report = examine("folder", tmp_path)
    copies = [f for f in report.findings if f.check == "perfect copy"]
    assert [(f.split, f.items[0].row, f.items[0].what) for f in copies] == [
        ("train", 3, "2"), ("test", 3, "2"),
    ]  # fmt: skip
    assert not report.sound
    (tmp_path / "tasks.yaml").write_text(listed.replace("letter", "leter"))
    (finding,) = (f for f in examine("folder", tmp_path).findings if f.check == "scorer")
    assert "did you mean 'letter'" in finding.message


def test_thousands_of_answers_take_a_moment():
    many = split("box", [f"[{n}, 1, {n + 5}, 9]" for n in range(4_000)])
    with held():
        assert found(many) == []
