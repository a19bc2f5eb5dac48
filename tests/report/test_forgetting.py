"""Planted causes and errors of form are found, add up, and are told in words."""

from __future__ import annotations

import re

import pytest

from undrift.errors import RunDirError
from undrift.report import load
from undrift.report.forgetting import (
    OTHER_NOTATION,
    FormCell,
    Slip,
    explain_all,
    form_cells,
    run_sentence,
    task_sentence,
    verdict,
)
from undrift.rundir import RunDir, read_json, read_lines, write_json, write_lines

from .conftest import FORGETS
from .planted import TRUTH, cause, diagnosed, plant, right


def explain(run):
    (loss,) = explain_all([run])
    return loss


@pytest.fixture
def forgetful(write_run):
    """A run that lost 75 points of charts, 50 in form alone, and 25 of words, all in content."""

    def write(name="run", method="moelora", **protocol):
        said = right()
        said[1, 3] = ["a", "b", "C", "A"]
        said[2, 3] = ["sandal", "lemon", "hazel", "lemon"]
        return plant(write_run, name, said, method=method, **protocol)

    return write


def both(router, expert, form, **facts):
    """Cells for the two tasks of `forgetful`; the second lost its 25 points to the router."""
    return [
        cause(1, "charts", 3, 100, 25, router=router, expert=expert, form=form, **facts),
        cause(2, "words", 3, 100, 75, router=25, expert=0, form=0, **facts),
    ]


def test_form_and_content_without_a_diagnosis(forgetful):
    folder = forgetful()
    found = explain(load(folder))
    charts, words = found.tasks
    assert (charts.task, charts.name, charts.learned, charts.end) == (1, "charts", 100, 25)
    assert (charts.lost, charts.form, charts.content) == (75, 50, 25)
    assert (words.lost, words.form, words.content) == (25, 0, 25)
    assert charts.router is charts.expert is found.router is found.expert is None
    assert (found.lost, found.form) == (50, 25)
    assert found.lost == -load(folder).metrics["bwt"]
    assert found.why == f"`undrift diagnose {folder}` tells the router's part from the experts'"
    assert charts.sentence == (
        "charts lost 75.0 points: 50.0 in form alone (letter case, such as “a” for “A”), "
        "25.0 in content"
    )
    assert words.sentence == "words lost 25.0 points, all in content"
    assert found.sentence == (
        "moelora forgets 50.0 of the 100.0 points that it had just learned: "
        "25.0 in content (50 %), 25.0 in form alone (50 %)."
    )
    assert verdict([found]) == f"{found.sentence} ({found.why}.)"


def test_router_and_experts_from_the_diagnosis(forgetful):
    folder = forgetful()
    diagnosed(folder, both(10, 15, 50))
    found = explain(load(folder))
    charts, words = found.tasks
    for task in found.tasks:
        assert task.router + task.expert + task.form == task.lost
        assert task.content == task.lost - task.form
    assert (charts.router, charts.expert, charts.form) == (10, 15, 50)
    assert (found.lost, found.router, found.expert, found.form) == (50, 17.5, 7.5, 25)
    assert found.why == ""
    assert charts.sentence == (
        "charts lost 75.0 points: 50.0 in form alone (letter case, such as “a” for “A”), "
        "15.0 because the experts changed, 10.0 because the router sends its inputs elsewhere"
    )
    assert words.sentence == (
        "words lost 25.0 points, all because the router sends its inputs elsewhere"
    )
    assert found.sentence == (
        "moelora forgets 50.0 of the 100.0 points that it had just learned: "
        "25.0 in form alone (50 %), 17.5 because its router sends old inputs elsewhere (35 %), "
        "7.5 because its experts changed (15 %)."
    )
    assert verdict([found]) == found.sentence


def test_what_a_part_has_won_back_is_said_and_not_shared_out(forgetful):
    folder = forgetful()
    diagnosed(folder, both(-5, 30, 50))
    found = explain(load(folder))
    assert found.tasks[0].sentence.endswith(
        "30.0 because the experts changed, less 5.0 that the change of the router won back"
    )
    assert "%" in found.sentence  # the mean of the router, 10, is a loss
    diagnosed(folder, both(-35, 60, 50))
    found = explain(load(folder))
    assert found.sentence == (
        "moelora forgets 50.0 of the 100.0 points that it had just learned: 30.0 because its "
        "experts changed, 25.0 in form alone, less 5.0 that the change of the router won back."
    )


