"""The report as people meet it: opened from a file, with mouse and keyboard, on a phone."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser.chromium import FLAGS, found_chromium
from tests.report.complete import HOSTILE, complete
from tests.report.lessons import write_chain
from undrift.report import load
from undrift.report.page import page
from undrift.report.page_content import page_content

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.browser

PHONE, DESK = 400, 1400
MAIN_TEXTS = {
    "text": "main p:not(.soft)",
    "soft text": "p.soft",
    "heading": "h2",
    "table head": "#metrics thead th",
    "table cell": "#metrics td",
    "link": "main a.to-answers",
    "button": "#theme",
    "card": ".card > p",
    "right": ".mark.right",
    "but for form": ".mark.form",
    "wrong": ".mark.wrong",
}
CONTRAST = """selector => {
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const rgba = text => text.match(/[\\d.]+/g).map(Number);
  const element = document.querySelector(selector);
  let behind = element, ground = [0, 0, 0, 0];
  while (behind && (ground[3] ?? 1) === 0) {
    ground = rgba(getComputedStyle(behind).backgroundColor);
    behind = behind.parentElement;
  }
  const two = [luminance(rgba(getComputedStyle(element).color)), luminance(ground)].sort();
  return (two[1] + 0.05) / (two[0] + 0.05);
}"""


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = [
        load(complete(root / "moelora", examples=24)),
        load(complete(root / "same", "same", examples=24, forgets=False)),
    ]
    file = root / "report.html"
    file.write_text(page(page_content(runs), file), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The page of three adapters that were learned one after another."""
    root = tmp_path_factory.mktemp("adapters")
    file = root / "report.html"
    file.write_text(page(page_content([load(write_chain(root / "adapters"))]), file), "utf-8")
    return file


@pytest.fixture
def visit(chromium, report):
    """Open the report; what it logs or asks the network for fails the test at its end."""
    complaints, open_pages = [], []

    def go(width=DESK, scheme="light", hash="", file=report):  # noqa: A002
        tab = chromium.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        open_pages.append(tab)
        tab.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda asked: (
                complaints.append(asked.url)
                if not asked.url.startswith((file.as_uri(), "data:"))
                else None
            ),
        )
        tab.goto(file.as_uri() + hash)
        return tab

    yield go
    for tab in open_pages:
        tab.close()
    assert complaints == []


def count(tab):
    return tab.locator("#count").inner_text()


def test_it_opens_quietly_and_says_what_happened(visit):
    tab = visit()
    assert "moelora forgets" in tab.locator(".verdict").inner_text()
    assert tab.title() == "undrift: moelora and same on pocket"  # HOSTILE has not run
    assert count(tab) == "72 of 72 examples"
    assert tab.locator("#found > li").count() == 20


def test_the_listeners_would_hear_of_a_request(chromium, report, tmp_path):
    broken = tmp_path / "broken.html"
    loud = report.read_text(encoding="utf-8").replace(
        '<main id="main"', '<img src="http://127.0.0.1:9/x.png" alt=""><main id="main"', 1
    )
    broken.write_text(loud, encoding="utf-8")
    tab, said = chromium.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(broken.as_uri())
    tab.close()
    assert any("Content Security Policy" in text for text in said)


def test_filters_and_search_change_what_is_shown(visit):
    tab = visit()
    for field, value, expected in (
        ("task", "charts", "24 of 72 examples"),
        ("show", "worse", "16 of 72 examples"),
        ("error", "case", "8 of 72 examples"),
        ("run", "same", "0 of 72 examples"),
        ("run", "moelora", "8 of 72 examples"),
    ):
        tab.locator(f"[name={field}]").select_option(value)
        assert count(tab) == expected, field
    tab.locator("[name=find]").fill("NUMBER 4?")
    assert count(tab) == "1 of 72 examples"
    item = tab.locator("#found > li")
    assert item.locator("tbody tr").count() == 1
    assert "a right but for form: case" in " ".join(item.inner_text().split())
    tab.get_by_role("button", name="Clear").click()
    tab.wait_for_function("document.getElementById('count').textContent.startsWith('72 ')")
    tab.locator("[name=show]").select_option("disagree")
    assert count(tab) == "32 of 72 examples"  # two thirds of the two tasks learned before
    tab.locator("[name=show]").select_option("better")
    assert count(tab) == "0 of 72 examples"


def test_what_a_model_said_is_shown_as_it_said_it(visit):
    tab = visit(hash="#answers?task=charts&show=wrong")
    assert count(tab) == "8 of 72 examples"
    assert HOSTILE in tab.locator("#found > li").first.inner_text()
    assert "Which <b>one</b>" in tab.locator("#found h3").first.inner_text()


