"""Adapters that `undrift learn` has left, read as one run: which belong together, what they say."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from undrift.errors import RunDirError
from undrift.report import load, load_all, sections
from undrift.report.chain import ChainFiles
from undrift.report.page import answers, page
from undrift.report.page_content import page_content
from undrift.report.verdict import chain_table, chain_verdict, changes

from .complete import complete
from .lessons import SCORES, lines, write_chain, write_lesson


@pytest.fixture
def v3(tmp_path):
    return write_chain(tmp_path / "adapters")


def test_a_chain_is_a_run_with_a_task_an_adapter(v3):
    run = load(v3)
    assert run.tasks == ["charts", "words", "boxes"]
    assert run.zero_shot == [40, None, None]
    assert run.matrix == [[100, 0, None], [60, 80, 10], [30, 80, 90]]
    assert run.learned == [100, 80, 90]
    assert run.metrics["last"] == pytest.approx(200 / 3)
    assert list(run.files.stage_names) == ["before v1", "v1", "v2", "v3"]
    assert run.files.notes == [] and sections([run])


def test_all_of_a_chain_given_is_the_chain_once_and_its_adapter_folder_will_do(v3):
    home = v3.parent
    (run,) = load_all([home / "v1", home / "v3", home / "v2"])
    assert run.folder == v3
    assert load(v3 / "adapter").folder == v3
    assert load(home / "v2").tasks == ["charts", "words"]


def test_two_chains_from_one_adapter_stand_beside_each_other(v3):
    home = v3.parent
    other = write_lesson(home / "v3b", home / "v2" / "adapter", SCORES["v3"])
    html = page(page_content(load_all([v3, other])))
    assert "v3b: before and after" in html


def test_the_verdict_names_the_new_task_then_the_worst_first(v3):
    assert chain_verdict(load(v3)) == (
        "v3 has learned boxes: 90.0 % (9 of 10 answers right), 10.0 before. "
        "charts fell from 100.0 to 30.0 (7 of 10 answers lost). "
        "The guard golden fell from 70.0 to 50.0 (2 of 10 answers lost). words kept its 80.0."
    )


def test_the_table_has_a_column_an_adapter_and_the_guards(v3):
    table = chain_table(load(v3))
    assert table.header == ["task", "before → after", "change", "answers",
                            "before v1", "v1", "before v2", "v2", "v3"]  # fmt: skip
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["boxes (new)", "charts", "words", "golden (guard)"]
    assert rows["charts"][:3] == ["100.0 → 30.0", "-70.0", "3/10 −7"]
    assert rows["words"][:3] == ["80.0 → 80.0", "0.0", "8/10"]
    assert rows["golden (guard)"] == ["70.0 → 50.0", "-20.0", "5/10 −2", "", "", "90.0", "70.0",
                                      "50.0"]  # fmt: skip


def test_every_answer_has_its_course_and_what_it_is_held_against(v3):
    found = {task["name"]: task["examples"] for task in answers([load(v3)])["tasks"]}
    assert list(found) == ["charts", "words", "boxes", "golden (guard)"]
    seventh = found["charts"][6]
    assert [mark for _, mark, _ in seventh["said"][0]] == ["right", "form"]
    course = [(stage, said and said[1]) for stage, said in seventh["course"][0]]
    assert course == [("before v1", "form"), ("v1", "right"), ("v2", "form"), ("v3", "form")]
    assert [stage for stage, _ in found["boxes"][0]["course"][0]] == ["v2", "v3"]
    assert found["boxes"][5]["said"][0][0][1] == "form"  # before it was learned
    assert [mark for _, mark, _ in found["golden (guard)"][6]["said"][0]] == ["right", "wrong"]


def test_a_page_of_a_chain_says_all_of_it(v3):
    html = page(page_content([load(v3)]))
    assert "v3: boxes, learned after charts and words" in html
    assert re.findall(r'<li><a href="#([a-z]+)">', html)[:2] == ["metrics", "answers"]
    assert "v1 → v2 → v3 · same · backbone pocket · seed 0" in html
    assert "Loss while learning" in html
    json.loads(html.partition('id="answers-data">')[2].partition("</script>")[0])


def test_what_has_moved_is_found_beside_it_or_where_it_is_given(v3, tmp_path):
    there = tmp_path / "elsewhere"
    shutil.move(v3.parent, there)
    assert load(there / "v3").matrix[0][0] == 100  # all of it has moved
    shutil.move(there / "v1", tmp_path / "first")
    assert load(there / "v3").matrix[0][0] == 100  # what v2 has asked before it learned
    assert "went on from" in load(there / "v3").files.notes[0]
    (run,) = load_all([tmp_path / "first", there / "v3"])
    assert run.files.notes == [] and run.zero_shot[0] == 40


def test_what_is_gone_is_said_and_the_rest_counts_from_the_next(v3):
    shutil.rmtree(v3.parent / "v2")
    run = load(v3)
    assert run.matrix == [[None] * 3, [60, 80, 10], [30, 80, 90]]
    assert run.learned == [60, 80, 90]
    (note,) = run.files.notes
    assert note.startswith("v3 went on from ") and "v2/adapter, which is not there any more" in note
    assert "charts fell from 60.0 to 30.0 (3 of 10 answers lost)" in chain_verdict(run)
    html = page(page_content([run]))
    assert "which is not there any more" in html
    assert "before v3" in chain_table(run).header


def test_other_weights_in_its_place_are_no_part_of_the_chain(v3):
    (v3.parent / "v2" / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    (note,) = load(v3).files.notes
    assert "which holds other weights now" in note


def test_a_chain_that_goes_on_from_a_run_has_the_runs_tasks(tmp_path):
    run = complete(tmp_path / "run", "same", tasks={"charts": "letter", "words": "exact"})
    adapter = run / "tasks" / "02-words" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    shutil.copy(write_lesson(tmp_path / "x", "pocket", {"charts": (1, 1), "words": (1, 1)})
                / "adapter" / "undrift.json", adapter)  # fmt: skip
    scores = {"charts": (5, 4), "words": (9, 9), "boxes": (0, 9)}
    found = load(write_lesson(tmp_path / "v2", adapter, scores))
    of_run = load(run)
    assert found.tasks == ["charts", "words", "boxes"]
    assert found.matrix[0][:2] == of_run.matrix[0]
    assert found.matrix[1] == [*of_run.matrix[1], 0]
    assert found.matrix[2] == [40, 90, 90]
    assert list(found.files.stage_names) == ["untouched", "01-charts", "02-words", "v2"]
    assert found.files.scorers == ["letter", "exact", "exact"]
    assert "boxes" in page(page_content([found]))


def test_a_task_that_was_not_asked_is_left_open(v3):
    scores = {"words": (8, 2), "posters": (0, 5)}
    learned = ["charts", "words", "boxes", "posters"]
    run = load(write_lesson(v3.parent / "v4", v3 / "adapter", scores, learned=learned))
    assert run.last == [None, 20, None, 50]
    assert "charts was not asked" in [each.sentence for each in changes(run)]
    assert "the guard golden, last asked of v3, fell from 70.0 to 50.0" in chain_verdict(
        run
    ).replace("The", "the")
    assert page(page_content([run]))


def test_other_test_questions_are_told(v3):
    scores = {**SCORES["v3"], "posters": (0, 5)}
    run = load(write_lesson(v3.parent / "v4", v3 / "adapter", scores, changed=["words"]))
    (note,) = run.files.notes
    assert note.startswith("the test questions of words were others when v4 learned")


def test_half_a_lesson_is_refused_in_one_line(v3):
    (v3 / "result.json").unlink()
    with pytest.raises(RunDirError, match="v3 holds a task that is not finished"):
        load(v3)


def test_what_one_adapter_has_learned_first(v3):
    run = load(v3.parent / "v1")
    assert chain_verdict(run) == (
        "v1 has learned charts: 100.0 % (10 of 10 answers right), 40.0 before."
    )
    assert isinstance(run.files, ChainFiles) and page(page_content([run]))
    assert len(lines("charts", 3)) == len(answers([run])["tasks"][0]["examples"])