@pytest.mark.parametrize(
    ("parts", "causes", "task", "run"),
    [
        ("experts", (0, 25, 50), "25.0 because the weights changed", "because its weights changed"),
        (
            "router",
            (25, 0, 50),
            "25.0 because the router sends its inputs elsewhere, while the experts stayed the same",
            "because its router sends old inputs elsewhere, while its experts stayed the same",
        ),
    ],
)
def test_methods_with_a_router_or_experts_only(forgetful, parts, causes, task, run):
    folder = forgetful()
    diagnosed(folder, both(*causes, parts=parts))
    found = explain(load(folder))
    assert task in found.tasks[0].sentence and run in found.sentence


def test_a_diagnosis_that_does_not_apply_says_why(forgetful):
    folder = forgetful()
    diagnosed(folder, [], applies=False, why="it has neither router nor experts")
    found = explain(load(folder))
    assert found.why == "it has neither router nor experts"
    assert found.router is None and found.form == 25


@pytest.mark.parametrize(("after", "facts"), [(2, {}), (3, {"before": 2})])
def test_a_diagnosis_of_other_stages_does_not_explain_the_end(forgetful, after, facts):
    folder = forgetful()
    cell = {**cause(1, "charts", after, 100, 90, router=10, expert=0, form=0), **facts}
    diagnosed(folder, [cell])
    found = explain(load(folder))
    assert found.tasks[0].router is None and found.tasks[0].lost == 75
    rest = f"until the end is not diagnosed; run `undrift diagnose {folder}`"
    assert found.why == f"the loss of any task {rest}"
    diagnosed(folder, [cell, both(10, 15, 50)[1]])
    found = explain(load(folder))
    assert found.why == f"the loss of charts {rest}"
    assert found.tasks[1].router == 25 and found.router is None and found.form == 25


def test_of_a_probe_set_both_losses_are_said(forgetful):
    folder = forgetful()
    cell = cause(1, "charts", 3, 100, 40, router=5, expert=5, form=50)
    diagnosed(folder, [cell, both(0, 0, 0)[1]], probe=2)
    found = explain(load(folder))
    assert (found.tasks[0].end, found.lost) == (40, 42.5)
    assert found.sentence.endswith(
        "(That is of the examples that were diagnosed; of all test examples it is 50.0.)"
    )


def test_where_the_wrong_answers_come_from_is_said(write_run):
    truth = {"words": TRUTH["words"], "digits": TRUTH["digits"]}
    said = right(tasks=truth)
    said[1, 2] = ["One", "Two", "Six", "lemon"]
    loss = explain(load(plant(write_run, "run", said, truth=truth))).tasks[0]
    assert loss.sentence == (
        "words lost 100.0 points, all in content; "
        "3 of the 4 wrong answers look like those of digits"
    )


def test_kept_and_gained_need_no_cause(write_run):
    said = right()
    said[1, 1] = ["A", "B", "C", "A"]
    found = explain(load(plant(write_run, "run", said)))
    assert [task.sentence for task in found.tasks] == [
        "charts gained 25.0 points",
        "words kept its 100.0 points",
    ]
    assert (found.lost, found.form) == (-12.5, 0)
    assert found.sentence == "moelora gains 12.5 on the 87.5 points that it had just learned."
    assert verdict([found]) == found.sentence


def test_identical_answers_have_lost_nothing(write_run):
    found = explain(load(plant(write_run, "run", right())))
    assert all((t.lost, t.form, t.content) == (0, 0, 0) for t in found.tasks)
    assert (found.lost, found.form) == (0, 0)
    assert found.sentence == "moelora forgets nothing of the 100.0 points that it had just learned."


def test_content_that_was_never_in_form_is_no_loss_of_form(write_run):
    said = right()
    said[1, 1], said[1, 3] = ["A", "B", "c", "D"], ["A", "A", "A", "A"]
    found = explain(load(plant(write_run, "run", said))).tasks[0]
    assert (found.lost, found.form, found.content) == (50, -25, 75)
    assert found.sentence == (
        "charts lost 50.0 points: 75.0 in content, less 25.0 that form alone no longer costs"
    )


def test_of_captions_content_and_form_are_not_told_apart(write_run):
    truth = {"captions": ["A dog runs over grass.", "Two men sit on a bench."], "words": ["a", "b"]}
    said = right(tasks=truth)
    said[1, 2] = ["A dog.", "A dog."]
    folder = plant(write_run, "run", said, truth=truth, scorers=["ucit/Flickr30k", "exact"])
    found = explain(load(folder))
    (captions,) = found.tasks
    assert captions.lost == captions.content > 0 and captions.form == found.form == 0
    assert captions.sentence == (
        f"captions lost {captions.lost:.1f} points, "
        "all in content or form, which are not told apart in captions"
    )


