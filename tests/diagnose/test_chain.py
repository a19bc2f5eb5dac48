"""`diagnose` on what `learn` has left: the adapters of a chain stand for a run's tasks."""

from __future__ import annotations

import shutil

import pytest

from tests.run.conftest import (  # noqa: F401  # fixtures
    _own_cache,
    backbone_folder,
    data,
    lesson,
)
from undrift.diagnose import diagnose
from undrift.errors import RunDirError
from undrift.report import load
from undrift.report.forgetting import explain_all
from undrift.report.page import page
from undrift.report.page_content import page_content
from undrift.run.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def chain(lesson, tmp_path):  # noqa: F811
    """Two adapters, `colours` and then `capitals`."""
    lesson("colours").go()
    lesson("capitals", "colours").go()
    return tmp_path / "capitals"


def test_a_chain_is_diagnosed_as_a_run_is(chain):
    found = diagnose(chain, rerouted="colours")
    (cell,) = found["causes"]["cells"]
    assert (cell["name"], cell["task"], cell["after"]) == ("colours", 1, 2)
    run = load(chain)
    assert cell["corners"]["old_old"]["strict"] == run.matrix[0][0]
    assert cell["corners"]["new_new"]["strict"] == run.matrix[1][0]
    parts = cell["router"] + cell["expert"] + cell["form"]
    assert parts == pytest.approx(run.matrix[0][0] - run.matrix[1][0])
    assert [c["after"] for c in found["routes"]["cells"]] == [1, 2]
    assert found["routes"]["cells"][0]["overlap"] == 100
    assert found["experts"]["cells"][-1]["moved"] > 0
    assert "test questions" in found["reroute"]["why"]
    html = page(page_content([run]))
    assert "Where the inputs go" in html and "not diagnosed" not in html
    assert sorted(p.name for p in (chain / "pictures").iterdir()) == ["01-colours", "02-capitals"]
    assert verify(chain).wrong == []


def test_an_adapter_that_is_gone_is_named(chain, tmp_path):
    shutil.rmtree(tmp_path / "colours")
    with pytest.raises(RunDirError, match=r"capitals went on from .*, which is not there any more"):
        diagnose(chain)
    assert not (chain / "diagnose").exists()


def test_from_the_middle_of_a_chain_it_begins_there(chain, lesson, data, tmp_path):  # noqa: F811
    for file in ("colours.jsonl", "colours-test.jsonl"):
        shutil.copy(data / file, data / f"again{file.removeprefix('colours')}")
    lesson("again", "capitals").go()
    shutil.rmtree(tmp_path / "colours")
    found = diagnose(tmp_path / "again")
    assert [cell["name"] for cell in found["causes"]["cells"]] == ["capitals"]
    (loss,) = explain_all([load(tmp_path / "again")])
    assert "the loss of colours until the end cannot be diagnosed" in loss.why
