"""A section of a comparison, and how it is written in Markdown, in LaTeX and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "[": "{[}",  # behind the end of a row, a bare one would be read as a length
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\to$",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$^\dagger$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "\n": " ",
}


@dataclass(frozen=True)
class Section:
    """A part of a comparison, as text.

    Args:
        title: What it shows.
        header: Names of the columns; none where there is no table.
        rows: The cells.
        notes: What a reader must know, a paragraph each; below the table.
        lead: What a reader must know first; above the table.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    lead: Sequence[str] = ()


def as_markdown(sections: Sequence[Section]) -> str:
    """Write sections as Markdown; the first has no heading, so that it can stand under one's own.

    Args:
        sections: The sections.

    Returns:
        Markdown, ending in a newline.
    """
    parts = []
    for place, section in enumerate(sections):
        if place:
            parts.append(f"### {section.title}")
        parts.append(_listed(section.lead))
        if section.header:
            rule = ["---", *["---:"] * (len(section.header) - 1)]
            lines = [section.header, rule, *section.rows]
            parts.append("\n".join(f"| {' | '.join(map(_piped, line))} |" for line in lines))
        parts.append(_listed(section.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def as_latex(sections: Sequence[Section]) -> str:
    r"""Write sections as LaTeX: a `table` each, with the rules of booktabs and the notes below it.

    Args:
        sections: The sections.

    Returns:
        LaTeX to be put into a document with `\usepackage{booktabs}`.
    """
    parts = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(section.title)}}}"]
        lines += map(_small, section.lead)
        if section.header:
            columns = "l" + "r" * (len(section.header) - 1)
            lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
            lines += [_row(section.header), r"\midrule"]
            lines += [*map(_row, section.rows), r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join([*lines, *map(_small, section.notes), r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def print_sections(console: Console, sections: Sequence[Section]) -> None:
    """Print sections on a terminal.

    Args:
        console: Where to.
        sections: The sections.
    """
    for section in sections:
        console.print(section.title, style="bold", markup=False, highlight=False)
        for note in section.lead:
            console.print(note, markup=False, highlight=False)
        if section.header:
            drawn = Table()
            for index, name in enumerate(section.header):
                drawn.add_column(escape(name), justify="right" if index else "left")
            for row in section.rows:
                drawn.add_row(*map(escape, row))
            console.print(drawn)
        for note in section.notes:
            console.print(note, style="dim", markup=False, highlight=False)
        console.print()


def latex(text: str) -> str:
    """Escape a text for LaTeX.

    Args:
        text: Any text.

    Returns:
        The text, as LaTeX shows it.
    """
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _small(note: str) -> str:
    return rf"{{\footnotesize {latex(note)}\par}}"


def _listed(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex, cells)) + r" \\"


def _piped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