def test_a_sentence_leads_to_its_answers_and_a_view_can_be_kept(visit):
    tab = visit()
    tab.get_by_role("link", name="Show the 16 answers of words").click()
    tab.wait_for_function("document.getElementById('count').textContent.startsWith('16 ')")
    chosen = {name: tab.locator(f"[name={name}]").input_value() for name in ("task", "run", "show")}
    assert chosen == {"task": "words", "run": "moelora", "show": "worse"}
    assert tab.locator("#answers").bounding_box()["y"] < 900
    tab.locator("[name=find]").fill("number 1")
    kept = tab.evaluate("location.hash")
    again = visit(hash=kept)
    assert again.locator("[name=find]").input_value() == "number 1"
    assert count(again) == count(tab)


def test_pages_are_turned_and_remembered(visit):
    tab = visit()
    assert tab.get_by_role("button", name="Previous").is_disabled()
    tab.get_by_role("button", name="Next").click()
    assert tab.locator("#page-number").inner_text() == "page 2 of 4"
    assert visit(hash=tab.evaluate("location.hash")).locator("#page-number").inner_text() == (
        "page 2 of 4"
    )


def test_boxes_are_drawn_over_the_picture_where_they_are(visit):
    tab = visit(hash="#answers?task=boxes")
    item = tab.locator("#found > li").first
    item.scroll_into_view_if_needed()
    picture, box = item.locator("img").bounding_box(), item.locator(".box.truth").bounding_box()
    assert picture["width"] > 80
    for side, share in (("x", 0.1), ("y", 0.2)):
        length = picture["width" if side == "x" else "height"]
        assert (box[side] - picture[side]) / length == pytest.approx(share, abs=0.02)
    assert box["width"] / picture["width"] == pytest.approx(0.4, abs=0.02)
    assert visit(hash="#answers?task=words").locator(".box").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_and_is_readable(visit, width, scheme):
    tab = visit(width, scheme)
    for opened in (False, True):
        tab.evaluate("o => document.querySelectorAll('details').forEach(d => d.open = o)", opened)
        wide, there = tab.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= there
    low = {name: tab.evaluate(CONTRAST, chosen) for name, chosen in MAIN_TEXTS.items()}
    assert {name: round(value, 2) for name, value in low.items() if value < 4.5} == {}


def test_the_theme_follows_the_reader_and_the_button(visit):
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(scheme="light"), visit(scheme="dark")
    white, black = light.evaluate(paper), dark.evaluate(paper)
    assert white != black
    light.locator("#theme").click()
    light.locator("#theme").click()
    assert light.locator("#theme").inner_text() == "theme: dark"
    assert light.evaluate("document.documentElement.dataset.theme") == "dark"
    assert light.evaluate(paper) == black


def test_the_keyboard_reaches_every_control(visit):
    tab = visit(PHONE)
    reached, names = set(), "[...document.querySelectorAll('select, input, button:enabled')]"
    wanted = set(tab.evaluate(f"{names}.map(e => e.name || e.id || e.textContent)"))
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    for _ in range(80):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("(e => e.name || e.id || e.textContent)(document.activeElement)"))
    assert wanted <= reached


def test_pictures_have_texts_controls_have_labels_and_headings_skip_no_level(visit):
    tab = visit()
    assert tab.evaluate("[...document.images].filter(i => !i.alt).length") == 0
    assert tab.evaluate("document.images.length") == 20
    fields = "[...document.querySelectorAll('select, input')]"
    assert tab.evaluate(f"{fields}.filter(f => !f.labels.length).length") == 0
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    drawings = "[...document.querySelectorAll('svg')]"
    assert tab.evaluate(f"{drawings}.filter(s => !s.getAttribute('aria-label')).length") == 0
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)


def test_in_print_the_answers_are_a_note(visit):
    tab = visit()
    tab.emulate_media(media="print")
    assert not tab.locator("#filters").is_visible()
    assert not tab.locator("#found").is_visible()
    assert tab.locator("#answers .on-paper").is_visible()


def test_ten_runs_of_ten_tasks(visit, tmp_path, capsys):
    kinds = ("letter", "exact", "box")
    tasks = {f"task-{number}": kinds[number % 3] for number in range(1, 11)}
    runs = [
        load(complete(tmp_path / f"m{n}", f"method-{n}", tasks=tasks, examples=150,
                      forgets=n % 2 == 0, pictures=n == 0))
        for n in range(10)
    ]  # fmt: skip
    start, file = time.perf_counter(), tmp_path / "report.html"
    file.write_text(page(page_content(runs), file), encoding="utf-8")
    written = time.perf_counter() - start
    assert file.stat().st_size < 20_000_000
    tab = visit(file=Path(file))
    assert count(tab) == "1500 of 1500 examples"
    start = time.perf_counter()
    tab.locator("[name=show]").select_option("worse")
    filtered = time.perf_counter() - start
    assert count(tab) == "750 of 1500 examples"  # no case to turn in the three tasks of boxes
    with capsys.disabled():
        size = file.stat().st_size / 1e6
        print(f"\nten runs: {size:.1f} MB in {written:.1f} s, a filter in {1000 * filtered:.0f} ms")


