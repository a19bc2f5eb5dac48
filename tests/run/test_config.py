"""How a configuration is put together, and what is said about a wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from undrift.errors import ConfigError, UnknownName
from undrift.run import config
from undrift.run.config import check_used, load_yaml, overrides, read_order, resolve, validated
from undrift.run.study_plan import StudyConfig


@pytest.fixture
def preset(monkeypatch):
    content = {
        "train": {"batch_size": 32, "epochs": 2},
        "method": {"experts": 8},
        "methods": {
            "same": {"train": {"learning_rate": 6e-3}, "method": {"rank": 2}},
            "same-paper": {"train": {"learning_rate": 1e-3}},
        },
        "profiles": {"demo": {"train_share": 0.25}},
    }
    monkeypatch.setattr(config, "load_preset", lambda benchmark: content)


def test_what_a_step_takes_is_said_once():
    given = {"benchmark": "pocket", "train": {"global_batch": 32, "accumulation": 2}}
    with pytest.raises(ConfigError, match="accumulation follows from global_batch"):
        resolve(given)


def test_later_layers_win(preset):
    asked = {"benchmark": "b", "method": "same"}
    config = resolve(asked, {"train": {"epochs": 3}}, {"train": {"epochs": 4.5}})
    assert config.train.epochs == 4.5 and config.train.batch_size == 32
    assert config.train.learning_rate == 6e-3
    assert config.method.options == {"experts": 8, "rank": 2}


def test_a_named_setting_builds_on_its_method(preset):
    config = resolve({"benchmark": "b", "method": "same-paper"})
    assert config.train.learning_rate == 1e-3
    assert config.method.name == "same-paper" and config.method.options["rank"] == 2
    other = resolve({"benchmark": "b", "method": {"name": "moelora", "experts": 4}})
    assert other.train.learning_rate is None and other.method.options == {"experts": 4}


def test_profiles(preset):
    demo = resolve({"benchmark": "b", "profile": "demo"}).profile
    assert (demo.train_share, demo.test_share, demo.cells) == (0.25, 0.5, "seen")
    own = resolve({"benchmark": "b", "profile": "lite"}, {"profile": {"test_share": 0.1}}).profile
    assert (own.name, own.test_share, own.cells) == ("lite", 0.1, "ends")
    with pytest.raises(UnknownName, match="unknown profile 'lit'; did you mean 'lite'"):
        resolve({"benchmark": "b", "profile": "lit"})


def test_another_method_or_profile_drops_the_options_of_the_first():
    file = {"benchmark": "b", "method": {"name": "same", "delta": 0.5}}
    file["profile"] = {"name": "full", "train_share": 1.0, "test_share": 1.0, "cells": "all"}
    config = resolve(file, {"method": "moelora", "profile": "lite"}, {"method": {"rank": 4}})
    assert config.method.options == {"rank": 4}
    assert (config.profile.train_share, config.profile.cells) == (0.5, "ends")
    same = resolve(file, {"method": "same", "profile": {"test_share": 0.1}})
    assert same.method.options == {"delta": 0.5} and same.profile.test_share == 0.1


def test_unknown_keys_name_the_nearest():
    with pytest.raises(UnknownName, match="'sead'; did you mean 'seed'"):
        resolve({"benchmark": "b", "sead": 1})
    with pytest.raises(UnknownName, match=r"'train\.epoch'; did you mean 'train\.epochs'"):
        resolve({"benchmark": "b", "train": {"epoch": 1}})
    with pytest.raises(UnknownName, match="unknown method 'smae'; did you mean 'same'"):
        resolve({"benchmark": "b", "method": "smae"})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"train": {"batch_size": 0}}, r"train\.batch_size: .*greater than 0"),
        ({"train": {"learning_rate": "fast"}}, r"train\.learning_rate: .*\(got 'fast'\)"),
        ({"seed": -1}, "seed: "),
        ({"train": 5}, "train: "),
        ({"method": 5}, "method: expected a name"),
        ({"profile": {"name": 5}}, "profile: expected a name"),
        ({"profile": {"name": "full", "train_share": 1.5}}, r"profile\.train_share"),
    ],
)
def test_bad_values(layer, message):
    with pytest.raises(ConfigError, match=message):
        resolve({"benchmark": "b"}, layer)


@pytest.mark.parametrize(
    "setting",
    ["seed=yes", "seed=false", "train.learning_rate=true", "train.max_steps=on", "train.epochs=yes",
     "profile.limit=yes", "stream.blend=off", "eval.batch_size=true", "threads=yes"],
)  # fmt: skip
def test_a_truth_value_is_no_number(setting):
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=f"^{key}: expected a number, and YAML takes yes"):
        resolve({"benchmark": "b"}, overrides([setting]))


def test_a_truth_value_stays_one_and_a_study_has_numbers_too():
    config = resolve({"benchmark": "b"}, overrides(["train.train_projector=yes", "skip_bad=on"]))
    assert config.train.train_projector is True and config.skip_bad is True
    study = {"benchmark": "b", "rows": ["same"], "seeds": [1], "results": "x", "widen": True}
    assert validated(StudyConfig, study).widen
    for wrong in ({"seeds": [1, True]}, {"rates": {"same": [True]}}, {"drop": True}):
        with pytest.raises(ConfigError, match="expected a number"):
            validated(StudyConfig, {**study, **wrong})


def test_the_seed_of_a_task_is_one_that_numpy_takes():
    most = resolve({"benchmark": "b", "seed": config.MOST_SEED}).seed
    np.random.RandomState(most * 1000 + 999)
    with pytest.raises(ConfigError, match=r"^seed: input should be less than or equal to 4294966"):
        resolve({"benchmark": "b", "seed": most + 1})


def test_threads_are_bounded_in_a_file_as_well():
    many = 16 * (os.cpu_count() or 1)
    assert resolve({"benchmark": "b", "threads": many}).threads == many
    with pytest.raises(ConfigError, match=rf"^threads: .*; give at most {many}"):
        resolve({"benchmark": "b", "threads": many + 1})


def test_options_may_stand_beside_the_name_or_below_options():
    layers = overrides(["method.options={rank: 4, top_k: 1}", "method.rank=2"])
    assert resolve({"benchmark": "b"}, layers).method.options == {"rank": 2, "top_k": 1}
    base = {"benchmark": "b", "method": {"name": "same", "rank": 8}}
    config = resolve(base, {"method": {"options": {"rank": 4}}})
    assert config.method.options == {"rank": 4} and config.method.name == "same"
    with pytest.raises(ConfigError, match="rank stands beside the name and below"):
        resolve({"benchmark": "b", "method": {"name": "same", "rank": 8, "options": {"rank": 4}}})
    with pytest.raises(ConfigError, match=r"method\.options: input should be a valid dictionary"):
        resolve({"benchmark": "b"}, overrides(["method.options=3"]))


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("train.epochs=7", "train.max_steps=3"),
        ("stream.points=3", "boundaries=tasks"),
        ("train.projector_learning_rate=1e-3", "train.train_projector=false"),
        ("train.warmup_ratio=0.5", "train.scheduler=constant"),
    ],
)
def test_a_setting_that_counts_for_nothing_is_refused(setting, more):
    given = overrides([setting, more])
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=f"the setting {key.partition('.points')[0]} counts only"):
        check_used(resolve({"benchmark": "b"}, given), given)
    needed = {"train.epochs": "train.max_steps=null", "stream.points": "boundaries=none",
              "train.projector_learning_rate": "train.train_projector=true",
              "train.warmup_ratio": "train.scheduler=linear"}  # fmt: skip
    given = overrides([setting, needed[key]])
    check_used(resolve({"benchmark": "b"}, given), given)


def test_a_configuration_that_was_printed_can_be_given_again():
    config = resolve({"benchmark": "b", "train": {"max_steps": 3, "scheduler": "constant"}})
    check_used(config, yaml.safe_load(config.text(whole=True)))


def test_no_benchmark():
    with pytest.raises(ConfigError, match="no benchmark given"):
        resolve({"seed": 1})


def test_overrides_read_yaml_values():
    found = overrides(["method.delta=0.95", "train.learning_rate=1e-3", "profile=lite"])
    assert found == {
        "method": {"delta": 0.95},
        "train": {"learning_rate": 1e-3},
        "profile": {"name": "lite"},
    }
    assert overrides(["method.top_k=null"]) == {"method": {"top_k": None}}
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        overrides(["method.delta"])


def test_run_yaml_makes_the_same_run_again(tmp_path):
    first = resolve(
        {"benchmark": "b", "method": {"name": "same", "delta": 0.5}, "order": ("x", "y")},
        {"out": tmp_path / "here", "threads": 2, "profile": "lite"},
    )
    (tmp_path / "run.yaml").write_text(first.text())
    again = resolve(load_yaml(tmp_path / "run.yaml"), {"out": tmp_path / "there"})
    assert again.text() == first.text()
    assert "here" not in first.text() and "threads" not in first.text()
    assert yaml.safe_load(first.text())["method"] == {"name": "same", "delta": 0.5}


def test_folder_names_say_what_was_chosen():
    assert resolve({"benchmark": "b", "seed": 3}).folder == Path("runs/b-nearlora-s3")
    other = resolve({"benchmark": "b", "order": "second", "profile": "lite", "method": "moelora"})
    assert other.folder == Path("runs/b-moelora-second-lite-s0")


def test_yaml_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_yaml(tmp_path / "none.yaml")
    file = tmp_path / "c.yaml"
    file.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_yaml(file)
    file.write_text("- a")
    with pytest.raises(ConfigError, match="must hold `key: value` lines"):
        load_yaml(file)


def test_order_files(tmp_path):
    assert read_order("reversed") == "reversed"
    file = tmp_path / "order.txt"
    file.write_text("- a\nb\n\n")
    assert read_order(str(file)) == ("a", "b")
    file.write_text("\n")
    with pytest.raises(ConfigError, match="names no task"):
        read_order(str(file))


def test_every_preset_is_valid():
    for benchmark in ("pocket",):
        for method in ("moelora", "same", "same-paper", "finetune", "joint", "zeroshot"):
            for profile in ("full", "lite", "demo"):
                layer = {"benchmark": benchmark, "method": method, "profile": profile}
                assert resolve(layer).threads == 1
