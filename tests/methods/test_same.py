"""SAME in a model: what its switches hold, and that off they hold nothing."""

from __future__ import annotations

from collections import defaultdict

import peft
import pytest
import torch

from tests.methods.training import SMALL, attached, learn, weights
from tests.precision import assert_same
from tests.tuner.llava import tiny_llava
from undrift.core import PAPER, naive, steps
from undrift.errors import ConfigError
from undrift.methods.moelora import MoeLora
from undrift.methods.same import Same
from undrift.methods.steadylora import SteadyLora
from undrift.tuner import LayerStatistics, MoeLoraConfig, layers, statistics
from undrift.tuner.input_statistics import statistics_options

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
OFF = {"router": False, "expert": False, "activation": False}
EXACT = {"columns": 64, "max_components": 40, "delta": 0.9, "rebase_share": 0.0}


def two_tasks(method, steps=8):
    model = attached(method)
    learn(method, model, task=1, steps=steps)
    after_one = weights(model)
    learn(method, model, task=2, steps=steps)
    return model, after_one


def changes(model, start, letter):
    return {
        name: getattr(layer, f"moe_lora_{letter}")["default"].detach() - start[key]
        for name, layer in layers(model).items()
        for key in start
        if key.endswith(f"{name}.moe_lora_{letter}.default")
    }


def test_all_switches_off_is_moelora_exactly():
    free, off = two_tasks(MoeLora(**SMALL))[0], two_tasks(Same(**SMALL, **OFF))[0]
    ours, theirs = weights(off), weights(free)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_watching_changes_nothing_by_itself():
    """Statistics on, but no constraint that binds: still moelora, bit for bit."""
    idle = {"router": False, "expert": True, "a_metric": False, "b_metric": "none"}
    watched = two_tasks(Same(**SMALL, **idle, activation=False))[0]
    free = two_tasks(MoeLora(**SMALL))[0]
    assert statistics(watched)
    assert all(torch.equal(weights(watched)[key], p) for key, p in weights(free).items())


@pytest.mark.parametrize(
    "options", [{}, {"b_metric": "aca"}, {"space": "gradient"}, {"space": "both"}]
)
def test_task_one_is_unconstrained_under_past(options):
    held, free = Same(**SMALL, **options), MoeLora(**SMALL)
    model, other = attached(held), attached(free)
    assert learn(held, model) == learn(free, other)
    assert all(torch.equal(weights(model)[key], p) for key, p in weights(other).items())


@pytest.mark.parametrize(("lambda_par", "space"), [(0.0, "step"), (0.1, "both")])
def test_after_fifty_adamw_steps_the_router_moved_in_v_par_by_the_transformed_steps(
    lambda_par, space
):
    """In a real model with weight decay; and projecting the gradient does not do it."""
    options = {**EXACT, "lambda_par": lambda_par, "space": space, "expert": False}
    method = Same(**SMALL, **options)
    model = attached(method)
    learn(method, model, task=1, steps=10)
    past = {name: basis(each) for name, each in statistics(model).items()}
    start, raw = weights(model), recorded(method)
    learn(method, model, task=2, steps=50)
    for name, moved in changes(model, start, "G").items():
        V, s = past[name]
        steps_taken = raw[layers(model)[name].moe_lora_G["default"]]
        assert len(steps_taken) == 50
        g = steps.gain(s, half_width=3, rho=1.0, clamp=True)
        expected = lambda_par * (sum(steps_taken) @ V) * g
        assert_same(moved @ V, expected, terms=50, scale=1.0)  # W_G is rounded at every step
        assert (moved - moved @ V @ V.mT).norm() > 1e-2
        if lambda_par == 0:
            assert_same(moved @ V, torch.zeros_like(expected), terms=50, scale=1.0)


def test_projected_gradients_let_the_router_move_in_v_par():
    method = Same(**SMALL, **EXACT, space="gradient", lambda_par=0.0, activation=False)
    model = attached(method)
    learn(method, model, task=1, steps=10)
    past = {name: basis(each)[0] for name, each in statistics(model).items()}
    start = weights(model)
    learn(method, model, task=2, steps=50)
    for name, moved in changes(model, start, "G").items():
        assert (moved @ past[name]).abs().max() > 1e-3


@pytest.mark.parametrize("make", [Same, SteadyLora])
def test_the_space_says_where_both_factors_are_turned(make):
    turned = {}
    for space in ("step", "gradient", "both"):
        method = make(**SMALL, space=space)
        model = attached(method)
        learn(method, model, task=1, steps=4)
        method.task_start(model, 2, 4)
        found = (method.step_transforms(model), method.gradient_transforms(model))
        turned[space] = tuple(len(transforms) for transforms in found)
    count = turned["both"][0]
    assert count > 0
    assert turned == {"step": (count, 0), "gradient": (0, count), "both": (count, count)}


def basis(each):
    """A copy of what is kept, before the next task's end overwrites it."""
    return tuple(part.clone() for part in each.history.basis())