# ------------------------------------------------------------ results first, nothing hidden

HIDDEN = """() => [...document.querySelectorAll('.scroll')]
  .filter(box => box.clientWidth && box.scrollWidth > box.clientWidth + 1)
  .filter(box => !getComputedStyle(box, '::before').content.includes('more to the right'))
  .map(box => box.getAttribute('aria-label'))"""
SIGNS = """() => [...document.querySelectorAll('.scroll.more')]
  .filter(box => box.scrollWidth <= box.clientWidth + 1).length"""
UNUSED = """() => [...document.querySelectorAll('main > section')].map(section => {
  const whole = section.getBoundingClientRect();
  const ends = [...section.querySelectorAll('td, th, svg, p, li, dd, summary, input')]
    .map(each => each.getBoundingClientRect()).filter(box => box.width)
    .map(box => box.right);
  return [section.id, (whole.right - Math.max(...ends)) / whole.width];
}).filter(([id, share]) => share > 1 / 3 && id !== 'run')"""


@pytest.mark.parametrize("which", ["report", "learned"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_what_goes_on_to_the_right_says_so_and_nothing_else_does(visit, request, which, width):
    tab = visit(width, file=request.getfixturevalue(which))
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
    assert tab.evaluate(HIDDEN) == []
    assert tab.evaluate(SIGNS) == 0
    if width == PHONE:
        assert tab.locator(".scroll.more").count() > 0  # or the test has seen nothing
        blind = "document.querySelectorAll('.more').forEach(b => b.classList.remove('more'))"
        assert tab.evaluate(f"() => {{ {blind}; return ({HIDDEN})(); }}") != []


@pytest.mark.parametrize("which", ["report", "learned"])
def test_results_come_first_and_what_was_run_is_folded(visit, request, which):
    tab = visit(file=request.getfixturevalue(which))
    order = tab.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert order[0] == "metrics" and order[-2:] == ["run", "definitions"]
    assert not tab.locator("#run dl").is_visible()
    tops = tab.evaluate(
        "[...document.querySelectorAll('main table')].map(t => t.caption?.innerText)"
    )
    assert tops[0].startswith("accuracy" if which == "report" else "before and after")
    terms = tab.locator("#definitions dt").all_inner_texts()
    assert len(set(terms)) == len(terms)
    whole = tab.locator("main").inner_text()
    assert all(whole.count(text) == 1 for text in tab.locator("#definitions dd").all_inner_texts())


@pytest.mark.parametrize("which", ["report", "learned"])
def test_no_section_leaves_a_third_of_the_page_unused_and_cards_end_level(visit, request, which):
    tab = visit(file=request.getfixturevalue(which))
    assert tab.evaluate(UNUSED) == []
    columns = tab.evaluate(
        "[...document.querySelectorAll('.cards > *')].map(c => c.getBoundingClientRect().bottom)"
    )
    assert len(columns) > 1 and max(columns) - min(columns) < 1


def test_a_lesson_is_told_before_and_after_and_the_worse_answers_first(visit, learned):
    tab = visit(file=learned)
    said = tab.locator(".verdict").inner_text()
    assert said.startswith("v3 has learned boxes: 90.0")
    assert said.index("charts fell") < said.index("v3 forgets") < said.index("in form alone")
    rows = tab.locator("#metrics table").first.locator("tbody th").all_inner_texts()
    assert rows == ["boxes (new)", "charts", "words", "golden (guard)"]
    cards = tab.locator("#found > li")
    assert "changed for the worse" in cards.first.inner_text()
    assert cards.first.locator("tbody th").all_inner_texts() == ["before v1", "v1", "v2", "v3"]
    turned = tab.evaluate(
        "[...document.querySelectorAll('#found > li')].map(e => e.querySelector('.mark').innerText)"
    )
    worse = turned.count("changed for the worse")
    assert worse == 9 and turned[:worse] == ["changed for the worse"] * worse
    assert turned[worse : worse + 8] == ["changed for the better"] * 8
    tab.locator("[name=task]").select_option("golden (guard)")
    assert count(tab) == "10 of 40 examples"
