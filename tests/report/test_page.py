"""The page as a text: whole, closed, safe. How it works in a browser: tests/browser."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from undrift.errors import ConfigError
from undrift.report import check_related, load
from undrift.report.page import addresses, answers, page, pictures_of, sentence
from undrift.report.page_content import forward_transfer, page_content
from undrift.rundir import read_json, write_json

from .complete import HOSTILE, complete, line
from .conftest import FORGETS, HOLDS


class Outline(HTMLParser):
    """Collects what a page is made of, and whether its tags close."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.refers, self.words, self.headings, self.ids = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.refers += [v for k, v in attrs if k in {"src", "srcset", "data"}]
        self.refers += [v for k, v in attrs if k == "href" and not v.startswith("#")]
        self.ids += [given["id"]] if "id" in given else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [load(complete(root / "moelora")), load(complete(root / "same", "same", forgets=False))]


@pytest.fixture(scope="module")
def content(runs):
    return page_content(runs)


@pytest.fixture(scope="module")
def html(content):
    return page(content)


def test_the_page_needs_nothing_else(html):
    outline = Outline(html)
    assert outline.open == []
    assert outline.refers == []
    assert "url(http" not in html
    assert "@import" not in html
    assert "img-src data:;" in html
    assert len(set(outline.ids)) == len(outline.ids)


def test_headings_skip_no_level_and_every_entry_of_the_contents_is_there(html):
    outline = Outline(html)
    assert outline.headings[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(outline.headings))
    linked = re.findall(r'<li><a href="#([a-z]+)">', html)
    assert linked == "metrics matrix drift transfer cost answers run definitions".split()
    assert set(linked) <= set(outline.ids)


def test_the_page_says_what_happened(html):
    words = Outline(html).text
    for expected in (
        "moelora forgets",
        "Router drift",
        "Expert drift",
        "Format drift",
        "charts lost",
        "Show the 4 answers of charts that changed for the worse",
        "moelora same",
        "256",  # MiB of peak memory
        "2.0",  # experts at rest, the mean of 1 and 3
    ):
        assert expected in words
    assert "not diagnosed" not in words
    assert "Protocol" not in words  # nothing but the method differs


def test_forward_transfer_is_told_where_tasks_were_asked_before_they_were_learned(runs):
    assert not forward_transfer({"moelora": runs[0]})
    first = [runs[0].matrix[0][0], 35.0, None]
    asked = replace(runs[0], matrix=[first, *runs[0].matrix[1:]])
    (section,) = forward_transfer({"moelora": asked})
    assert section.rows == [[runs[0].tasks[1], "25.0"]]  # 35 where the untouched model has 10


def test_bars_of_nothing_are_not_drawn(tmp_path):
    for forgets in (True, False):
        folder = complete(tmp_path / str(forgets), forgets=forgets, diagnosed=False)
        (explained,) = page_content([load(folder)]).losses
        assert bool(explained.figures) is forgets and len(explained.loss.tasks) == 2


def test_what_a_model_said_is_data_and_never_markup(html):
    assert "</script><script>" not in html
    assert "<img" not in html
    block = html.partition('<script type="application/json" id="answers-data">')[2]
    data = json.loads(block.partition("</script>")[0])
    charts = data["tasks"][0]["examples"]
    assert charts[0]["said"] == [
        [["A", "right", None], [HOSTILE, "wrong", "sentence instead of letter"]],
        [["A", "right", None], ["A", "right", None]],
    ]
    assert charts[1]["said"][0][1] == ["b", "form", "case"]
    assert [task["boxes"] for task in data["tasks"]] == [False, False, True]


def test_names_are_escaped(tmp_path):
    name = "<script>alert(1)</script>"
    folder = complete(tmp_path / "x", name, tasks={"charts": "letter"}, diagnosed=False)
    html = page(page_content([load(folder)]))
    assert "<script>alert" not in html
    assert Outline(html).open == []


def test_what_does_not_apply_is_left_out_with_a_word(tmp_path, write_run):
    run = complete(tmp_path / "plain", "finetune", pictures=False, diagnosed=False)
    why = "finetune has no router"
    write_json(run / "diagnose" / "routes.json", {"applies": False, "why": why, "cells": []})
    words = Outline(page(page_content([load(run)]))).text
    assert why in words
    assert f"undrift diagnose {run}" in words
    assert "Where the inputs go" not in words
    joint = load(write_run("joint", "joint", [[95.0, 90.0, 99.0]]))
    html = page(page_content([joint]))
    assert "nothing could drift" in html
    assert 'id="transfer"' not in html
    assert 'id="cost"' not in html
    assert Outline(html).open == []


def test_seeds_share_a_column_and_show_the_answers_of_the_first(tmp_path):
    both = [load(complete(tmp_path / f"s{seed}", seed=seed, diagnosed=False)) for seed in range(2)]
    html = page(page_content(both))
    words = Outline(html).text
    assert "moelora (2 seeds)" in words
    assert "± 0.0" in words
    assert "in moelora (s0)" in words
    assert "#answers?task=charts&amp;run=moelora%20%28s0%29&amp;show=worse" in html