def recorded(method):
    """Note every raw step that a method's transforms are given, by parameter."""
    raw = defaultdict(list)
    transforms = method.step_transforms

    def noting(model):
        def note(p, turn):
            return lambda step: (raw[p].append(step.clone()), turn(step))[1]

        return {p: note(p, turn) for p, turn in transforms(model).items()}

    method.step_transforms = noting
    return raw


def test_degradation_of_the_old_task_obeys_the_metric():
    """tr(dA C dA^T) of task 2's change, against the same steps without the metric."""
    drift = {}
    for a_metric in (True, False):
        options = {**EXACT, "router": False, "activation": False, "b_metric": "none"}
        method = Same(**SMALL, **options, a_metric=a_metric)
        model = attached(method)
        learn(method, model, task=1, steps=15)
        past = {name: kept(each.history) for name, each in statistics(model).items()}
        start = weights(model)
        learn(method, model, task=2, steps=15)
        drift[a_metric] = {
            name: float(naive.degradation(dA.flatten(0, 1), past[name]))
            for name, dA in changes(model, start, "A").items()
        }
    for name, held in drift[True].items():
        assert held < 0.5 * drift[False][name]


def kept(history):
    """C as it is kept, (d, d)."""
    V, s = history.basis()
    return (V * s) @ V.mT


def freezing(**options):
    return Same(
        **SMALL,
        **{"activation": True, "tau": 1.0, "max_frozen": 2, "warmup_share": 0.25, **options},
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"space": "gradient"}, {"space": "both"}, {"b_metric": "aca"}, {"expert": False}],
)
def test_a_frozen_expert_is_bit_identical_after_the_task(options):
    method = freezing(**options)
    model = attached(method)
    learn(method, model, task=1)
    noted = {}

    def on_step(step):
        if step == 2:
            noted["frozen"] = {n: ~s.active.clone() for n, s in statistics(model).items()}
            noted["then"] = weights(model)

    learn(method, model, task=2, on_step=on_step)
    for letter in "ABG":
        for name, change in changes(model, noted["then"], letter).items():
            frozen = noted["frozen"][name]
            assert int(frozen.sum()) == 2
            assert not change[frozen].any()
            assert all(row.any() for row in change[~frozen])
    assert all(bool(s.active.all()) for s in statistics(model).values())


def test_who_freezes_is_the_oracles_choice_and_nobody_does_in_task_one():
    method = freezing(tau=0.0)
    model = attached(method)
    learn(method, model, task=1, on_step=lambda step: expect_all_active(model))

    def on_step(step):
        if step == 2:
            for each in statistics(model).values():
                score = naive.scores(each.usage.w / each.usage.tokens, each.importance)
                assert (~each.active).tolist() == naive.freeze(score, 0.0, 2)

    learn(method, model, task=2, on_step=on_step)


def expect_all_active(model):
    assert all(bool(each.active.all()) for each in statistics(model).values())


def test_the_history_is_the_moment_of_all_tokens_of_all_tasks():
    seen = {name: [] for name in ("down_proj", "up_proj")}
    method = Same(**SMALL, **{**EXACT, "delta": 1.0}, token_weights="same", task_weights="tokens")
    model = attached(method)
    block = next(m for m in model.modules() if hasattr(m, "gate_proj"))

    def keep(module, inputs):
        if module.training:
            mask = module.context.tokens.mask.flatten().bool()
            seen[module.name.rpartition(".")[2]].append(inputs[0].detach().flatten(0, -2)[mask])

    hooks = [getattr(block, name).register_forward_pre_hook(keep) for name in seen]
    learn(method, model, task=1)
    learn(method, model, task=2)
    for name, batches in seen.items():
        X = torch.cat(batches).double()
        layer = getattr(block, name)
        history = layer.statistics("default").history
        C, alpha = naive.second_moment(torch.zeros(X.shape[1], X.shape[1]).double(), 0, X)
        assert int(history.tokens) == alpha
        torch.testing.assert_close(kept(history).double(), C, rtol=1e-4, atol=1e-4)
    for hook in hooks:
        hook.remove()


def test_running_history_follows_the_current_task():
    """In task 1 there is no past, so `past` holds nothing while `running` soon does."""
    runs = {}
    for history in ("past", "running"):
        method = Same(**SMALL, **OFF | {"router": True}, history=history, lambda_par=0.0)
        model = attached(method)
        runs[history] = turned = []

        def count(step, method=method, model=model, turned=turned):
            turned.append(len(method.step_transforms(model)))

        learn(method, model, steps=14, on_step=count)
    assert runs["past"] == [0] * 14
    assert runs["running"] == [0] * 9 + [6] * 5


def test_the_named_settings():
    paper = Same("paper").config
    assert all(getattr(paper, name) == value for name, value in vars(PAPER).items())
    assert Same("paper", mu=0.5).config.mu == 0.5
    assert Same().config == Same("undrift").config


def test_a_model_without_experts_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"peft_config=method\.peft_config\(\)"):
        learn(Same(), tiny_llava())


