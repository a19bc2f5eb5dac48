"""Print the README's tree: every module of the package with the first sentence of its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "undrift"


def main() -> None:
    """Print it."""
    for path in sorted(ROOT.rglob("*.py"), key=lambda p: (p.parent.parts, p.name)):
        if path.name != "__init__.py":
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            first = " ".join(said.split("\n\n")[0].split()).rstrip(".")
            print(f"{path.relative_to(ROOT).as_posix():34} # {first}")


if __name__ == "__main__":
    main()
