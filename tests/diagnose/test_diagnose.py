"""Each diagnosis against an answer that is known, because the drift was planted by hand."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.diagnose.conftest import WEIGHTS, plant, renamed
from undrift.data.collate import FeatureCollator
from undrift.diagnose import Scope, causes, diagnose, expert_drift, route_drift
from undrift.diagnose.adapter_series import mix
from undrift.diagnose.causes import ask, split
from undrift.diagnose.experts import Factors, Moved, latent
from undrift.diagnose.reroute import reroute
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.shared.pool import PoolMethod
from undrift.registry import METHODS
from undrift.report import load
from undrift.rundir import read_lines, write_json, write_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SCOPE = Scope(2)


def scored(strict, lenient=None):
    return {"strict": strict, "lenient": strict if lenient is None else lenient, "form": 100.0}


# ------------------------------------------------------------ causes, by arithmetic


def test_a_loss_is_split_as_on_paper():
    found = split(
        {
            "old_old": scored(90, 95),
            "old_new": scored(0, 60),
            "new_old": scored(0, 85),
            "new_new": scored(30, 40),
        }
    )
    assert found["lost"] == {"strict": 60, "lenient": 55}
    assert found["router"] == ((95 - 85) + (60 - 40)) / 2 == 15
    assert found["expert"] == ((95 - 60) + (85 - 40)) / 2 == 40
    assert found["form"] == 60 - 55
    assert found["router"] + found["expert"] + found["form"] == 60


def test_captions_have_no_part_that_is_form():
    corners = {"old_old": 80.0, "old_new": 70.0, "new_old": 80.0, "new_new": 70.0}
    only_strict = {n: {"strict": s, "lenient": None, "form": 100.0} for n, s in corners.items()}
    found = split(only_strict)
    assert (found["router"], found["expert"], found["form"]) == (0, 10, 0)


# ------------------------------------------------------------ experts, by arithmetic


def test_movement_is_the_trace_with_dense_matrices():
    torch.manual_seed(0)
    A, Bt, A2, B2t, x = (
        torch.randn(*shape).double()
        for shape in ((3, 2, 6), (3, 2, 5), (3, 4, 6), (3, 4, 5), (11, 6))
    )
    moved = Moved(Factors(A, Bt), Factors(A2, B2t))
    moved.see(x[:4], latent(moved.old, x[:4]))
    moved.see(x[4:], latent(moved.old, x[4:]))
    W, W2 = Bt.mT @ A, B2t.mT @ A2  # (N, d_out, d_in)
    C = x.mT @ x
    for found, change in ((moved.change(), W2 - W), (moved.size(), W)):
        traces = [torch.trace(each @ C @ each.mT) for each in change]
        torch.testing.assert_close(found, torch.stack(traces))


# ------------------------------------------------------------ adapters of two tasks in one


def snapshot(folder, value):
    folder.mkdir()
    names = ("up.moe_lora_A", "up.moe_lora_B", "up.moe_lora_G")
    save_file({name: torch.full((2, 3), value) for name in names}, folder / WEIGHTS)
    save_file({"prototypes": torch.full((1,), value)}, folder / "gate.safetensors")
    (folder / "adapter_config.json").write_text(f"{value}")
    return folder


def test_a_router_is_w_g_and_what_lies_beside_the_weights(tmp_path):
    router, experts = snapshot(tmp_path / "router", 1.0), snapshot(tmp_path / "experts", 2.0)
    (tmp_path / "mixed").mkdir()
    mix(router, experts, tmp_path / "mixed")
    values = {
        name: float(t.unique()) for name, t in load_file(tmp_path / "mixed" / WEIGHTS).items()
    }
    assert values == {"up.moe_lora_A": 2, "up.moe_lora_B": 2, "up.moe_lora_G": 1}
    assert float(load_file(tmp_path / "mixed" / "gate.safetensors")["prototypes"]) == 1
    assert (tmp_path / "mixed" / "adapter_config.json").read_text() == "2.0"


def test_a_router_of_another_shape_is_refused(tmp_path):
    router, experts = snapshot(tmp_path / "router", 1.0), snapshot(tmp_path / "experts", 2.0)
    save_file({"up.moe_lora_G": torch.zeros(3, 3)}, router / WEIGHTS)
    with pytest.raises(AdapterMismatch, match=r"does not fit the experts .* two adapters of one"):
        mix(router, experts, tmp_path)


# ------------------------------------------------------------ planted in saved adapters


def at_the_end(run, stage):
    """Let the run's answers at the end be those of another stage."""
    write_lines(
        run / "eval/after-02/on-01.jsonl", read_lines(run / f"eval/after-0{stage}/on-01.jsonl")
    )