def test_figures_are_written_beside_the_page(write_run, tmp_path):
    content = page_content([load(write_run("joint", "joint", [[95.0, 90.0, 99.0]]))])
    assert content.write_figures(tmp_path / "figures") == 1
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert names == {"accuracy-1.svg", "accuracy-1.pdf"}


def test_many_methods_are_compared_without_figures_of_single_runs(runs, content, monkeypatch):
    def kinds(shown):
        return {figure.stem.rpartition("-")[0] for figure in shown.figures}

    assert {"accuracy", "causes", "expert-use", "transfer"} <= kinds(content)
    monkeypatch.setattr(sys.modules["undrift.report.page_content"], "FEW", 1)
    many = page_content(runs)
    assert "accuracy" in kinds(many) and not {"causes", "expert-use", "transfer"} & kinds(many)
    assert many.left_out in Outline(page(many)).text


def test_no_two_figures_share_a_file(content):
    stems = [figure.stem for figure in content.figures]
    assert len(set(stems)) == len(stems)
    assert {"curves", "causes", "causes-1", "router-drift", "transfer-1", "cost"} <= set(stems)


def test_what_cannot_stand_side_by_side(runs, write_run):
    with pytest.raises(ConfigError, match="at least one finished run"):
        check_related([])
    with pytest.raises(ConfigError, match="more than once"):
        check_related([runs[0], runs[0]])
    other = load(write_run("coin", "same", HOLDS, benchmark="coin"))
    with pytest.raises(ConfigError, match=r"moelora is a run on pocket, .*coin one on coin"):
        check_related([runs[0], other])
    apart = load(write_run("apart", "same", FORGETS, benchmark="pocket", tasks=["x", "y", "z"]))
    with pytest.raises(ConfigError, match=r"\(charts, words, boxes\).*share no task"):
        check_related([runs[0], apart])


def test_an_older_run_has_a_page_without_forms(tmp_path):
    folder = complete(tmp_path / "old", pictures=False, diagnosed=False)
    manifest = read_json(folder / "manifest.json")
    del manifest["protocol"]["tasks"], manifest["budget"]
    write_json(folder / "manifest.json", manifest)
    words = Outline(page(page_content([load(folder)]))).text
    assert "does not name the tasks' kinds of answers" in words
    assert "What it cost" not in words


def test_code_and_percents_in_sentences():
    assert sentence("<b> `undrift diagnose a<b` 9 %") == (
        "&lt;b&gt; <code>undrift diagnose a&lt;b</code> 9\N{NO-BREAK SPACE}%"
    )


# ------------------------------------------------------------ the answer browser


@pytest.fixture
def short(tmp_path):
    return load(complete(tmp_path / "runs" / "moelora", examples=3, diagnosed=False))


def test_every_example_once_with_all_that_was_said(short, tmp_path):
    same = load(complete(tmp_path / "same", "same", examples=2, forgets=False, pictures=False))
    found = answers([short, same])
    assert found["runs"] == ["moelora", "same"]
    assert found["errors"] == ["sentence instead of letter", "case", "extra words"]
    charts = found["tasks"][0]["examples"]
    assert [example["id"] for example in charts] == ["charts-000", "charts-001", "charts-002"]
    assert charts[2]["said"] == [(("C", "right", None), ("C", "right", None)), None]
    assert all(len(example["pictures"]) == 1 for example in charts)
    assert found["tasks"][2]["boxes"]


def test_a_run_trained_once_was_never_just_learned(write_run):
    tasks = ["words", "more"]
    rows = [[line(task, "exact", 0, later=False)] for task in tasks]
    joint = load(write_run("joint", "joint", [[95.0] * 2], tasks=tasks, zero_shot=[], lines=rows))
    (example,) = answers([joint])["tasks"][0]["examples"]
    assert example["said"] == [(None, ("sandal", "right", None))]
    assert example["pictures"] == []


def test_boxes_in_pixels_are_not_drawn(write_run):
    row = line("boxes", "box", 0, later=False)
    rows = [[{**row, "answers": ["[10,20,300,400]"]}]]
    run = load(write_run("px", "joint", [[95.0]], tasks=["boxes"], zero_shot=[1], lines=rows))
    assert answers([run])["tasks"][0]["boxes"] is False


def test_early_lines_find_room_and_the_rest_is_referred_to(short, tmp_path):
    file = short.folder / "pictures" / "01-charts" / "0001.webp"
    url = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
    for place, later in (
        (tmp_path / "report.html", "runs/moelora/pictures/01-charts/0002.webp"),
        (tmp_path / "pages" / "report.html", None),
        (None, None),
    ):
        pictures = {
            (name, str(number)): (number, pictures_of(short, task, number))
            for number in (2, 1)
            for task, name in enumerate(("charts", "words"), 1)
        }
        found = addresses(pictures, place, room=2 * len(url))
        assert found["charts", "1"] == [url]
        assert found["words", "1"][0].startswith("data:image/webp;base64,")
        assert found["charts", "2"] == [later]


def test_a_second_picture_stands_behind_the_first(short):
    folder = short.folder / "pictures" / "01-charts"
    (folder / "0001-2.webp").write_bytes(b"second")
    found = answers([short])["tasks"][0]["examples"][0]["pictures"]
    assert len(found) == 2
    assert base64.b64decode(found[1].partition(",")[2]) == b"second"
