"""The page of all settings is what a configuration takes, and what a wrong key is told."""

from __future__ import annotations

import json

import pytest
import yaml

from undrift.errors import ConfigError, UnknownName
from undrift.registry import BENCHMARKS, METHODS
from undrift.run.config import RunConfig, load_yaml, overrides, resolve
from undrift.run.session import make_method
from undrift.run.setting_keys import (
    all_settings,
    check_reading,
    documented,
    meant,
    method_settings,
    reading_settings,
    run_settings,
)


def leaves(content, prefix=""):
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_of_a_run_is_listed_and_taken():
    config = RunConfig(benchmark="pocket").model_dump(mode="json")
    keys = {each.key for each in run_settings()}
    # options and reading belong to the method and the benchmark; global_batch is left out if unset
    assert keys == {*leaves(config)} - {"method.options", "reading"} | {"train.global_batch"}
    for each in run_settings():
        written = json.dumps(each.default, default=str)
        if each.key != "benchmark":
            layer = overrides([f"{each.key}={written}"])
            assert resolve({"benchmark": "folder"}, layer) == resolve({"benchmark": "folder"})


def test_a_large_bound_is_told_exactly():
    (seed,) = (each for each in run_settings() if each.key == "seed")
    assert seed.values == "a whole number at least 0 and at most 4294966"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_option_of_a_method_is_taken_as_listed(name):
    settings = method_settings(name)
    options = {each.name: each.default for each in settings}
    assert make_method(name, json.loads(json.dumps(options))).config == METHODS.load(name)().config
    assert all(each.about and each.values for each in settings)


def test_every_option_of_a_benchmark_is_taken():
    found = {name: reading_settings(name) for name in BENCHMARKS.names()}
    assert {each.key for each in found["folder"]} >= {"reading.held_out", "reading.scorer"}
    for name, settings in found.items():
        check_reading(name, {each.name: each.default for each in settings})
        assert all(each.about and each.values for each in settings)


def test_all_of_them_say_what_they_mean():
    settings = all_settings()
    assert [each.key for each in settings if not each.about or not each.values] == []
    groups = [each.group for each in settings]
    assert {"run", "profile", "train", "eval", "reading coin", "methods, all"} <= {*groups}
    delta = next(each for each in settings if each.group == "method same" and each.name == "delta")
    assert (delta.default, delta.equations) == (0.99, ["Eq. 4, 5"])


def test_a_named_setting_has_its_own_defaults():
    found = {each.name: each.default for each in method_settings("same-paper")}
    assert found["delta"] == 0.9 and found["experts"] == 8
    with pytest.raises(UnknownName, match="did you mean 'paper'"):
        method_settings("same-papre")


def test_what_it_was_begun_with_is_kept_and_what_is_not_known_is_named():
    begun = {"mu": 0.5, "learning_rate": 0.1}
    assert make_method("same", {}, begun).config.mu == 0.5
    assert make_method("same", {"mu": 0.2}, begun).config.mu == 0.2
    with pytest.raises(ConfigError, match=r"method\.tilt = 3, which this undrift's same does not"):
        make_method("same", {}, {**begun, "tilt": 3})


def test_a_key_of_the_method_says_whose_it_would_be():
    with pytest.raises(UnknownName, match=r"unknown key of nearlora 'method\.mu'"):
        make_method("nearlora", {"mu": 1})


def test_docstrings_of_bases_and_long_entries_are_read():
    class Base:
        """A base.

        Attributes:
            a: One
                two, "x: y".

            b: Three.

        Raises:
            ValueError: Not an argument.
        """

    class Derived(Base):
        """Derived.

        Args:
            b: Four.
        """

    assert documented(Derived) == {"a": 'One two, "x: y".', "b": "Four."}


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("learning_rate", "'train.learning_rate'"),
        ("learning-rate", "'train.learning_rate'"),
        ("lr", "'train.learning_rate'"),
        ("train.learnig_rate", "'train.learning_rate'"),
        ("train.epoch", "'train.epochs'"),
        ("epochs", "'train.epochs'"),
        ("batch_size", "'train.batch_size' or 'eval.batch_size'"),
        ("train.seed", "'seed'"),
        ("rank", "'method.rank'"),
        ("train.rank", "'method.rank'"),
        ("reach", "'method.reach'"),
        ("held_out", "'reading.held_out'"),
        ("sead", "'seed'"),
    ],
)
def test_a_shortened_or_mistyped_key_gets_the_full_one(given, full, tmp_path):
    said = rf"unknown key (of \w+ )?'{given}'; did you mean {full}\? known: "
    with pytest.raises(UnknownName, match=said):
        resolve({"benchmark": "folder"}, overrides([f"{given}=1"]))
    nested: object = 1
    for part in reversed(given.split(".")):
        nested = {part: nested}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"benchmark": "folder", **nested}))
    with pytest.raises(UnknownName, match=said):
        resolve(load_yaml(file))