def test_runs_without_a_diagonal_have_nothing_to_explain(write_run):
    joint = explain(load(write_run("joint", "joint", [[90.0, 80.0, 70.0]])))
    untouched = explain(load(write_run("zero", "zeroshot", [[9.0, 8.0, 7.0]], trained=False)))
    for found in (joint, untouched):
        assert found.tasks == [] and found.lost is found.form is None
    assert joint.sentence == (
        "joint has no scores of tasks just learned, so there is nothing to compare the end with."
    )
    assert untouched.sentence == (
        "zeroshot was not trained, so there is nothing that it could forget."
    )
    assert verdict([joint, untouched]) == f"{joint.sentence} {untouched.sentence}"


def test_a_run_that_recorded_no_scorers_has_losses_only(write_run):
    found = explain(load(write_run("old", "same", FORGETS)))
    assert found.lost == 50 and found.form is None
    assert found.tasks[0].sentence == "digits lost 50.0 points"


def test_seeds_share_a_mean(forgetful, write_run):
    first, second = forgetful("a", seed=0), plant(write_run, "b", right(), seed=1)
    diagnosed(first, both(10, 15, 50))
    diagnosed(
        second,
        [cause(i, n, 3, 100, 100, router=0, expert=0, form=0) for i, n in enumerate(TRUTH, 1)][:2],
    )
    (found,) = explain_all([load(first), load(second)])
    assert found.label == "moelora (2 seeds)"
    assert (found.lost, found.router, found.expert, found.form) == (25, 8.75, 3.75, 12.5)
    assert found.tasks[0].lost == 37.5
    assert found.sentence.startswith("moelora (2 seeds) forgets 25.0 of the 100.0 points")
    (second / "diagnose" / "causes.json").unlink()
    (found,) = explain_all([load(first), load(second)])
    assert found.router is None and str(second) in found.why


