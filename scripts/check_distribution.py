"""Build what is published, check it, and install it with every extra in clean environments.

    python scripts/check_distribution.py           all extras
    python scripts/check_distribution.py trl live  these ones, and the bare wheel

A wheel and an sdist are built into dist/ and looked through by twine and check-wheel-contents. Then
the wheel is installed alone, and once with each extra, by uv, each time in an environment of its
own, build/clean, which is deleted: `undrift --version`, an import and the extra's packages must be
there. One extra after another, so that the disk holds one environment at a time. With the extra
`pocket` two tasks are learned.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from email import message_from_string
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DIST, CLEAN = ROOT / "dist", ROOT / "build" / "clean"
NEEDS_CUDA: frozenset[str] = frozenset()
"""Extras that cannot be installed without CUDA; they are left out by name."""
UNPINNED = {"chat"}  # gradio wants a pillow below that of constraints.txt
COMPILED = {"desk": "llama-cpp-python"}
"""What an extra brings along that is compiled for minutes and that undrift never calls."""
NOT_WHEELS = {"dev", "docs"}  # tools for a checkout, which `make dev` and `make docs` install
CHECK = """
import importlib.metadata as m, sys, undrift
from undrift import Same
Same().peft_config()
assert m.version("undrift") == undrift.__version__
assert "site-packages" in undrift.__file__, undrift.__file__
for name in sys.argv[1:]:
    m.version(name)
"""


def build() -> Path:
    """Build both, and check them.

    Returns:
        The wheel.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    python("-m", "build", "--outdir", str(DIST), str(ROOT))
    files = sorted(map(str, DIST.iterdir()))
    (wheel,) = DIST.glob("*.whl")
    python("-m", "twine", "check", "--strict", *files)
    python("-m", "check_wheel_contents", str(wheel))
    return wheel


def extras(wheel: Path) -> dict[str, list[str]]:
    """Read the extras of a wheel and the packages that each brings."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        told = message_from_string(opened.read(name).decode())
    found: dict[str, list[str]] = {name: [] for name in told.get_all("Provides-Extra", [])}
    for needed in told.get_all("Requires-Dist", []):
        if extra := re.search(r"extra == '([\w-]+)'", needed):
            found[extra[1]].append(re.split(r"[\s<>=!~\[;]", needed)[0])
    return found


def try_in_clean(wheel: Path, extra: str, packages: Sequence[str]) -> None:
    """Install the wheel with one extra in an environment of its own, and use it.

    Args:
        wheel: The wheel.
        extra: The extra's name; empty for none.
        packages: What the extra brings.
    """
    shutil.rmtree(CLEAN, ignore_errors=True)
    there = f"{wheel}[{extra}]" if extra else str(wheel)
    try:
        uv("venv", "--quiet", "--python", sys.executable, str(CLEAN))
        options = ["--quiet", "--index-strategy", "unsafe-best-match"]  # as pip looks
        if extra in UNPINNED:
            options.append(pinned_torch())
        else:
            options += ["--constraint", str(ROOT / "constraints.txt")]
        if extra in COMPILED:
            left_out = CLEAN / "left-out.txt"
            left_out.write_text(f"{COMPILED[extra]} ; python_version < '3'\n", encoding="utf-8")
            options += ["--override", str(left_out)]
        uv("pip", "install", *options, "--python", str(CLEAN / "bin" / "python"), *torch(), there)
        elsewhere = {"cwd": CLEAN, "check": True, "env": {**os.environ, "PYTHONPATH": ""}}
        subprocess.run([CLEAN / "bin" / "undrift", "--version"], **elsewhere)
        subprocess.run([CLEAN / "bin" / "python", "-c", CHECK, *packages], **elsewhere)
        if extra == "pocket":
            learn_two_tasks(elsewhere)
    finally:
        shutil.rmtree(CLEAN, ignore_errors=True)


def learn_two_tasks(elsewhere: dict[str, Any]) -> None:
    """Learn two small tasks with the installed wheel, away from the checkout."""
    (CLEAN / "order.txt").write_text("digits\nbiopsy\n")
    words = ["pocket", "--method", "same", "--profile", "demo", "--order", "order.txt"]
    undrift = [CLEAN / "bin" / "undrift", "run", *words, "--out", "smoke", "--quiet"]
    subprocess.run(undrift, **elsewhere)
    adapter = CLEAN / "smoke" / "tasks" / "02-biopsy" / "adapter" / "adapter_model.safetensors"
    if not adapter.is_file():
        sys.exit(f"{adapter} is not there")


def pinned_torch() -> str:
    """Return the line of constraints.txt that says which torch is taken."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def torch() -> list[str]:
    """Return what makes uv take the build of torch that TORCH_INDEX names, as `make` does."""
    index = os.environ.get("TORCH_INDEX", "")
    return ["--extra-index-url", index] if index else []


def python(*words: str) -> None:
    """Run this Python; the script ends where it fails."""
    subprocess.run([sys.executable, *words], check=True)


def uv(*words: str) -> None:
    """Run the uv of this environment, on the packages that pip is told to take."""
    mine = Path(sys.executable).parent / "uv"
    program = str(mine) if mine.is_file() else "uv"
    subprocess.run([program, *words], check=True, env=index_of_pip())


def index_of_pip() -> dict[str, str]:
    """Return the environment with pip's own indexes, which uv does not read from pip's files."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    told = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", said.stdout, re.MULTILINE))
    places = {
        "UV_DEFAULT_INDEX": told.get("index-url", ""),
        "UV_INDEX": told.get("extra-index-url", ""),
        "UV_FIND_LINKS": told.get("find-links", ""),
        "SSL_CERT_FILE": told.get("cert", ""),
    }
    return {**os.environ, **{name: value for name, value in places.items() if value}}


def main(asked: Sequence[str]) -> None:
    """Build, check and install.

    Args:
        asked: Extras; all that the wheel has where none is named.
    """
    wheel = build()
    known = extras(wheel)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if set(known) != set(project["optional-dependencies"]):
        sys.exit(f"the wheel has the extras {sorted(known)}, pyproject.toml others")
    if strange := set(asked) - set(known):
        sys.exit(f"no extra is called {', '.join(strange)}; there are: {', '.join(known)}")
    try_in_clean(wheel, "", [])
    print("undrift: installed and imported", flush=True)
    for extra in asked or sorted(set(known) - NOT_WHEELS):
        if extra in NEEDS_CUDA:
            print(f"undrift[{extra}]: left out, it needs CUDA", flush=True)
            continue
        try_in_clean(wheel, extra, known[extra])
        print(f"undrift[{extra}]: installed and imported, {', '.join(known[extra])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
