"""What the README says is so: commands parse and Python runs; CONTRIBUTING lists the folders."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "undrift"
README = (ROOT / "README.md").read_text(encoding="utf-8")

FENCE = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDER_LINE = re.compile(r"^([\w/]+) +# \S.*$", re.MULTILINE)
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ASKING = MODELS[MODELS.index("## Asking an adapter") :]
OWN = README[README.index("## Your data") : README.index("## The demo")]
SHELL = {"sh", "bash", "shell", "console"}


def blocks(*languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(README + ASKING) if language in languages]


def commands(page: str = README) -> list[str]:
    """Every command line of the shell blocks, continuation lines joined, comments dropped."""
    found = []
    for language, text in FENCE.findall(page):
        if language in SHELL:
            lines = text.replace("\\\n", " ").splitlines()
            if language == "console":
                lines = [line[2:] for line in lines if line.startswith("$ ")]
            found += [words for line in lines if (words := shlex.split(line, comments=True))]
    return [shlex.join(words) for words in found]


def test_contributing_lists_the_folders():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = {line[1] for line in re.finditer(FOLDER_LINE, text)}
    folders = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    assert listed == folders - {"."}


@pytest.mark.parametrize("command", commands())
def test_a_command_means_something(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *arguments = words
    match Path(program).name:
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            named = [word for word in arguments if "=" not in word]
            assert set(named) <= set(targets)
        case "undrift":
            assert_parses(arguments)
        case "pip":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            asked = {
                extra.strip()
                for extras in re.findall(r"\[([\w, -]+)\]", command)
                for extra in extras.split(",")
            }
            assert asked <= set(project["optional-dependencies"])
        case "torchrun":
            at = arguments.index("undrift")
            assert arguments[at - 1] == "-m"
            assert_parses(arguments[at + 1 :])
        case "python" | "bash":
            scripts = [word for word in arguments if word.endswith((".py", "run"))]
            assert scripts or arguments[0] == "-m"
            assert all((ROOT / script).is_file() for script in scripts)
        case "git" | "cd" | "source":
            pass
        case _:
            pytest.fail(f"this test does not know {program!r}")


def assert_parses(arguments: list[str]) -> None:
    """Let the command line's own parser read the arguments, without running the command."""
    import typer

    from undrift.cli import app

    group = typer.main.get_command(app)
    if arguments and not arguments[0].startswith("-"):
        with group.make_context("undrift", list(arguments)) as context:
            name, command, rest = group.resolve_command(context, list(arguments))
            command.make_context(name, rest, parent=context)
    else:
        assert set(arguments) <= {"--help", "--version"}


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_imports_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if not hasattr(importlib.import_module(node.module), alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.foreign("7.1")
@pytest.mark.foreign("7.10")
@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs(block, tmp_path):
    """As it stands, in a folder where the adapter that it names has been saved."""
    for folder in re.findall(r'"(runs/[^"]+/adapter)"', block):
        save_pocket_adapter(tmp_path / folder)
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def save_pocket_adapter(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from undrift.methods.same import Same

    method = Same(experts=2, rank=2)
    base = str(SOURCE / "run/pocket/weights")
    method.save_state(method.attach(AutoModelForImageTextToText.from_pretrained(base)), folder)


@pytest.mark.foreign("7.7")
@pytest.mark.slow
def test_the_card_of_a_pocket_adapter_loads_it(tmp_path):
    """Every block of it as it stands, in the adapter's folder."""
    save_pocket_adapter(tmp_path)
    made = FENCE.findall((tmp_path / "README.md").read_text())
    assert [language for language, _ in made] == ["python", "python"]
    for _, block in made:
        assert str(ROOT) not in block
        test_a_python_block_runs(block, tmp_path)


def test_links_inside_the_repository_lead_somewhere():
    for target in re.findall(r"\]\(([^)#\s]+)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), f"README links to {target}, which does not exist"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_the_path_for_your_own_data(tmp_path, monkeypatch, capsys):
    """The README's circle as it stands, on the first rows of the data that it draws."""
    from undrift import cli

    monkeypatch.setenv("UNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own_data.py", "mine"])
    runpy.run_path(str(ROOT / "examples" / "own_data.py"), run_name="__main__")
    for rows in (tmp_path / "mine").rglob("train.jsonl"):
        rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:40]))
    lines = [line for line in commands(OWN) if line.startswith("undrift")]
    assert len(lines) == 6
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        fell = "--max-drop" in line and ended.value.code == 3  # of four questions one may well fall
        assert fell or not ended.value.code, f"{line}: {err}"
        assert out.strip()


def test_the_tables_of_methods_are_those_of_the_results():
    script = runpy.run_path(str(ROOT / "scripts" / "readme_results.py"))
    assert script["table"]() in README
    assert script["table"](whole=True) in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_sentence_about_drift_is_that_of_the_results():
    found = json.loads((ROOT / "docs/results/pocket-drift.json").read_text(encoding="utf-8"))
    assert found["verdict"] in " ".join(README.replace("\n>", "\n").split())