def test_identical_adapters_have_not_drifted_at_all(run, opened):
    plant(run, dict)
    at_the_end(run, 1)
    series = opened(run)
    assert isinstance(series.session.collator, FeatureCollator)  # reads what the run has read
    cells = route_drift(series, SCOPE, 8)["cells"]
    assert [(cell["task"], cell["after"]) for cell in cells] == [(1, 1), (1, 2)]
    for cell in cells:
        assert (cell["overlap"], cell["js"], cell["tv"], cell["top1"]) == (100, 0, 0, 100)
        assert cell["alone"] == {"overlap": 100, "js": 0, "tv": 0, "top1": 100}
    for cell in expert_drift(series, SCOPE, 8)["cells"]:
        assert cell["moved"] == 0 and not any(cell["per_expert"])
    (cell,) = causes(series, SCOPE)["cells"]
    assert len({tuple(corner.items()) for corner in cell["corners"].values()}) == 1
    assert cell["lost"] == {"strict": 0, "lenient": 0}
    assert cell["router"] == cell["expert"] == cell["form"] == 0
    for mixed in run.glob("diagnose/answers/*/on-01.jsonl"):  # asked here as the run has asked
        assert read_lines(mixed) == read_lines(run / "eval/after-01/on-01.jsonl")


def test_a_router_permuted_by_hand(run, opened):
    plant(run, lambda tensors: renamed(tensors, "moe_lora_G", lambda G: G.flip(0)))
    series = opened(run)
    found = route_drift(series, SCOPE, 8)
    before, after = found["cells"]
    first = after["layers"]["overlap"][0]  # its input is the same in both
    p = before["use"][0]
    assert first == pytest.approx(100 * 2 * min(p), abs=1e-4)  # two experts, swapped
    assert after["use"][0] == pytest.approx(p[::-1], abs=1e-6)
    assert after["top1"] < 50 and after["alone"]["top1"] == 0
    of_experts = expert_drift(series, SCOPE, 8)["cells"][-1]
    assert of_experts["moved"] == 0
    (cause,) = causes(series, SCOPE)["cells"]
    assert cause["corners"]["old_new"] == cause["corners"]["old_old"]  # the same experts


def test_experts_scaled_by_hand_move_by_the_square_of_the_change(run, opened):
    plant(run, lambda tensors: renamed(tensors, "moe_lora_B", lambda B: 1.5 * B))
    own, later = expert_drift(opened(run), SCOPE, 8)["cells"]
    assert own["moved"] == 0
    assert later["moved"] == pytest.approx(0.25)
    assert later["per_linear"] == pytest.approx([0.25] * 6)
    assert sum(later["per_expert"]) / 2 == pytest.approx(0.25)


def test_one_changed_expert_is_found(run, opened):
    def change(B):
        B = B.clone()
        B[1] *= 2
        return B

    plant(run, lambda tensors: renamed(tensors, "moe_lora_B", change))
    later = expert_drift(opened(run), SCOPE, 8)["cells"][-1]
    assert later["per_expert"][0] == 0 < later["per_expert"][1]


def test_experts_put_out_by_hand_cost_all_that_was_learned(run, opened, two):
    plant(run, lambda tensors: renamed(tensors, "moe_lora_B", torch.zeros_like))
    at_the_end(run, 0)
    series = opened(run)
    (cell,) = causes(series, SCOPE)["cells"]
    untouched = load(run).zero_shot[0]
    assert cell["corners"]["new_new"]["strict"] == cell["corners"]["old_new"]["strict"] == untouched
    assert cell["corners"]["new_old"] == cell["corners"]["old_old"]
    assert cell["router"] == 0 and cell["expert"] == cell["lost"]["lenient"]
    mixed = run / "diagnose/answers/router-01-experts-02/on-01.jsonl"
    assert read_lines(mixed) == read_lines(run / "eval/after-00/on-01.jsonl")


def test_answers_of_the_run_itself_are_taken_as_they_are(run, opened):
    few = opened(run, limit=2)
    chosen = {example.id for example in few.tasks[0].test}
    lines = read_lines(run / "eval/after-02/on-01.jsonl")
    for line in lines:
        line["strict"] = float(line["id"] in chosen)
    write_lines(run / "eval/after-02/on-01.jsonl", lines)
    assert ask(few, 1, 2, 2)["strict"] == 100
    assert ask(opened(run), 1, 2, 2)["strict"] == pytest.approx(100 * 2 / 6)