def test_the_verdict_begins_with_the_most_forgetful(forgetful, write_run):
    runs = [
        plant(write_run, "same", right(), method="same"),
        forgetful(),
        write_run("joint", "joint", [[90.0, 80.0, 70.0]], tasks=list(TRUTH)),
    ]
    diagnosed(runs[1], both(10, 15, 50))
    losses = explain_all([load(run) for run in runs])
    assert verdict(losses) == f"{losses[1].sentence} same forgets nothing of 100.0."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("applies"), "damaged"),
        (lambda saved: saved["cells"][0].pop("router"), "damaged"),
        (lambda saved: saved["cells"][0]["corners"].pop("old_old"), "damaged"),
        (lambda saved: saved.update(cells=None), "damaged"),
        (lambda saved: saved.update(cells=[1]), "damaged"),
        (lambda saved: saved["cells"][0].update(name="icons"), "of another run"),
        (lambda saved: saved["cells"][0].update(task=4), "of another run"),
        (lambda saved: saved["cells"][0].update(after=4), "of another run"),
        (lambda saved: saved["cells"][0].update(after=1), "of another run"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(forgetful, change, message):
    folder = forgetful()
    file = diagnosed(folder, both(10, 15, 50))
    saved = read_json(file)
    change(saved)
    write_json(file, saved)
    with pytest.raises(RunDirError, match=message) as error:
        explain(load(folder))
    assert f"delete it and run `undrift diagnose {folder}` again" in str(error.value)


def test_a_file_that_is_no_json_is_refused(forgetful):
    folder = forgetful()
    diagnosed(folder, []).write_text("{")
    with pytest.raises(RunDirError, match=r"causes\.json is damaged: .*undrift diagnose"):
        explain(load(folder))


def cells_of(folder):
    return {(cell.task, cell.after): cell for cell in form_cells(load(folder))}


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
    assert charts.borrowed == {"words": 2}  # small letters; `A` looks like its own
    assert charts.alone == {Slip("case", "a", "A"): 1, Slip("case", "b", "B"): 1}

    words = found[2, 3]
    assert (words.strict, words.lenient, words.form, words.wrong) == (25, 50, 50, 3)
    assert words.errors == {"case": 2}  # `7` is wrong in a right form
    assert words.borrowed == {"digits": 2}  # nobody learned since says `7`
    assert words.alone == {Slip("case", "Sandal", "sandal"): 1}

    digits = found[3, 3]
    assert (digits.strict, digits.lenient, digits.form, digits.wrong) == (25, 100, 50, 3)
    assert digits.errors == {OTHER_NOTATION: 1, "punctuation": 1, "case": 1}
    assert digits.borrowed == {}  # nothing was learned since


def test_right_answers_have_no_errors(write_run):
    for cell in form_cells(load(plant(write_run, "run", right()))):
        assert (cell.strict, cell.lenient, cell.form, cell.wrong) == (100, 100, 100, 0)
        assert not cell.errors and not cell.borrowed and not cell.alone


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
    assert found[1, 2].borrowed == {"boxes": 1}
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
    assert (found.lenient, found.form) == (None, 0)
    assert (found.wrong, found.errors, found.alone) == (2, {"punctuation": 2}, {})
    assert found.borrowed == {"words": 2}  # the one for its missing period, the other word for word


def test_a_run_trained_once_has_cells_for_the_end_alone(write_run):
    said = {(on, 1): answers for on, answers in enumerate(TRUTH.values(), 1)}
    said[2, 1] = ["Sandal", "lemon", "hazel", "saddle"]
    found = cells_of(plant(write_run, "joint", said, method="joint"))
    assert list(found) == [(1, 3), (2, 3), (3, 3)]
    assert found[2, 3].strict == 75 and found[2, 3].errors == {"case": 1}


def test_what_was_not_trained_or_not_recorded_has_no_cells(write_run):
    assert form_cells(load(write_run("zeroshot", "zeroshot", [[1.0] * 3], trained=False))) == []
    assert form_cells(load(write_run("old", "same", FORGETS))) == []


def test_cells_that_were_not_measured_are_left_out(write_run):
    said = {key: answers for key, answers in right().items() if key != (1, 2)}
    assert list(cells_of(plant(write_run, "run", said))) == [(1, 1), (2, 2), (1, 3), (2, 3), (3, 3)]


def test_a_prediction_that_lacks_something_is_named(write_run):
    folder = plant(write_run, "run", right())
    file = RunDir(folder).predictions(3, 1)
    write_lines(file, [{k: v for k, v in row.items() if k != "strict"} for row in read_lines(file)])
    with pytest.raises(RunDirError, match=r"on-01\.jsonl is damaged: 0\.strict: field required"):
        form_cells(load(folder))


LOST = {"router": 0.0, "expert": 4.0, "form": 6.0, "content": 4.0}


def task(lost=10.0, parts=LOST, *, alone=(), borrowed=(), wrong=10):
    cell = FormCell(1, "charts", 3, 80.0, 84.0, 94.0, wrong, {}, dict(borrowed), dict(alone))
    return task_sentence("charts", 90.0, lost, parts, "router and experts", [cell])


def test_the_most_common_error_of_form_gives_the_example():
    slips = [
        (Slip("punctuation", "x.", "x"), 3),
        (Slip("case", "a", "A"), 2),
        (Slip("case", "b", "B"), 2),
        (Slip("extra words", "a c", "C"), 1),
    ]
    assert "6.0 in form alone (letter case and punctuation, such as “a” for “A”)" in task(
        alone=slips
    )
    long = task(alone=[(Slip("extra words", "The answer is, as far as I know, B", "B"), 1)])
    assert "such as “The answer is, as far as I kn…” for “B”)" in long


@pytest.mark.parametrize(
    ("borrowed", "wrong", "text"),
    [
        ({"words": 4, "digits": 3}, 12, "; 4 of the 12 wrong answers look like those of words"),
        ({"words": 3, "digits": 4}, 12, "; 4 of the 12 wrong answers look like those of digits"),
        ({"words": 4}, 13, ""),
        ({"words": 2}, 2, ""),  # too few to speak of
        ({}, 0, ""),
    ],
)
def test_a_look_is_mentioned_where_it_is_common(borrowed, wrong, text):
    assert task(borrowed=borrowed, wrong=wrong) == task() + text


def test_what_was_won_back_comes_last():
    parts = {"router": -2.0, "expert": 15.0, "form": -3.0, "content": 13.0}
    assert re.findall(r"[\d.]+", task(parts=parts)) == ["10.0", "15.0", "2.0", "3.0"]


def test_a_loss_that_is_not_clear_is_not_shared_out():
    parts = {"router": 0.3, "expert": 0.3, "form": 0.3, "content": 0.6}
    both = {"router and experts"}
    assert run_sentence("same", 90.0, 0.9, parts, both).count("%") == 0
    assert run_sentence("same", 90.0, 1.0, {**parts, "form": 0.4}, both).count("%") == 3


def test_a_small_part_is_not_mentioned():
    parts = {"router": 0.04, "expert": 6.0, "form": 3.96, "content": 6.04}
    assert "router" not in task(parts=parts)
    assert task(0.04, parts) == "charts kept its 90.0 points"