def test_a_key_of_another_place_is_found_from_a_method_and_a_benchmark():
    with pytest.raises(UnknownName, match=r"'method\.lr'; did you mean 'train\.learning_rate'"):
        make_method("same", {"lr": 1})
    with pytest.raises(UnknownName, match=r"'method\.dleta'; did you mean 'method\.delta'"):
        make_method("same", {"dleta": 1})
    with pytest.raises(UnknownName, match=r"'reading\.epochs'; did you mean 'train\.epochs'"):
        check_reading("coin", {"epochs": 1})


@pytest.mark.parametrize(
    ("benchmark", "key", "value", "expected"),
    [
        ("pocket", "questions", False, "own, shared (got False)"),
        ("coin", "instructions", 3, "a text (got 3)"),
        ("folder", "held_out", True, "a number (got True)"),
        ("folder", "held_out", "x", "a number (got 'x')"),
        ("folder", "seed", 0.5, "a whole number (got 0.5)"),
        ("folder", "images", ["a"], "a path, a text or null (got ['a'])"),
    ],
)
def test_options_of_a_benchmark_are_of_the_kind_that_it_declares(benchmark, key, value, expected):
    with pytest.raises(ConfigError) as caught:
        check_reading(benchmark, {key: value})
    assert str(caught.value) == f"reading.{key}: expected {expected}"


def test_what_a_benchmark_declares_is_taken():
    check_reading("pocket", {"questions": "shared"})
    check_reading("folder", {"held_out": 0, "seed": 3, "images": "pictures", "scorer": None})
    with pytest.raises(ConfigError, match=r"'desk' has no options; leave out reading\.x"):
        check_reading("desk", {"x": 1})


def test_what_another_package_declares_may_be_beyond_checking(monkeypatch):
    class Own:
        pass

    def unresolved(root, *, words: Nowhere = "a", progress=True): ...  # noqa: F821

    def of_its_own(root, *, words: int = 1, more=None, progress=True): ...

    of_its_own.__annotations__["more"] = Own
    monkeypatch.setattr(type(BENCHMARKS), "load", lambda *_: unresolved)
    check_reading("theirs", {"words": 3})
    assert [each.key for each in reading_settings("theirs")] == ["reading.words"]
    monkeypatch.setattr(type(BENCHMARKS), "load", lambda *_: of_its_own)
    check_reading("theirs", {"words": 3, "more": "x"})
    with pytest.raises(ConfigError, match="words: expected a whole number"):
        check_reading("theirs", {"words": "x"})


def test_what_means_nothing_gets_no_guess():
    assert meant("xyzzy", ["train.epochs"]) == []
    assert meant("e", ["train.epochs"]) == []


@pytest.fixture
def listed(command_line):
    def run(*words: str) -> str:
        _, out, err = command_line("list", *words)
        return out or err

    return run


def test_the_page(listed):
    lines = listed("settings").splitlines()
    rate = next(line for line in lines if line.startswith("  train.learning_rate=null  "))
    assert rate.endswith("(a number above 0 or null) Peak rate; the method's own if not given.")
    assert "method same: learning rate 0.0002; settings same-paper, same-undrift" in lines
    rows = json.loads(listed("settings", "--json"))["settings"]
    assert [row["key"] for row in rows] == [each.key for each in all_settings()]
    own = listed("settings", "--method", "ewc")
    assert "  method.strength=0.1  (a positive number) lambda." in own
    assert "train." not in own and "method.delta" not in own
    assert "did you mean 'ewc'" in listed("settings", "--method", "ewcc")
    assert "--method goes with settings" in listed("methods", "--method", "same")