def test_a_router_trained_anew_leaves_the_experts_alone(run, opened):
    series = opened(run)
    found = reroute(series, SCOPE, 1, 8)
    assert [cell["after"] for cell in found["cells"]] == [1, 2]
    assert found["cells"][0]["as_is"] == load(run).learned[0]
    assert 0 < found["cells"][1]["entropy"] <= 100
    trained = {name: p.clone() for name, p in series.model.named_parameters()}
    experts = [p for name, p in series.model.named_parameters() if "moe_lora_A" in name]
    assert experts and all(p.requires_grad for p in experts)
    series.load(2)
    changed = {
        name.rpartition("moe_lora_")[2][0]
        for name, p in series.model.named_parameters()
        if not torch.equal(p, trained[name])
    }
    assert changed == {"G"}
    assert reroute(series, SCOPE, 1, 8) == found  # kept


# ------------------------------------------------------------ whole runs


@pytest.mark.parametrize("name", ["disco", pytest.param("finetune", marks=pytest.mark.slow)])
def test_parts_that_do_not_apply_are_left_out_with_a_word(name, make_run, two, tmp_path):
    make_run(name).go()
    found = diagnose(tmp_path / "run", benchmark=two, rerouted="lower")
    applies = {key: content["applies"] for key, content in found.items()}
    expected = {"disco": ("routes", "causes"), "finetune": ("experts", "causes")}[name]
    assert applies == {k: k in expected for k in ("routes", "experts", "causes", "reroute")}
    assert all(bool(content["why"]) != content["applies"] for content in found.values())
    (cell,) = found["causes"]["cells"]
    assert cell["parts"] == {"disco": "router", "finetune": "experts"}[name]
    assert cell["expert" if name == "disco" else "router"] == 0
    if name == "disco":
        cells = {cell["after"]: cell for cell in found["routes"]["cells"]}
        assert cells[1]["use"][0] == [1.0] and len(cells[2]["use"][0]) == 2


@pytest.mark.parametrize("name", METHODS.names())
def test_a_pool_has_a_router_if_it_looks_at_prompts(name):
    method = METHODS.load(name)
    if issubclass(method, PoolMethod):
        assert ("router" in method.parts or method.parts == "entangled") == method.reads_prompts


def test_a_second_call_asks_what_is_missing_only(run, two):
    first = diagnose(run, benchmark=two, probe=4)
    file = run / "diagnose/experts.json"
    kept = file.stat().st_mtime_ns, (run / "diagnose/routes.json").stat().st_mtime_ns
    file.unlink()
    assert diagnose(run, benchmark=two, probe=4) == first
    assert file.stat().st_mtime_ns > kept[0]
    assert (run / "diagnose/routes.json").stat().st_mtime_ns == kept[1]
    changed = diagnose(run, benchmark=two, probe=2)
    assert changed["routes"]["probe"] == 2


def test_two_adapters_are_compared_in_a_folder_of_their_own(run, two):
    found = diagnose(run, benchmark=two, adapters=("lower", str(run / "tasks/02-upper/adapter")))
    assert [(c["task"], c["before"], c["after"]) for c in found["routes"]["cells"]] == [
        (1, 1, 1),
        (1, 1, 2),
    ]
    assert (run / "diagnose/adapters-01-02/causes.json").is_file()
    assert not (run / "diagnose/causes.json").exists()
    with pytest.raises(ConfigError, match="earlier one first"):
        diagnose(run, benchmark=two, adapters=("2", "1"))
    with pytest.raises(ConfigError, match="1 lower, 2 upper"):
        diagnose(run, benchmark=two, adapters=("red", "2"))


def test_a_run_without_its_adapters_says_how_to_get_them_back(run, two):
    for file in run.glob("tasks/*/adapter/*.safetensors"):
        file.unlink()
    with pytest.raises(RunDirError, match="run it again: undrift run"):
        diagnose(run, benchmark=two)


def test_a_run_that_learned_everything_at_once_has_nothing_to_forget(make_run, tmp_path):
    make_run("joint").go()
    found = diagnose(tmp_path / "run")
    assert not any(content["applies"] for content in found.values())
    assert "trained once" in found["causes"]["why"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_can_be_diagnosed(name, make_run, two, tmp_path):
    make_run(name).go()
    found = diagnose(tmp_path / "run", benchmark=two, rerouted="1")
    for content in found.values():
        assert bool(content["why"]) != content["applies"]
    if found["causes"]["applies"]:
        (cell,) = found["causes"]["cells"]
        parts = cell["router"] + cell["expert"] + cell["form"]
        assert parts == pytest.approx(cell["lost"]["strict"], abs=1e-5)
    write_json(tmp_path / "found.json", found)  # JSON can hold it
