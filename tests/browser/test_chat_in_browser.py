"""`undrift chat` as people meet it: a picture, a question, the answers side by side."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser.chromium import FLAGS, found_chromium
from tests.needed import needed
from tests.run.tiny import save_tiny, tiny_benchmark
from undrift.run.evaluate import ask
from undrift.run.predict import open_model

sync_api = needed("playwright.sync_api")
needed("gradio")
pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PHONE, DESK = 400, 1400
QUESTION = "which <b>colour</b> is it?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    save_tiny(root / "one")
    save_tiny(root / "other", seed=1)
    tiny_benchmark(root / "data", 1, 4, tasks=1)
    return root


@pytest.fixture(scope="module")
def address(place):
    """The command, until Ctrl-C ends it; its temporary files are gone then."""
    (place / "tmp").mkdir()
    env = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TMPDIR": str(place / "tmp")}
    words = ("chat", "one", "--beside", "other", "--beside", "base", "--max-new-tokens", "6")
    with subprocess.Popen(
        [sys.executable, "-m", "undrift", *words],
        cwd=place, env={**os.environ, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as started:  # fmt: skip
        line = started.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found is None:
            started.kill()
            pytest.fail(line + started.stderr.read())
        yield found[0]
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=30)
    assert started.returncode == 130 and said.strip().endswith("stopped")
    assert not [path for path in (place / "tmp").rglob("*") if path.suffix == ".png"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found_chromium(), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Open the page; what it complains of, or asks any other machine for, fails the test."""
    complaints, tabs = [], []

    def go(width=DESK, scheme="light"):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tabs.append(tab)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        tab.on(
            "request",
            lambda asked: (
                asked.url.startswith((address, "data:", "blob:")) or complaints.append(asked.url)
            ),
        )
        tab.goto(address)
        tab.wait_for_selector("#ask")
        return tab

    yield go
    for tab in tabs:
        tab.close()
    assert complaints == []


def put(tab, question, picture=None):
    if picture is not None:
        tab.locator("input[type=file]").set_input_files(picture)
        tab.wait_for_selector("[data-testid=image] img")
    tab.locator("#question textarea").fill(question)
    rows = tab.locator("#history tr").count()
    tab.locator("#ask").click()
    tab.wait_for_function("n => document.querySelectorAll('#history tr').length > n", arg=rows)


def said(tab):
    return [box.input_value() for box in tab.locator("#answers textarea").all()]


def test_answers_stand_side_by_side_and_are_those_of_predict(visit, place):
    tab, expected = visit(), []
    pictures = sorted((place / "data/lower").glob("*.png"))[:3]
    models = [open_model(str(place / name)) for name in ("one", "other", "one")]
    for picture in pictures:
        put(tab, QUESTION, picture)
        expected.insert(0, [ask(model, QUESTION, (picture,), 6) for model in models])
        assert said(tab) == expected[0]
        tab.get_by_label("Remove Image").click()
    put(tab, "hello?")
    expected.insert(0, [ask(model, "hello?", (), 6) for model in models])
    assert said(tab) == expected[0]
    labels = [label.inner_text() for label in tab.locator("#answers label").all()]
    assert [label.strip() for label in labels] == ["one", "other", "one (base)"]
    rows = [
        [cell.inner_text() for cell in row.locator("td").all()]
        for row in tab.locator("#history tr").all()[1:]
    ]
    shown = [[" ".join(text.split()) for text in row] for row in expected]
    assert [[" ".join(text.split()) for text in row[2:]] for row in rows] == shown
    assert [row[0] for row in rows] == ["hello?", *[QUESTION] * 3]  # no markup of a question's runs
    assert [row[1] for row in rows] == ["", *(path.name for path in reversed(pictures))]
    assert any(one != other for one, other, _ in expected)


def test_a_mistake_is_told_on_the_page(visit, tmp_path):
    tab = visit()
    tab.locator("#ask").click()
    tab.get_by_text("write a question first").wait_for()
    tab.locator("#question textarea").fill("take <image> out")
    tab.locator("#ask").click()
    tab.get_by_text("stands for a picture", exact=False).wait_for()


def test_the_answers_length_can_be_changed(visit, place):
    tab = visit()
    tab.locator("#longest input").fill("1")
    tab.locator("#longest input").blur()
    put(tab, "hello?")
    assert said(tab)[0] == ask(open_model(str(place / "one")), "hello?", (), 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_and_follows_the_readers_theme(visit, place, width, scheme):
    tab = visit(width, scheme)
    put(tab, QUESTION, place / "data/lower/1.png")
    wide, there = tab.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= there
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    first = int(re.findall(r"\d+", ground)[0])
    assert first > 200 if scheme == "light" else first < 60
    boxes = [box.bounding_box() for box in tab.locator("#answers textarea").all()]
    side = [one["y"] == other["y"] for one, other in pairwise(boxes)]
    assert all(side) if width == DESK else not any(side)


def test_it_listens_on_this_machine_alone(address):
    import psutil

    port = int(address.rpartition(":")[2])
    there = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {place.ip for place in there if place.port == port} == {"127.0.0.1"}


def test_a_port_that_is_taken_is_told_in_one_line(address, place):
    words = ("chat", "one", "--port", address.rpartition(":")[2])
    done = subprocess.run(
        [sys.executable, "-m", "undrift", *words],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "choose another --port" in done.stderr
