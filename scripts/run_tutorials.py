"""Run the notebooks of docs/tutorials and write each as a page, with all that its cells print.

    python scripts/run_tutorials.py

Pages and pictures go to build/tutorials, from where scripts/docs_pages.py takes them. A cell
that fails ends it. A page is not made again while its notebook and the source are as they were.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "tutorials"
SECONDS = 600  # for one cell


def ran(file: Path) -> Any:
    """Run a notebook in a kernel of its own, in a folder that its first cell makes."""
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
    return notebook


def page(notebook: Any, pictures: Path) -> str:
    """Write a notebook as Markdown.

    Args:
        notebook: The notebook, run.
        pictures: The folder of its pictures, beside the page.

    Returns:
        The page.
    """
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        shell = cell.source.startswith("%%sh\n")
        language, source = ("sh", cell.source[5:]) if shell else ("python", cell.source)
        parts += [fenced(source, language), *outputs(cell, pictures)]
    return "\n\n".join(parts) + "\n"


def outputs(cell: Any, pictures: Path) -> Iterator[str]:
    """Write what a cell has printed, and the pictures that it has shown."""
    printed = "".join(each.text for each in cell.outputs if each.output_type == "stream")
    if printed.strip():
        yield fenced(printed.rstrip(), "text")
    for each in cell.outputs:
        if "image/png" in each.get("data", {}):
            content = base64.b64decode(each.data["image/png"])
            pictures.mkdir(parents=True, exist_ok=True)
            file = pictures / f"{hashlib.sha256(content).hexdigest()[:8]}.png"
            file.write_bytes(content)
            yield f"![what the cell shows]({pictures.name}/{file.name})"


def fenced(text: str, language: str) -> str:
    """Put a fence around a text."""
    return f"```{language}\n{text}\n```"


def stamp(file: Path) -> str:
    """Digest a notebook and the source that it runs on."""
    digest = hashlib.sha256(file.read_bytes())
    for source in sorted((ROOT / "src").rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Run all notebooks that have changed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    OUT.mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        target, mark = OUT / f"{file.stem}.md", OUT / f"{file.stem}.digest"
        now = stamp(file)
        if target.is_file() and mark.is_file() and mark.read_text() == now:
            print(f"{file.name} is as it was", flush=True)
            continue
        print(f"running {file.name}", flush=True)
        target.write_text(page(ran(file), OUT / f"{file.stem}_files"), encoding="utf-8")
        mark.write_text(now)


if __name__ == "__main__":
    main()
