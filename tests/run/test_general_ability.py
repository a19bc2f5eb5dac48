"""General ability: measured of the base and at the end, kept, and no trace in the training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.run.test_budget import Told
from tests.run.test_task_loop import assert_same_numbers
from undrift.data.types import General
from undrift.errors import DataError
from undrift.report import as_csv, grouped, load
from undrift.report.comparison import overview
from undrift.report.page_content import drift_cards
from undrift.report.study_table import study_markdown
from undrift.run import general_ability
from undrift.run.config import Profile
from undrift.run.general_ability import cut_general, general_loss
from undrift.run.verify import verify
from undrift.rundir import read_json, read_lines, write_json
from undrift.rundir.study_results import run_entry

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def asking(two):
    """The tiny benchmark, with general questions over pictures of no task's training."""
    examples = tuple(replace(e, id=f"general-{e.id}") for task in two.tasks for e in task.test)
    general = General(examples, max_new_tokens=3, fingerprint="g1")
    return replace(two, general=general)


def test_it_is_kept_told_and_changes_nothing_else(make_run, asking, tmp_path):
    make_run(out="without").go()
    make_run(out="run", benchmark_=asking).go()
    assert_same_numbers(tmp_path / "without", tmp_path / "run")
    kept = read_json(tmp_path / "run" / "general.json")
    count = len(asking.general.examples)
    for stage in ("before", "after"):
        lines = read_lines(tmp_path / "run" / "general" / f"{stage}.jsonl")
        assert [line["id"] for line in lines] == [e.id for e in asking.general.examples]
        right = sum(line["strict"] for line in lines)
        assert kept[stage] == {"examples": pytest.approx(100 * right / count)}
    entry = run_entry(tmp_path / "run", "moelora", None, {}, "undrift run", True)
    assert entry["general"] == {"before": kept["before"], "after": kept["after"]}
    assert entry["general_loss"] == kept["loss"]
    before = run_entry(tmp_path / "without", "moelora", None, {}, "undrift run", True)
    assert not {"general", "general_loss"} & before.keys()


def test_a_run_that_goes_on_does_not_ask_the_base_again(make_run, asking, tmp_path, monkeypatch):
    stages, measure = [], general_ability.measure

    def told(session, general, files, stage):
        stages.append(stage)
        if stage == "after" and stages.count("after") == 1:
            raise KeyboardInterrupt
        return measure(session, general, files, stage)

    monkeypatch.setattr(general_ability, "measure", told)
    with pytest.raises(KeyboardInterrupt):
        make_run(benchmark_=asking).go()
    make_run(benchmark_=asking).go()
    assert stages == ["before", "after", "after"]
    monkeypatch.undo()
    make_run(out="whole", benchmark_=asking).go()
    assert read_json(tmp_path / "run/general.json") == read_json(tmp_path / "whole/general.json")
    before, after = (tmp_path / "run/general" / f"{stage}.jsonl" for stage in ("before", "after"))
    assert after.read_bytes() == (tmp_path / "whole/general/after.jsonl").read_bytes()
    assert after.read_bytes() != before.read_bytes()  # it is the model that has learned


def test_other_questions_are_asked_anew(make_run, asking, tmp_path, monkeypatch):
    monkeypatch.setattr(general_ability, "general_loss", _stop)
    with pytest.raises(KeyboardInterrupt):
        make_run(benchmark_=asking).go()
    monkeypatch.undo()
    fewer = replace(asking.general, examples=asking.general.examples[:3], fingerprint="g2")
    make_run(benchmark_=replace(asking, general=fewer)).go()
    assert read_json(tmp_path / "run/general.json")["fingerprint"] == "g2"
    assert len(read_lines(tmp_path / "run/general/before.jsonl")) == 3


@pytest.mark.parametrize(
    "method",
    [
        {"name": "proglora", "gate": "static"},
        {"name": "nearlora", "oracle": True},
        {"name": "disco", "oracle": True},
        {"name": "hide", "oracle": True},
        {"name": "modalprompt", "oracle": True},
        {"name": "llava_cmoe", "oracle": True},
    ],
    ids=lambda method: method["name"],
)
def test_what_has_to_be_told_the_task_is_asked_tasks_alone_and_says_so(
    make_run, asking, tmp_path, method
):
    told = Told()
    made = make_run(method=method, benchmark_=asking, progress=told)
    assert made.method.must_be_told
    (text,) = [text for _, text, _ in told.events if "general ability" in text]
    assert "is not measured" in text and method["name"] in text
    made.go()
    assert not (tmp_path / "run" / "general.json").exists()
    assert read_json(tmp_path / "run" / "matrix.json")["metrics"]["last"] is not None


def _stop(*_):
    raise KeyboardInterrupt


def test_a_profile_uses_a_part(asking):
    count = len(asking.general.examples)
    halved = cut_general(asking.general, Profile(name="lite", test_share=0.5))
    assert len(halved.examples) == count // 2 and halved.prompts == ()
    assert len(cut_general(asking.general, Profile(name="two", limit=2)).examples) == 2
    assert cut_general(General(), Profile(name="full")) == General()


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [
        ({"examples": 80.0}, {"examples": 60.0}, 25.0),
        ({"examples": 80.0}, {"examples": 88.0}, -10.0),
        ({"examples": 0.0}, {"examples": 5.0}, None),
        ({}, {}, None),
        ({"text:a": 4.0, "text:b": 2.0, "prompts": 1.0, "prompts_exact": 100.0},
         {"text:a": 5.0, "text:b": 2.0, "prompts": 0.8, "prompts_exact": 50.0}, 5 / 3),
    ],
)  # fmt: skip
def test_the_loss(before, after, loss):
    assert general_loss(before, after) == (None if loss is None else pytest.approx(loss))


def test_two_questions_of_one_id_are_refused(asking):
    with pytest.raises(DataError, match="general ability has two questions with the id"):
        General(asking.general.examples * 2)


def test_verify_holds_it_against_the_answers(make_run, asking, tmp_path):
    make_run(benchmark_=asking).go()
    folder = tmp_path / "run"
    assert "general ability, before and after" in verify(folder).checked
    kept = read_json(folder / "general.json")
    write_json(folder / "general.json", kept | {"before": {"examples": 77.0}, "loss": 1.0})
    wrong = "\n".join(verify(folder).wrong)
    assert "general.json: before.examples is 77, and the answers give" in wrong
    assert "general.json: loss is 1, and its parts give" in wrong


def test_tables_page_and_words_name_it(make_run, asking, tmp_path):
    make_run(benchmark_=asking).go()
    kept = read_json(tmp_path / "run" / "general.json")
    write_json(
        tmp_path / "run" / "general.json",
        kept | {"before": {"examples": 80.0}, "after": {"examples": 60.0}, "loss": 25.0},
    )
    run = load(tmp_path / "run")
    assert run.general.endswith("examples 80 → 60; 25.0 % lost")
    table = overview([run])
    assert ["general ability lost, %", "", "25.0"] in [list(row) for row in table.rows]
    card = drift_cards(grouped([run]))[-1]
    assert card.title == "Base drift" and "25.0 % lost" in card.notes[0]
    assert ",general_loss,25.0" in as_csv([run])
    entry = run_entry(run.folder, "moelora", None, {}, "undrift run", True)
    text = study_markdown({"runs": [entry], "command": "undrift study s.yaml"})
    assert "general ability lost, %" in text and "| 25.0 |" in text
