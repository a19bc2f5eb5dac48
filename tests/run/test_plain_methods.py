"""Two tasks of a run with the methods that keep one adapter, and what lies on disk afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from undrift.rundir import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ONE_EPOCH = {"max_steps": None, "epochs": 1}


def test_replay(make_run, tmp_path):
    result = make_run("replay", method={"memory": 3}, train=ONE_EPOCH).go()
    assert result["matrix"][1][0] is not None
    folders = sorted((tmp_path / "run" / "tasks").iterdir())
    kept = [read_json(folder / "adapter" / "replay.json")["tasks"] for folder in folders]
    assert [[len(own) for own in tasks] for tasks in kept] == [[3], [2, 1]]
    assert all(Path(name).is_file() for row in kept[1][0] for name in row["images"])
