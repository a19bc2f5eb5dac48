"""The method that CONTRIBUTING.md shows is added as it says, and runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import undrift.methods
from tests.methods import test_contract as contract
from tests.methods import test_contract_tasks as contract_tasks
from undrift.registry import METHODS
from undrift.rundir import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The file of the guide, dropped among the methods under the name that it gives itself."""
    found = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [block for block in found if "METHOD = " in block]
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    (name,) = re.findall(r'name: ClassVar\[str\] = "(\w+)"', text)
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    places = list(undrift.methods.__path__)
    undrift.methods.__path__.append(str(folder))
    yield name
    undrift.methods.__path__[:] = places
    del sys.modules[f"undrift.methods.{name}"]


def test_the_example_keeps_every_contract_and_runs(example, make_run, tmp_path):
    assert example in METHODS.names()
    contract.test_it_has_one_sentence_about_its_idea_and_names_its_own_paper(example)
    contract.test_the_files_stem_is_its_name_and_every_option_is_documented(example)
    contract.test_the_model_answers_as_before_until_the_first_step(example)
    contract.test_save_load_continue_equals_uninterrupted(example, tmp_path / "contract")
    for name, check in vars(contract_tasks).items():
        if name.startswith("test_"):
            check(example)

    still = {"name": example, "experts": 2, "rank": 2, "slow": 0.0}
    result = make_run(method=still).go()
    assert result["metrics"]["last"] is not None
    assert read_json(tmp_path / "run" / "manifest.json")["settings"]["slow"] == 0.0
    one, two = (
        load_file(tmp_path / "run" / "tasks" / task / "adapter" / "adapter_model.safetensors")
        for task in ("01-lower", "02-upper")
    )
    for key, value in one.items():  # in task 2 A stands still and B moves
        assert torch.equal(value, two[key]) == ("lora_A" in key), key
