from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from undrift import registry
from undrift.errors import ConfigError, UnknownName
from undrift.registry import Registry


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A registry over a package made for the test: same, moelora, broken, base, _private, parts."""
    package = tmp_path / "shelf"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts" / "__init__.py").write_text("")
    (package / "_private.py").write_text("THING = 0")
    (package / "base.py").write_text("")
    (package / "same.py").write_text("THING = 'the object of same'")
    (package / "moelora.py").write_text("THING = 'the object of moelora'")
    (package / "broken.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("method", "shelf", "THING", hidden=("base",))
    for module in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
        del sys.modules[module]


def plug(monkeypatch, name, value):
    point = EntryPoint(name=name, value=value, group="shelf")
    monkeypatch.setattr(registry, "registered", lambda group: [point] if group == "shelf" else [])


def test_names_are_file_stems_and_nothing_is_imported(shelf):
    assert shelf.names() == ["broken", "moelora", "same"]
    assert not {"shelf.same", "shelf.moelora", "shelf.broken"} & set(sys.modules)


def test_load(shelf):
    assert shelf.load("same") == "the object of same"
    assert "shelf.moelora" not in sys.modules


@pytest.mark.parametrize("hidden", ["base", "_private", "parts", "smae", "os.path"])
def test_what_is_not_listed_is_not_loaded(shelf, hidden):
    with pytest.raises(UnknownName, match="unknown method"):
        shelf.load(hidden)


def test_a_file_without_the_attribute_is_named(shelf):
    with pytest.raises(ConfigError, match=r"shelf\.broken has no THING"):
        shelf.load("broken")


def test_split(shelf):
    assert shelf.split("same") == ("same", None)
    assert shelf.split("same-paper") == ("same", "paper")
    for name in ("smae-paper", "same-", "-paper", "base-paper"):
        with pytest.raises(UnknownName):
            shelf.split(name)


def test_an_entry_point_adds_a_name(shelf, monkeypatch):
    plug(monkeypatch, "theirs", "math:tau")
    assert shelf.names() == ["broken", "moelora", "same", "theirs"]
    assert shelf.load("theirs") == pytest.approx(6.283185307)


def test_a_name_may_hold_a_hyphen(shelf, monkeypatch):
    plug(monkeypatch, "their-method", "math:tau")
    assert shelf.split("their-method") == ("their-method", None)
    assert shelf.split("their-method-paper") == ("their-method", "paper")


def test_an_entry_point_may_not_take_a_name_of_ours(shelf, monkeypatch):
    plug(monkeypatch, "same", "math:tau")
    with pytest.raises(ConfigError, match="registers the same name"):
        shelf.load("same")
    assert shelf.load("moelora") == "the object of moelora"


def test_methods_and_benchmarks_of_undrift():
    assert {"finetune", "joint", "moelora", "same", "steadylora", "zeroshot"} <= set(
        registry.METHODS.names()
    )
    assert "pocket" in registry.BENCHMARKS.names()
