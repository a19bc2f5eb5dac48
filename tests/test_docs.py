"""What the docs point to is there, and what they print is in the committed results."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import fields
from itertools import takewhile
from pathlib import Path

import pytest

from undrift.registry import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
OPTIONS = re.findall(r"^\| `(\w+)` \| ((?:`\w+=\w+`(?:, )?)+) \|", TEXT, re.MULTILINE)


def test_every_method_has_a_line():
    table = TEXT[: TEXT.index("\n## ")]
    named = {name.split("-")[0] for name in re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)}
    assert named == set(METHODS.names()) - {"zeroshot"}


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_the_tests_it_names_exist(file, name):
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("method", "said"), OPTIONS)
def test_the_options_it_names_exist(method, said):
    kind = METHODS.load(method)
    for name, value in re.findall(r"`(\w+)=(\w+)`", said):
        assert name in {field.name for field in fields(kind.Config)}
        number = re.fullmatch(r"\d+", value)
        given = {"true": True, "false": False}.get(value, float(value) if number else value)
        assert getattr(kind(**{name: given}).config, name) == given


@pytest.mark.parametrize(
    ("page", "head"),
    [("serving", "| method | as a plain LoRA |"), ("processes", "| methods | |")],
)
def test_tables_of_methods_name_all_of_them(page, head):
    lines = (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines()
    rows = takewhile(bool, lines[lines.index(head) :])
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted({*METHODS.names()} - {"zeroshot"})


def test_it_names_tests_and_options():
    assert len(TESTS) > 10 and len(OPTIONS) > 3


def test_the_table_of_drift_is_the_committed_results():
    made = runpy.run_path(str(ROOT / "scripts" / "drift_results.py"))
    found = json.loads((DOCS / "results" / "pocket-drift.json").read_text(encoding="utf-8"))
    assert made["table"](found) in (DOCS / "drift.md").read_text(encoding="utf-8")