def test_an_adapter_that_came_without_statistics_gets_them_and_keeps_them(tmp_path):
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_llava(), MoeLoraConfig(num_experts=4, r=3))
    assert not statistics(model)
    method = Same()
    learn(method, model, task=1)
    learn(method, model, task=2)
    assert len(statistics(model)) == 6
    method.save_state(model, tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)
    for name, each in statistics(again).items():
        assert torch.equal(each.history.V, statistics(model)[name].history.V)
        assert int(each.tasks) == 2
    # and gate and up share a sketch, as they do where the tuner makes it
    shared = [each for each in statistics(model).values() if each.owner is not each]
    assert len(shared) == 2


@pytest.mark.parametrize(("share", "at"), [(0.3, 3), (0.02, 1), (1.0, 10), (0.0, None)])
@pytest.mark.parametrize("make", [Same, SteadyLora])
def test_sketches_are_rebased_once_when_a_share_of_the_steps_is_done(make, share, at, monkeypatch):
    done, rebased, rebase = [], [], LayerStatistics.rebase

    def noted(self):
        rebased.append((self.name, len(done) + 1))
        rebase(self)

    monkeypatch.setattr(LayerStatistics, "rebase", noted)
    method = make(**SMALL, columns=8, rebase_share=share)
    model = attached(method)
    for task in (1, 2):
        learn(method, model, task=task, steps=10, on_step=done.append)
        names = [name for name, _ in rebased]
        assert len(names) == len(set(names)) and bool(names) == (at is not None)
        assert all(step == at for _, step in rebased)
        done.clear(), rebased.clear()


@pytest.mark.parametrize("make", [Same, SteadyLora])
def test_a_history_is_merged_on_the_way_at_the_end_of_every_window(make):
    """Steps are free in the first window, and held from the second on; no task is counted."""
    method = make(**SMALL, columns=64, delta=1.0, merge_share=0.34)
    model = attached(method)
    seen, held, rebased = [], [], []

    def look(step):
        each = next(iter(method.statistics.values()))
        seen.append(float(each.history.tokens))
        held.append(bool(method.step_transforms(model)))
        rebased.append(int(each.tasks))

    learn(method, model, steps=10, on_step=look)
    assert seen == [0] * 2 + [1] * 4 + [2] * 3 + [2]  # windows end at 3, 7 and with the task
    assert held == [False] * 2 + [True] * 8
    assert rebased == [0] * 10
    assert {int(each.tasks) for each in method.statistics.values()} == {1}
    assert {float(each.history.tokens) for each in method.statistics.values()} == {3}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps_total", [1, 7, 20, 101])
def test_windows_are_as_long_but_for_a_step_and_fill_the_task(share, steps_total):
    method = Same(merge_share=share)
    windows = [method.window(step, steps_total) for step in range(1, steps_total + 1)]
    lengths = [length for now, length in windows if now == length]
    assert sum(lengths) == steps_total and max(lengths) - min(lengths) <= 1
    assert [now for now, _ in windows] == [n for length in lengths for n in range(1, length + 1)]
    expected = min(steps_total, round(1 / share)) if share else 1
    assert len(lengths) == expected


def test_frozen_experts_wake_with_every_window():
    options = {"activation": True, "tau": 1.0, "warmup_share": 0.5, "merge_share": 0.5}
    method = Same(**SMALL, **options)
    model = attached(method)
    resting = []
    learn(
        method,
        model,
        steps=8,
        on_step=lambda _: resting.append(sum(method.resting(model).values())),
    )
    assert not any(resting[:5]) and all(resting[5:])


def test_its_options_are_those_of_the_statistics_whoever_made_the_adapter():
    for collect in (False, True):
        config = MoeLoraConfig(num_experts=4, r=3, collect=collect, token_weights="gradient")
        model = peft.get_peft_model(tiny_llava(), config)
        method = Same(seed=5, max_components=7)
        learn(method, model, task=1)
        for each in statistics(model).values():
            assert statistics_options(each) == statistics_options(method.config)
        assert statistics_options(model.peft_config["default"]) == statistics_options(method.config)
        assert (each.token_weights, each.seed, each.max_components) == ("share", 5, 7)
        assert (method.config.experts, method.config.rank) == (4, 3)  # as it is


def test_what_a_history_was_kept_with_goes_on(tmp_path):
    model = peft.get_peft_model(tiny_llava(), MoeLoraConfig(num_experts=4, r=3))
    learn(Same(token_weights="gradient"), model, task=1)
    model.save_pretrained(tmp_path)

    def again():
        return peft.PeftModel.from_pretrained(tiny_llava(), tmp_path, is_trainable=True)

    method = Same()
    learn(method, model := again(), task=2)
    assert {each.token_weights for each in statistics(model).values()} == {"gradient"}
    assert method.config.token_weights == "gradient"
    with pytest.raises(ConfigError, match=r"kept with token_weights='gradient'.*given.*'share'"):
        learn(Same(token_weights="share"), again(), task=2)
    with pytest.raises(ConfigError, match=r"on the model has experts=4, top_k=None"):
        learn(Same(experts=8, top_k=2), again(), task=2)
