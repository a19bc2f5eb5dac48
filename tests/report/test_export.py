"""All that a comparison says, and the formats that it is written in."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from undrift.report import (
    as_csv,
    as_latex,
    as_markdown,
    difference_section,
    grouped,
    load,
    margin_section,
    print_sections,
    published,
    published_sections,
    sections,
    summary,
)
from undrift.report.comparison import Section, short_number
from undrift.report.export import latex
from undrift.scoring import FORMULAS, stage_averages

from .conftest import HOLDS

LINES = [
    [{"prediction": "A", "answers": ["A"]}, {"prediction": "b", "answers": ["B"]}],
    [
        {"prediction": "tench", "answers": ["tench"]},
        {"prediction": "a fat red fish", "answers": ["fish"]},
    ],
    [{"prediction": "[0.1]", "answers": ["[0.1,0.2,0.3,0.4]"]}],
]
SCORES = [[(1, 1, 1, 1), (0, 1, 1, 0)], [(1, 1, 1, 1), (0, 0, 0, 0)], [(0, 0, 0, 0)]]
SCORERS = ["coin/ScienceQA", "coin/ImageNet", "coin/Grounding"]


def lines():
    names = ("strict", "caseless", "lenient", "form")
    return [
        [
            {"id": str(i), **row, **dict(zip(names, map(float, scores), strict=True))}
            for i, (row, scores) in enumerate(zip(rows, each, strict=True))
        ]
        for rows, each in zip(LINES, SCORES, strict=True)
    ]


@pytest.fixture
def kept(write_run):
    """A run whose lines keep the scores by every rule."""
    tasks = [
        {"name": name, "scorer": scorer}
        for name, scorer in zip(("digits", "icons", "words"), SCORERS, strict=True)
    ]
    protocol = {"tasks": tasks, "training": {"global_batch": 48}}
    return load(write_run("kept", "same", HOLDS, lines=lines(), protocol=protocol))


@pytest.fixture
def seeds(write_run, kept):
    more = [[*HOLDS[:2], [80.0 + s, 76.0, 94.0]] for s in range(2)]
    return [
        kept,
        *(load(write_run(f"moelora-s{s}", "moelora", m, seed=s)) for s, m in enumerate(more)),
    ]


def named(found, title):
    return next(section for section in found if section.title.startswith(title))


def test_other_rules_at_the_end_are_read_from_the_lines(kept):
    assert kept.ends["lenient"] == [100.0, 50.0, 0.0]
    assert kept.ends["form"] == [50.0, 50.0, 0.0]
    assert kept.ends["mif"] == [100.0, 50.0, None]  # blind to case, and there is none of boxes
    assert kept.ends["official"] == [None, None, None]
    assert kept.end("mif") == (75.0, 2) and kept.end("official") == (None, 0)


def test_every_metric_stands_with_its_name_and_formula(kept):
    section = named(sections([kept]), "All metrics")
    values = {row[0]: row[1] for row in section.rows}
    for name, words in {"last": "Last (MFN, AP, ACC)", "maa": "MAA", "fwt": "FWT"}.items():
        assert values[words] == f"{kept.metrics[name]:.1f}"
    assert values["lenient at the end"] == "50.0"
    assert values["MIF"] == "75.0 (2 of 3 tasks)"
    notes = " ".join(section.notes)
    assert all(formula in notes for formula in FORMULAS.values())
    assert "official" not in notes  # nothing was kept of it


def test_stages_and_rules(kept, seeds):
    stages = named(sections(seeds), "Average of the tasks seen")
    assert [row[1] for row in stages.rows] == [f"{a:.1f}" for a in stage_averages(HOLDS)]
    rules = named(sections(seeds), "At the end, by rule")
    assert ["digits", "lenient", "100.0", ""] in [list(row) for row in rules.rows]


def test_margins_say_what_the_seeds_allow(seeds, write_run):
    section = margin_section(grouped(seeds), ["last", "bwt"])
    assert section.rows[0] == [
        "Last (MFN, AP, ACC)",
        "moelora − same",
        "-1.7",
        "1",
        "not measurable: one seed",
    ]
    same = [
        load(write_run(f"same-s{s}", "same", [*HOLDS[:2], [82.0 + s, 76.0, 94.0]], seed=s))
        for s in range(2)
    ]
    section = margin_section(grouped([*seeds[1:], *same]), ["last"])
    assert section.rows[0][2:] == ["+0.7 ± 0.0", "2 shared", "above the noise"]
    assert "Student" in section.notes[0]
    assert margin_section(grouped(same), ["last"]).rows == []


def test_differences_one_a_row(seeds):
    rows = {row[0]: row[1:] for row in difference_section(grouped(seeds), everything=True).rows}
    assert rows["seed"] == ["0", "0, 1"]
    assert rows["training.global_batch"] == ["48", "not recorded"]
    assert not difference_section(grouped(seeds)).rows  # not what one side has not recorded


def test_the_table_has_means_over_seeds(seeds):
    text = as_markdown(sections(seeds)[:1])
    assert text.startswith("| task | zero-shot | same | moelora (2 seeds) |\n")
    assert "| digits | 10.0 | 88.0 → 85.5 | 88.0 → 80.5 |" in text
    assert "| average at the end |  | 85.2 | 83.5 ± 2.1 |" in text


def test_markdown_has_all_sections_and_whole_tables(seeds):
    text = as_markdown([*sections(seeds), *published_sections(grouped(seeds), published("coin"))])
    for title in ("All metrics", "Margins", "Protocol differences", "Published: CoIN, accuracy"):
        assert f"\n### {title}" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1


def test_latex_is_escaped_and_whole(seeds):
    text = as_latex([*sections(seeds), *published_sections(grouped(seeds), published("coin"))])
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 8
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule")
    assert r"digits & 10.0 & 88.0 $\to$ 85.5 & 88.0 $\to$ 80.5 \\" in text
    assert text.isascii()
    depth = 0
    for before, sign in zip(" " + text, text, strict=False):
        depth += {"{": 1, "}": -1}.get(sign, 0) if before != "\\" else 0
        assert depth >= 0
    assert depth == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % of a_b & c#1", r"50 \% of a\_b \& c\#1"),
        ("a\\b {x} ~^", r"a\textbackslash{}b \{x\} \textasciitilde{}\textasciicircum{}"),
        ("1.0 ± 0.2 → †", r"1.0 $\pm$ 0.2 $\to$ $^\dagger$"),
        ("[3] <", r"{[}3] \textless{}"),
    ],
)
def test_latex_escapes(text, expected):
    assert latex(text) == expected


def test_csv_has_a_row_for_every_number(seeds):
    rows = list(csv.DictReader(io.StringIO(as_csv(seeds, published("ucit")))))

    def value(**wanted):
        (row,) = [r for r in rows if all(r[key] == text for key, text in wanted.items())]
        return float(row["value"])

    assert value(label="same", task="digits", metric="last") == 85.5
    assert value(label="same", task="digits", metric="learned") == 88.0
    assert value(label="same", task="", metric="bwt") == seeds[0].metrics["bwt"]
    assert value(label="same", task="", metric="mif") == 75.0
    assert value(label="moelora (moelora-s1)", seed="1", task="digits", metric="last") == 81.0
    assert value(method="DISCO", task="ArxivQA") == 93.07
    assert value(method="DISCO", metric="bwt") == -7.45
    assert {row["note"] for row in rows if row["method"] == "Octopus"} == {"second-hand"}


def test_summary_holds_margins_differences_and_published_rows(seeds):
    found = json.loads(json.dumps(summary(seeds, published("coin"))))
    assert found["methods"]["same"]["maa"] == seeds[0].metrics["maa"]
    assert found["methods"]["same"]["protocol"]["training.global_batch"] == "48"
    assert found["margins"][0]["last"]["verdict"] == "not measurable: one seed"
    assert found["differences"]["seed"] == ["0", "0, 1"]
    assert found["published"]["tables"][0]["rows"][0]["method"] == "MoELoRA"
    assert "published" not in summary(seeds)


def test_sections_on_a_terminal_show_brackets_as_they_are():
    console = Console(width=80, record=True, file=io.StringIO())
    print_sections(console, [Section("A[t]", ["a"], [["[red]x"]], ["A[i]"], ["first"])])
    text = console.export_text()
    assert "A[t]" in text and "[red]x" in text and "A[i]" in text
    assert text.index("first") < text.index("[red]x")


def test_a_number_has_three_digits_and_its_unit():
    numbers = (0, 0.25, 412, 999.7, 2500, 92_160, 999_999, 159_908_000, 4.2e9)
    expected = ["0", "0.25", "412", "1 k", "2.5 k", "92.2 k", "1 M", "160 M", "4.2 G"]
    assert [short_number(value) for value in numbers] == expected
