"""Run the commands of a page in a new folder, and write what they say into it.

    python scripts/play_page.py docs/tutorials/circle.md

A command stands behind `$ ` in a block of the language `console`, what it says below it. All
commands of a page are run in one folder, in their order; one that fails ends it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(^```console\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ (?:.*\\\n)*.*\n", re.MULTILINE)


def played(page: str, folder: Path) -> str:
    """Run the commands of a page.

    Args:
        page: Its text.
        folder: An empty folder.

    Returns:
        The page with what the commands say now; of the folder's place `.` is left.
    """
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "UNDRIFT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }

    def block(found: re.Match[str]) -> str:
        said = "".join(run(command) for command in _COMMAND.findall(found[2]))
        return found[1] + said + found[3]

    def run(command: str) -> str:
        line = command.removeprefix("$ ")
        done = subprocess.run(
            ["sh", "-c", line], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{line}ended with {done.returncode}:\n{done.stdout}")
        lines = (line.rstrip() for line in done.stdout.replace(f"{folder}/", "").splitlines())
        return command + "".join(f"{line}\n" for line in lines)

    return _BLOCK.sub(block, page)


def main() -> None:
    """Write the pages that are named."""
    for name in sys.argv[1:]:
        page = Path(name)
        with tempfile.TemporaryDirectory() as folder:
            text = played(page.read_text(encoding="utf-8"), Path(folder).resolve())
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
