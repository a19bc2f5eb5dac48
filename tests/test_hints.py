"""What messages tell a user to type is there: commands, options, keys of --set and extras."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from undrift.cli import app
from undrift.run.setting_keys import all_settings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "undrift"
GROUP = typer.main.get_command(app)
# In backticks, as a whole f-string, in a help text.
QUOTED = re.compile(r"`undrift (\w+)([^`>|\n]*)")
BARE = re.compile(r"^(?:  )?undrift (\w+)((?: [^`>|\n]*)?\bX\b[^`>|\n]*)$", re.MULTILINE)
SHOWN = re.compile(r"^  undrift (\w+)([^`>|\n]*)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w(-])--[a-z][\w-]+(?![\w-]*:)")
OF_OTHERS = {  # options of pip, lmms-eval and vLLM
    *(
        "--no-binary",
        "--no-deps",
        "--model",
        "--model_args",
        "--gen_kwargs",
        "--enable-lora",
        "--max-lora-rank",
    )
}
KEY = re.compile(r"\b(?:train|eval|method|profile|reading)\.(?!json|csv)[a-z_]+\b(?!\()")
PLACEHOLDER = "X"


class Text(NamedTuple):
    where: str
    text: str


@cache
def texts() -> list[Text]:
    """Every text of the source; what is filled into an f-string is a placeholder."""
    return [found for file in sorted(SOURCE.rglob("*.py")) for found in of_file(file)]


def of_file(file: Path) -> Iterator[Text]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in whole for part in ast.walk(node) if part is not node}
    # but what a docstring of a command says is what --help prints
    shown = [n for n in tree.body if file.parent.name == "cli" and isinstance(n, ast.FunctionDef)]
    said = set(docstrings(ast.walk(tree))) - set(docstrings(shown))
    for node in ast.walk(tree):
        if id(node) not in parts | said and (text := as_text(node)):
            yield Text(f"{file.relative_to(ROOT)}:{node.lineno}", text)


def docstrings(nodes: Iterable[ast.AST]) -> Iterator[int]:
    for node in nodes:
        body = getattr(node, "body", ())
        for line in body if isinstance(body, list) else ():
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                yield id(line.value)


def as_text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        filled = (getattr(part, "value", PLACEHOLDER) for part in node.values)
        return "".join(part if isinstance(part, str) else PLACEHOLDER for part in filled)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def commands() -> list[tuple[str, str, str]]:
    found = {
        (where, name, rest)
        for where, text in texts()
        for kind in (QUOTED, BARE, SHOWN)
        for name, rest in kind.findall(text)
        if name in GROUP.commands
    }
    return sorted(found)


@pytest.mark.parametrize(("where", "name", "rest"), commands())
def test_a_command_in_a_message_is_one(where, name, rest):
    words, whole = shlex.split(rest), "..." not in rest
    words = [word for word in words if word != "..."]
    try:
        GROUP.commands[name].make_context(name, words)
    except Exception as error:  # typer hides the classes of its errors
        needed = type(error).__name__ == "MissingParameter"
        if not needed or (whole and words):  # without any word it is only spoken of
            raise


def test_there_are_such_commands():
    assert len(commands()) > 15
    with pytest.raises(Exception, match="No such option"):
        GROUP.commands["learn"].make_context("learn", ["X", "--data", "X", "--out", "X", "--nope"])


def test_every_option_in_a_message_is_one():
    known = {each for c in GROUP.commands.values() for p in c.params for each in p.opts}
    known |= {"--help", "--version", *OF_OTHERS}
    prose = [(where, text) for where, text in texts() if len(text.split()) > 3]
    named = {(where, each) for where, text in prose for each in OPTION.findall(text)}
    assert len(named) > 50
    assert {(where, each) for where, each in named if each not in known} == set()


def test_every_key_in_a_message_is_one():
    known = {setting.key for setting in all_settings()}
    prose = [(where, text) for where, text in texts() if " " in text or "=" in text]
    named = {(where, each) for where, text in prose for each in KEY.findall(text)}
    assert len(named) > 10
    assert {(where, each) for where, each in named if each not in known} == set()


def test_every_extra_in_a_message_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "missing_extra":
                named.add(node.args[1].value)
    named |= {name for _, text in texts() for name in re.findall(r"undrift\[(\w+)\]", text)}
    assert len(named - {PLACEHOLDER}) > 2
    assert named - {PLACEHOLDER} <= set(project["optional-dependencies"])
