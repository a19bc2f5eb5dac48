from __future__ import annotations

import pytest
from safetensors import safe_open

from tests.methods.training import SMALL, attached, learn
from tests.sweeps import METHODS_OF_EACH_MAKE, mostly_slow
from tests.tuner.llava import tiny_llava
from undrift.errors import ConfigError
from undrift.methods.shared.budget import Budget, expected, measured, rank_to_meet
from undrift.registry import METHODS
from undrift.tuner.frozen import count_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LEARNING = [name for name in METHODS.names() if METHODS.load(name).schedule != "none"]
SEQUENTIAL = [name for name in LEARNING if METHODS.load(name).schedule == "sequential"]
BOUNDED = ("eblora", "keeplora", "llava_cmoe")  # they grow where they have to: the most is expected
PER_RANK = 2 * 3 * (24 + 40)  # two layers of three linears, from 24 to 40 features or back
INPUTS = 2 * (24 + 24 + 40)


def method(name, **options):
    return METHODS.load(name)(**{**SMALL, **options})


def on_disk(folder):
    """Bytes of the tensors that a folder holds."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


@pytest.mark.parametrize("name", mostly_slow(LEARNING, METHODS_OF_EACH_MAKE))
def test_what_was_expected_is_what_two_tasks_cost(name, tmp_path):
    made = method(name)
    model = attached(made)
    rounds = 2 if name in SEQUENTIAL else 1
    for task in range(1, rounds + 1):
        learn(made, model, task=task, steps=4)
    made.save_state(model, tmp_path)
    backbone = count_parameters(tiny_llava())
    cost = measured(made, model, backbone, tmp_path)
    plan = expected(method(name), tiny_llava(), rounds)
    if name in BOUNDED:
        assert cost.stored <= plan.stored and cost.active <= plan.active
        assert on_disk(tmp_path) <= plan.state_bytes
    else:
        assert cost.stored == plan.stored and cost.active == plan.active
        assert on_disk(tmp_path) == plan.state_bytes < cost.state_bytes
    assert 0 < cost.active <= cost.stored and cost.trainable <= cost.stored


def test_by_hand(tmp_path):
    for name, own in (("finetune", 12 * PER_RANK), ("moelora", 12 * PER_RANK + 4 * INPUTS)):
        plan = expected(method(name), tiny_llava(), 3)
        assert plan == Budget(own, own, own, 4 * own), name
    top = expected(method("moelora", top_k=1), tiny_llava(), 3)
    assert top.stored - top.active == 9 * PER_RANK
    assert str(top) == "5.31 k parameters trained, 1.86 k active, 5.31 k stored, 21.2 kB of state"


@pytest.mark.parametrize("kind", ["total", "active", "state"])
@pytest.mark.parametrize("name", mostly_slow(["finetune", "moelora", "same"], ["same"]))
def test_the_budget_is_met_within_half_a_rank(name, kind):
    rank = rank_to_meet(method(name, rank=20), kind, tiny_llava(), 3)
    target = expected(method("finetune", rank=20), tiny_llava(), 3).of(kind)
    costs = [expected(method(name, rank=r), tiny_llava(), 3).of(kind) for r in (rank, rank + 1)]
    assert abs(costs[0] - target) <= (costs[1] - costs[0]) / 2
    if name == "finetune":
        assert rank == 20 and costs[0] == target


def test_experts_that_rest_leave_room_for_a_higher_rank():
    assert rank_to_meet(method("moelora", top_k=2, rank=20), "active", tiny_llava(), 1) == 39
    assert rank_to_meet(method("moelora", top_k=2, rank=20), "total", tiny_llava(), 1) == 20


def test_what_cannot_be_met_is_said():
    with pytest.raises(ConfigError, match="trains nothing"):
        rank_to_meet(method("zeroshot"), "total", tiny_llava(), 2)
    with pytest.raises(ConfigError, match=r"even at rank 1 it comes to .* after 2 tasks"):
        rank_to_meet(method("same", rank=1), "state", tiny_llava(), 2)
