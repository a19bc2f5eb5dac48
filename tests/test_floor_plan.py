"""The floor plan: who may import whom, what may be imported where, how long a file may be.

Read off the source with `ast`, so imports inside functions count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "undrift"
FILES = sorted(SOURCE.rglob("*.py"))

# Scorers read predictions, loaders rows, records JSON: what may stand in a file of others is
# refused in one place, which all of them can reach.
GROUND = {"errors", "registry", "untrusted", "bounded_yaml"}
MAY_IMPORT = {
    "errors": set(),
    "registry": {"errors"},
    "untrusted": set(),
    "bounded_yaml": {"errors", "untrusted"},
    "core": {"errors"},
    "scoring": {*GROUND},
    "rundir": {"errors", "untrusted"},
    "tuner": {"core", *GROUND},
    "data": {"scoring", "rundir", *GROUND},
    "report": {"scoring", "rundir", *GROUND},
    "methods": {"tuner", "data", "core", "scoring", "rundir", *GROUND},
    "run": {"methods", "tuner", "data", "core", "scoring", "rundir", *GROUND},
}
MAY_IMPORT["diagnose"] = {"run", "report", *MAY_IMPORT["run"]}
MAY_IMPORT["cli"] = {"diagnose", *MAY_IMPORT["diagnose"]}
MAY_IMPORT["__init__"] = {*MAY_IMPORT} - {"cli"}
MAY_IMPORT["__main__"] = {"cli"}

# A package that only these rooms may import.
ONLY_IN = {
    "peft": {"tuner", "methods"},
    "trl": {"run"},
    "accelerate": {"run"},
}
NO_TORCH = {*GROUND, "scoring", "rundir", "report"}
# What a room may import besides the standard library, where that is all it may.
STDLIB_AND = {
    "errors": set(),
    "registry": set(),
    "untrusted": set(),
    "bounded_yaml": {"yaml"},
    "scoring": {"rapidfuzz"},
    "rundir": {"pydantic", "psutil", "filelock"},
}
HEAVY = {"torch", "transformers", "peft", "accelerate", "trl", "datasets", "matplotlib", "numpy"}
TRAINERS = {"Trainer", "TrainingArguments", "Seq2SeqTrainer", "Seq2SeqTrainingArguments"}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module_of(path: Path) -> list[str]:
    """The dotted package that relative imports in this file start from."""
    return ["undrift", *path.relative_to(SOURCE).parts[:-1]]


@cache
def nodes_of(text: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(text)))


def imports(path: Path, nodes: Iterator[ast.AST] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (module, imported name or "") for every import, relative ones made absolute."""
    for node in nodes if nodes is not None else nodes_of(path.read_text()):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def top_level(path: Path) -> Iterator[ast.AST]:
    """Statements that run on import: not inside functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def rooms_imported(path: Path) -> set[str]:
    found = set()
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] == "undrift":
            inner = [*parts[1:], name] if len(parts) == 1 else parts[1:]
            target = inner[0]
            is_room = (SOURCE / target).is_dir() or (SOURCE / f"{target}.py").is_file()
            found.add(target if is_room else "__init__")
    return found


def ids(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imports_go_down_only(path):
    here = room(path)
    assert here in MAY_IMPORT, f"{here} has no place in the floor plan"
    wrong = rooms_imported(path) - MAY_IMPORT[here] - {here}
    assert not wrong, f"{here} may not import {wrong}"


def packages_stay_in_their_rooms(path):
    here = room(path)
    for module, name in imports(path):
        package = module.split(".")[0]
        if package in ONLY_IN:
            assert here in ONLY_IN[package], f"{here} imports {package}"
        if package == "transformers" and name in TRAINERS:
            assert here == "run", f"{here} imports {name}: only run trains"
        if here == "core":
            assert package in {"torch", "undrift"} | set(sys.stdlib_module_names)
        if here in NO_TORCH:
            assert package not in HEAVY - {"matplotlib"}
        if here in STDLIB_AND:
            allowed = {"undrift", *STDLIB_AND[here]}
            assert package in allowed or package in sys.stdlib_module_names


def nothing_is_pickled(path):
    for module, _ in imports(path):
        assert module.split(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    calls = [node.func for node in nodes_of(path.read_text()) if is_call(node)]
    assert not {"torch.load", "torch.save"} & {ast.unparse(call) for call in calls}


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def a_file_holds_one_idea(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 700, f"{lines} lines: has a second idea moved in?"


def names_say_something(path):
    empty = ("util", "helper", "common", "manager", "factory", "integration", "wrapper", "misc")
    classes = [node.name for node in nodes_of(path.read_text()) if isinstance(node, ast.ClassDef)]
    for name in [*path.relative_to(SOURCE).parts, *classes]:
        assert not any(word in name.lower() for word in empty), name


RULES = (
    imports_go_down_only,
    packages_stay_in_their_rooms,
    nothing_is_pickled,
    a_file_holds_one_idea,
    names_say_something,
)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_file_keeps_every_rule(path):
    for rule in RULES:
        rule(path)


@pytest.mark.parametrize(
    "name", ["__init__.py", *map(str, (p.relative_to(SOURCE) for p in FILES if "cli" in p.parts))]
)
def test_heavy_imports_come_late(name):
    path = SOURCE / name
    found = {module.split(".")[0] for module, _ in imports(path, top_level(path))}
    assert not found & HEAVY


def test_scoring_rundir_and_report_import_without_torch():
    program = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "accelerate", "trl"):
            raise ModuleNotFoundError(f"{name} is not installed")

sys.meta_path.insert(0, NoTorch())
import undrift.scoring, undrift.rundir, undrift.report, undrift.registry, undrift.data.types
from undrift.report import comparison, export, figures, page
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class TestTheRulesThemselves:
    """A rule that cannot fail proves nothing: each must catch a planted fault."""

    def plant(self, tmp_path, monkeypatch, name, text):
        monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
        for folder in ("core", "methods", "report", "scoring"):
            (tmp_path / folder).mkdir()
        path = tmp_path / name
        path.write_text(text)
        return path

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("core/x.py", "from undrift.methods import same"),
            ("core/x.py", "from undrift import methods"),
            ("core/x.py", "from .. import methods"),
            ("core/x.py", "from ..methods.same import Same"),
            ("core/x.py", "def f():\n    import undrift.methods.same"),
            ("core/x.py", "from undrift import Same"),
        ],
    )
    def test_upward_imports_are_caught(self, tmp_path, monkeypatch, name, text):
        path = self.plant(tmp_path, monkeypatch, name, text)
        with pytest.raises(AssertionError, match="may not import"):
            imports_go_down_only(path)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("core/x.py", "import numpy"),
            ("report/x.py", "import peft"),
            ("report/x.py", "def f():\n    import torch.nn"),
            ("scoring/x.py", "import yaml"),
            ("methods/x.py", "from transformers import Trainer"),
            ("methods/x.py", "import accelerate"),
        ],
    )
    def test_strangers_in_a_room_are_caught(self, tmp_path, monkeypatch, name, text):
        path = self.plant(tmp_path, monkeypatch, name, text)
        with pytest.raises(AssertionError):
            packages_stay_in_their_rooms(path)

    def test_late_imports_are_told_from_early_ones(self, tmp_path, monkeypatch):
        early = self.plant(tmp_path, monkeypatch, "cli.py", "try:\n    import torch\nfinally: ...")
        with pytest.raises(AssertionError):
            test_heavy_imports_come_late("cli.py")
        early.write_text(
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import torch\n"
            "def run():\n    import torch\n"
        )
        test_heavy_imports_come_late("cli.py")
