"""Run the RUN lines of the Dockerfile in a clean environment, without Docker.

    python scripts/run_dockerfile.py [--build-arg NAME=VALUE ...]

What stands for the image is a folder, build/docker, deleted at the end: a new virtual environment
is its Python, HOME and TMPDIR lie in it, WORKDIR and COPY act in it, and nothing of this
environment is on PATH or PYTHONPATH but the system's programs. Then the entry point is started with
the words of CMD. What is not tried: the base image, users, and everything of Docker itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "docker"
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with what follows them, continued lines joined.

    Args:
        text: The Dockerfile.

    Yields:
        Such as ("RUN", "python -m pip install .").
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if words := line.split(None, 1):
            name = words[0].upper()
            if name not in KNOWN:
                sys.exit(f"{name}: this script knows {', '.join(sorted(KNOWN))} only")
            yield name, words[1] if len(words) > 1 else ""


class Image:
    """What stands for an image.

    Args:
        place: Its folder.
        given: The build arguments.

    Attributes:
        folder: The working directory.
        env: The environment of its commands.
        entry: The words of ENTRYPOINT.
        command: The words of CMD.
    """

    def __init__(self, place: Path, given: Mapping[str, str]) -> None:
        self.place, self.given = place, given
        self.folder = self._made("root")
        subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
        kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_"))}
        programs = f"{place / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        own = {"PATH": programs, "HOME": self._made("home"), "TMPDIR": self._made("tmp")}
        self.env = kept | {name: str(value) for name, value in own.items()}
        self.entry: list[str] = []
        self.command: list[str] = []

    def do(self, name: str, rest: str) -> None:
        """Carry out one instruction.

        Args:
            name: Such as "RUN".
            rest: What follows it.
        """
        print(f"{name} {rest}", flush=True)
        match name:
            case "ARG":
                key, _, default = rest.partition("=")
                self.env[key] = self.given.get(key, default)
            case "ENV":
                pairs = (word.partition("=") for word in shlex.split(rest))
                self.env |= {
                    key: Template(value).safe_substitute(self.env) for key, _, value in pairs
                }
            case "WORKDIR":
                self.folder = self._made(f"root/{rest.lstrip('/')}")
            case "COPY":
                self._copy(shlex.split(rest))
            case "RUN":
                words = ["bash", "-euo", "pipefail", "-c", rest]
                subprocess.run(words, cwd=self.folder, env=self.env, check=True)
            case "ENTRYPOINT":
                self.entry = json.loads(rest)
            case "CMD":
                self.command = json.loads(rest)

    def start(self) -> None:
        """Start the entry point with the words of CMD, as `docker run` does."""
        words = [*self.entry, *self.command]
        program = shutil.which(words[0], path=self.env["PATH"])
        if program is None or self.place not in Path(program).parents:
            sys.exit(f"{words[0]}: the image has no such program")
        subprocess.run([program, *words[1:]], cwd=self.folder, env=self.env, check=True)

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        for source in sources:
            here, there = ROOT / source, self.folder / target
            if here.is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(here, there, dirs_exist_ok=True, ignore=skip)
            else:
                shutil.copy(here, there / here.name if there.is_dir() else there)

    def _made(self, name: str) -> Path:
        (self.place / name).mkdir(parents=True, exist_ok=True)
        return self.place / name


def main() -> None:
    """Run the Dockerfile of the repository."""
    parser = argparse.ArgumentParser(description="Run the RUN lines of the Dockerfile.")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--file", type=Path, default=ROOT / "Dockerfile")
    options = parser.parse_args()
    given = dict(word.split("=", 1) for word in options.build_arg)
    shutil.rmtree(PLACE, ignore_errors=True)
    try:
        image = Image(PLACE, given)
        for name, rest in instructions(options.file.read_text(encoding="utf-8")):
            image.do(name, rest)
        image.start()
    finally:
        shutil.rmtree(PLACE, ignore_errors=True)


if __name__ == "__main__":
    main()
