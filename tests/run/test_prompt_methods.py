"""Two tasks of a run with methods that route by the prompt, stopped and resumed."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.run.test_plain_methods import StopInTaskTwo, adapters
from tests.run.test_task_loop import assert_same_numbers
from tests.sweeps import mostly_slow

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize(
    "name", mostly_slow(["continual_llava", "smolora", "llava_cmoe"], ["continual_llava"])
)
def test_two_tasks_stopped_inside_the_second_equal_uninterrupted(name, make_run, tmp_path):
    train = {"max_steps": 5, "checkpoint_steps": 2}
    result = make_run(name, train=train).go()
    assert all(score is not None for score in result["matrix"][1])
    first, second = (load_file(f / "adapter_model.safetensors") for f in adapters(tmp_path))
    if name != "smolora":  # what was learned first is still there, bit for bit
        grown = [key for key in second if key.endswith("past_B") and len(second[key])]
        assert grown and any(second[key].any() for key in grown)
    assert all(len(second[key]) >= len(first[key]) for key in first)
    with pytest.raises(KeyboardInterrupt):
        make_run(name, "stopped", train=train, progress=StopInTaskTwo()).go()
    assert list((tmp_path / "stopped").rglob("checkpoint-*"))
    make_run(name, "stopped", train=train).go()
    assert_same_numbers(tmp_path / "run", tmp_path / "stopped")
