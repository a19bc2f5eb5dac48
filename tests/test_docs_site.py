"""The site and what is published: pages in their places, computed tables, files that parse."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from undrift.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GROUP = typer.main.get_command(app)
NEW = ("start.md", "benchmarks.md", "promises.md", "howto/ci-guard.md")
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(undrift \w+ [^`]+)`")
GUARD = ROOT / "examples" / "forgetting_guard.yml"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    if "undrift" in (name := Path(words[0]).name) and "..." not in words:
        assert name == "undrift"
        GROUP.commands[words[1]].make_context(words[1], words[2:])


def test_every_page_has_its_place():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE)
    made = {"index.md", "changelog.md", "contributing.md"}
    made |= {"reference/commands.md", "reference/settings.md"}
    made |= {f"tutorials/{file.stem}.md" for file in DOCS.glob("tutorials/*.ipynb")}
    assert len(nav) == len({*nav})
    assert {*nav} == {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")} | made


def test_what_pages_take_in_is_written_so_and_is_there():
    found = [
        (file.name, line)
        for file in DOCS.rglob("*.md")
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.match(r"\W*8\s*<", line)
    ]
    assert len(found) >= 4
    for page, line in found:
        taken = re.fullmatch(r'--8<-- "([\w./]+)"', line)
        assert taken and (ROOT / taken[1]).is_file(), (page, line)


@pytest.mark.parametrize("page", NEW)
def test_its_commands_are_commands(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(text)]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    lines += [said for said in INLINE.findall(text) if len(said.split()) > 2]
    assert any(line.startswith("undrift ") for line in lines)
    for line in lines:
        parses(line)


def test_the_guard_is_a_workflow_whose_commands_are_commands():
    steps = yaml.safe_load(GUARD.read_text(encoding="utf-8"))["jobs"]["learn"]["steps"]
    said = [part.strip() for step in steps for part in step.get("run", "").split("&&")]
    ours = [line for line in said if line.startswith(".venv/bin/undrift")]
    assert len(ours) == 2 and any("--max-drop" in line for line in ours)
    for line in ours:
        parses(line)


@pytest.mark.slow
def test_the_table_of_memory_is_what_the_script_computes():
    page = (DOCS / "memory.md").read_text(encoding="utf-8")
    assert script("memory_table").table() in page


def test_the_dockerfile_copies_what_it_may_and_its_packages_are_extras():
    run = script("run_dockerfile")
    lines = [*run.instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [word for name, rest in lines if name == "COPY" for word in rest.split()[:-1]]
    assert copied and all((ROOT / word).exists() and f"!{word}" in allowed for word in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        n for _, rest in lines for e in re.findall(r"\.\[([\w,]+)\]", rest) for n in e.split(",")
    ]
    assert asked and {*asked} <= set(project["optional-dependencies"])
    assert ("ENTRYPOINT", '["undrift"]') in lines


DOCKERFILE = """\
# a comment
FROM scratch
ARG WHO=nobody
ENV GREETING="hello $WHO"
WORKDIR /app
COPY README.md LICENSE ./
RUN echo "$GREETING" > said && test -f README.md && \\
    test -z "${PYTHONPATH:-}"
RUN cd "$(dirname "$(which python)")"; \\
    printf '#!/bin/sh\\necho started "$@" in "$(cat said)"' > tool; chmod +x tool
ENTRYPOINT ["tool"]
CMD ["with", "words"]
"""


@pytest.mark.slow
def test_a_dockerfile_is_run_in_a_place_of_its_own(tmp_path, monkeypatch, capfd):
    run = script("run_dockerfile")
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILE)
    monkeypatch.setattr(run, "PLACE", tmp_path / "image")
    monkeypatch.setattr(sys, "argv", ["run", "--file", str(file), "--build-arg", "WHO=you"])
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    run.main()
    assert "started with words in hello you" in capfd.readouterr().out
    assert not (tmp_path / "image").exists()
    file.write_text(DOCKERFILE.replace("test -f README.md", "false"))
    with pytest.raises(subprocess.CalledProcessError):
        run.main()
    file.write_text("FROM scratch\nADD x y\n")
    with pytest.raises(SystemExit, match="ADD: this script knows"):
        run.main()


def test_a_wheel_says_its_extras(tmp_path):
    import zipfile

    told = (
        "Name: undrift\nProvides-Extra: live\nProvides-Extra: none\n"
        "Requires-Dist: torch<3\nRequires-Dist: tensorboard>=2; extra == 'live'\n"
        "Requires-Dist: trl[x]<2,>=1; (python_version > '3') and extra == 'live'\n"
    )
    with zipfile.ZipFile(tmp_path / "u.whl", "w") as wheel:
        wheel.writestr("u.dist-info/METADATA", told)
    found = script("check_distribution").extras(tmp_path / "u.whl")
    assert found == {"live": ["tensorboard", "trl"], "none": []}


def test_ci_builds_the_site_and_what_is_published():
    stages = re.search(r"for target in (.+); do", (ROOT / ".ci" / "run").read_text())[1].split()
    assert {"docs", "dist", "dockerfile"} <= {*stages}
