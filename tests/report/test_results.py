"""What the files of a run say, and the compact table of several."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from undrift.errors import RunDirError
from undrift.report import (
    as_markdown,
    labels,
    load,
    results,
    sections,
    summary,
    table,
)
from undrift.report.comparison import overview, protocol
from undrift.report.page import page
from undrift.report.page_content import page_content
from undrift.report.results import (
    NOT_RECORDED,
    NOT_TRAINED,
    differences,
    facts,
    made_with,
    untrained,
)
from undrift.rundir import RunDir
from undrift.rundir.files import short_hash

from .complete import complete
from .conftest import FORGETS, HOLDS, TASKS

HALF_FORM = ((1, 1), (0, 1), (0, 0), (1, 1))


@pytest.fixture
def pair(write_run):
    return [
        load(write_run("moelora", "moelora", FORGETS, scores=HALF_FORM)),
        load(write_run("same", "same", HOLDS)),
    ]


def markdown(runs):
    """The first section, the compact table."""
    return as_markdown(sections(runs)[:1])


def text_of(runs, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(runs))
    return console.export_text()


def test_load(pair):
    moelora, same = pair
    assert moelora.method == "moelora"
    assert moelora.tasks == TASKS
    assert moelora.learned == [90.0, 80.0, 100.0]
    assert moelora.last == [40.0, 30.0, 100.0]
    assert moelora.matrix[0] == [90.0, 20.0, None]
    assert moelora.case_only == 50.0
    assert same.case_only is None


def test_summary_is_what_the_files_say(pair):
    found = json.loads(json.dumps(summary(pair)))["methods"]
    assert list(found) == ["moelora", "same"]
    assert found["moelora"]["last"] == pytest.approx(170 / 3)
    assert found["moelora"]["mft"] == pytest.approx(90)
    assert found["moelora"]["bwt"] == pytest.approx(-50)
    assert found["moelora"]["matrix"] == [[90.0, 20.0, None], [60.0, 80.0, 5.0], FORGETS[2]]
    assert found["same"]["tasks"] == TASKS


def test_the_terminal_table(pair):
    lines = [line for line in text_of(pair).splitlines() if "digits" in line]
    assert lines
    assert [cell.strip() for cell in lines[0].strip("│ ").split("│")] == [
        "digits",
        "10.0",
        "90.0 → 40.0",
        "88.0 → 85.5",
    ]
    for words in ("average at the end", "56.7", "-50.0", "errors of letter case only", "50.0 %"):
        assert words in text_of(pair)


def test_markdown_has_one_cell_per_column(pair):
    rows = [line for line in markdown(pair).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert "| digits | 10.0 | 90.0 → 40.0 | 88.0 → 85.5 |" in rows
    assert "| icons | 25.0 | 80.0 → 30.0 | 78.0 → 76.0 |" in rows
    assert any(row.startswith("| backward transfer |  | -50.0 | -2.2") for row in rows)


def test_a_loss_that_rounds_to_nothing_has_no_sign(write_run):
    run = load(write_run("even", "same", [[50.0], [49.98, 60.0]], tasks=["a", "b"], zero_shot=[]))
    assert "| backward transfer |  | 0.0 |" in markdown([run])


def test_one_row_methods_have_only_an_end(write_run, pair):
    joint = load(write_run("joint", "joint", [[95.0, 90.0, 99.0]]))
    assert joint.learned == [None] * 3
    assert "| digits | 10.0 | 90.0 → 40.0 | 88.0 → 85.5 | 95.0 |" in markdown([*pair, joint])
    assert summary([joint])["methods"]["joint"]["bwt"] is None


def test_runs_of_other_tasks_share_a_table(write_run, pair):
    other = load(write_run("other", "other", [[50.0]], tasks=["boxes"], zero_shot=[1.0]))
    rows = markdown([pair[0], other]).splitlines()
    assert "| digits | 10.0 | 90.0 → 40.0 |  |" in rows
    assert "| boxes | 1.0 |  | 50.0 → 50.0 |" in rows


def test_labels_tell_two_runs_of_one_method_apart(write_run, pair):
    again = load(write_run("same-s1", "same", HOLDS, seed=1))
    assert labels([*pair, again]) == ["moelora", "same (same)", "same (same-s1)"]
    assert "seed 0 and 1 (differs!)" in protocol([*pair, again])
    assert "differs" not in protocol(pair)
    twin = load(write_run("elsewhere/same", "same", HOLDS))
    assert len(set(labels([pair[1], twin]))) == 2
    own = load(write_run("own", "same", HOLDS, order=["digits", "icons"]))
    assert "order digits, icons ·" in protocol([own])


def test_what_cannot_be_reported(tmp_path, write_run):
    with pytest.raises(RunDirError, match="is not a run"):
        load(tmp_path / "nothing")
    run = RunDir.start(tmp_path / "begun", "benchmark: pocket\n")
    with pytest.raises(RunDirError, match="unfinished run; finish it first: undrift run"):
        load(run.root)
    with pytest.raises(RunDirError, match="unfinished"):
        load(write_run("half", "same", [[88.0, 26.0, None]]))
    root = write_run("other", "same", HOLDS)
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["seed"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirError, match="seed: field required"):
        load(root)


def test_what_the_methods_cost_and_which_budget_they_meet(write_run):
    spent = [{"task": "words", "trainable": 1, "active": 46_000, "stored": 92_160,
              "state_bytes": 375_000, "steps": 2, "seconds": 1.0, "cpu_seconds": 1.0}]  # fmt: skip
    runs = [load(write_run("a", "same", HOLDS, budget=spent, match_budget="active")),
            load(write_run("b", "moelora", FORGETS))]  # fmt: skip
    assert overview(runs).rows[-4:] == [
        ["parameters stored", "", "92.2 k", ""],
        ["parameters active", "", "46 k", ""],
        ["bytes of state", "", "375 k", ""],
        ["budget matched", "", "active", "none"],
    ]
    assert not any("budget" in row[0] or "parameters" in row[0] for row in overview(runs[1:]).rows)
    assert runs[0].cost["step_cpu_ms"] == 500.0


def test_every_file_is_read_once(tmp_path, monkeypatch):
    folders = [complete(tmp_path / name, name) for name in ("moelora", "same")]
    read = []
    for name in ("read_answers", "read_record"):
        real = getattr(results, name)
        monkeypatch.setattr(
            results, name, lambda file, *kind, real=real: read.append(file) or real(file, *kind)
        )
    page(page_content([load(folder) for folder in folders]))
    assert len(read) > 20 and len(set(read)) == len(read)


MANIFEST = {
    "method": "same",
    "benchmark": "coin",
    "order": ["VQAv2", "REC"],
    "seed": 3,
    "settings": {"rank": 2, "top_k": None, "learning_rate": 0.01},
    "protocol": {
        "tasks": [{"name": "REC", "train": 9, "scorer": "coin/Grounding"}],
        "prompt": "USER: ...",
        "pictures": {"size": {"height": 336}, "do_pad": True, "image_mean": [0.5, 0.4]},
        "training": {"global_batch": 48},
    },
    "data": {"fingerprint": "abc", "licence": "free"},
    "weights": {"fingerprint": "0123456789abcdef", "parameters": 7},
    "commit": "e719b59",
    "versions": {"torch": "2.13"},
    "seconds": {"train": 9.0},
}


def test_a_manifest_is_flattened():
    assert facts(MANIFEST) == {
        "benchmark": "coin",
        "order": "VQAv2, REC",
        "seed": "3",
        "data.fingerprint": "abc",
        "weights.fingerprint": "0123456789ab",
        "task.REC.train": "9",
        "task.REC.scorer": "coin/Grounding",
        "prompt_hash": short_hash("USER: ..."),
        "pictures.size.height": "336",
        "pictures.do_pad": "True",
        "pictures.image_mean": "0.5, 0.4",
        "training.global_batch": "48",
        "training.learning_rate": "0.01",
        "method.rank": "2",
        "method.top_k": "none",
    }
    assert made_with(MANIFEST) == {"commit": "e719b59", "versions.torch": "2.13"}


def test_what_an_older_manifest_lacks_is_not_recorded():
    older = {**MANIFEST, "protocol": {"prompt": "USER: ..."}}
    found = differences([facts(MANIFEST), facts(older)])
    assert found["training.global_batch"] == ["48", NOT_RECORDED]
    assert "prompt_hash" not in found  # an older one is compared by its text
    assert facts({}) == {} and made_with({}) == {}


def test_options_are_compared_between_the_methods_that_have_them():
    sides = [{"method.rank": "2", "method.mu": "0.1"}, {"method.rank": "2"}, {"method.rank": "4"}]
    assert differences(sides) == {"method.rank": ["2", "2", "4"]}


def test_how_one_trains_does_not_matter_to_what_is_not_trained():
    trained = facts(MANIFEST)
    zero_shot = untrained(facts({**MANIFEST, "seed": 0, "settings": {"rank": 8}}))
    assert zero_shot["seed"] == zero_shot["method.rank"] == NOT_TRAINED
    assert zero_shot["training.global_batch"] == NOT_TRAINED
    assert zero_shot["prompt_hash"] == trained["prompt_hash"]
    assert set(differences([trained, zero_shot])) == {"training.learning_rate"}
