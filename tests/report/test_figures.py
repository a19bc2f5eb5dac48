from __future__ import annotations

import re
import subprocess
import sys
import zlib
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from undrift.errors import ConfigError
from undrift.report.drawing import (
    ACCENT,
    COLUMN,
    PAGE,
    SERIES,
    THEME,
    draw,
    export,
    shortened,
    styles,
)
from undrift.report.figures import (
    LOSS,
    STRONGEST,
    against_time,
    costs,
    curves,
    effects,
    expert_movement,
    expert_use,
    form_errors,
    form_scores,
    heat_map,
    reroute,
    route_drift,
    shares,
    task_shares,
)
from undrift.report.forgetting import FormCell, RunLoss, TaskLoss

from .conftest import FORGETS, TASKS, ZERO

SVG = "{http://www.w3.org/2000/svg}"
MANY = [f"same (pocket-same-s{n}-8f6f5320d4)" for n in range(12)]
TEN = ["charts", "words", "digits", "counties", "grounding"] * 4


def routes(tasks=2, hole=False):
    cells = [
        {
            "task": task,
            "name": TEN[task - 1],
            "after": after,
            "overlap": None if hole and after > task else 100.0 - 7 * (after - task),
            "moved": 0.5 * (after - task),
            "use": [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
        }
        for task in range(1, tasks + 1)
        for after in range(task, tasks + 1)
    ]
    linears = ["model.layers.0.mlp.gate_proj", "model.layers.3.mlp.down_proj"]
    return {"linears": linears, "experts": 3, "cells": cells}


def loss(label, router: float | None = 10.0, form: float | None = 6.0, expert: float | None = 8.0):
    task = TaskLoss(1, "charts", 90.0, 66.0, router, expert, form)
    return RunLoss(label, [task], 24.0, router, expert, form, "", "")


def form_cell(after, task=1, **changes):
    known = {"strict": 80.0, "lenient": 90.0, "form": 95.0, "wrong": 5, "errors": {"case": 3}}
    return FormCell(task, "charts", after, **{**known, **changes}, borrowed={})


def spent(task, **more):
    return {"task": task, "seconds": 2.0, "state_bytes": 2500, **more}


STREAM = {
    "tasks": ["a", "b"],
    "steps": 8,
    "points": [{"step": 4, "scores": [80.0, None]}, {"step": 8, "scores": [60.0, 90.0]}],
    "mix": [{"step": 4, "shares": [1.0, 0.0]}, {"step": 8, "shares": [0.25, 0.75]}],
}

FIGURES = {
    "against_time": lambda: against_time("a stream", STREAM),
    "heat_map": lambda: heat_map("accuracy", TASKS, FORGETS, ZERO),
    "effects": lambda: effects("who taught whom", ["a", "b"], [[None, 3.0], [-40.0, None]]),
    "expert_use": lambda: expert_use("use of experts", routes()),
    "curves": lambda: curves("curves", {"moelora": FORGETS, "joint": [[50.0, None, 7.0]]}, TASKS),
    "route_drift": lambda: route_drift("router drift", {"moelora": routes()["cells"]}),
    "expert_movement": lambda: expert_movement("expert drift", {"moelora": routes()["cells"]}),
    "reroute": lambda: reroute(
        "re-routing",
        {
            "same": {
                "task": 1,
                "name": "charts",
                "cells": [{"after": 1, "strict": 80.0, "as_is": None, "entropy": 61.0}],
            }
        },
    ),
    "shares": lambda: shares("lost points", [loss("moelora"), loss("same", router=-2.0)]),
    "task_shares": lambda: task_shares("lost points of moelora", loss("moelora")),
    "form_scores": lambda: form_scores("form", [form_cell(1), form_cell(2, lenient=None)], 1),
    "form_errors": lambda: form_errors("errors", [form_cell(1), form_cell(2, errors={})], 1),
    "costs": lambda: costs("costs", {"same": [spent("charts"), spent("words", seconds=None)]}),
}
each = pytest.mark.parametrize("name", FIGURES)


def parsed(figure):
    return ET.fromstring(draw(figure).svg)


def texts(figure):
    return [text.text for text in parsed(figure).iter(f"{SVG}text")]


def told(figure):
    return [title.text for title in parsed(figure).iter(f"{SVG}title")]


@each
def test_a_drawing_belongs_to_its_page(name):
    figure = FIGURES[name]()
    drawn = draw(figure)
    root = ET.fromstring(drawn.svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == figure.get_label()
    assert "width:100%" in root.get("style", "")
    assert not re.search(r"<style|<metadata|font-family|None|nan", drawn.svg)
    assert re.findall(r"https?:[^\" ]*", drawn.svg) == ["http://www.w3.org/2000/svg"]
    colours = set(re.findall(r"#[0-9a-f]{6}\b", drawn.svg))
    assert colours <= {*SERIES, ACCENT, LOSS}
    paints = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn.svg)) - colours
    assert "var(--ink)" in paints
    assert {paint for paint in paints if "url(" not in paint} <= {"none", *THEME.values()}
    for text in root.iter(f"{SVG}text"):
        assert "var(--ink)" in text.get("style", "")
    assert len(drawn.svg) < 150_000


@each
def test_exports_are_of_a_papers_size(tmp_path, name):
    export(FIGURES[name](), tmp_path / "new", name)
    pdf, svg = (path.read_bytes() for path in sorted((tmp_path / "new").iterdir()))
    width = float(ET.fromstring(svg).get("width", "").removesuffix("in"))
    assert width in (COLUMN, PAGE)
    assert b"var(" not in svg
    assert re.findall(rb"https?:[^\" ]*", svg) == [b"http://www.w3.org/2000/svg"]
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)
    assert box and float(box[1]) == pytest.approx(72 * width)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


@pytest.mark.parametrize("name", ["route_drift", "shares"])  # markers, clips and hatches have ids
def test_exports_are_reproducible(tmp_path, name):
    for folder in ("a", "b"):
        export(FIGURES[name](), tmp_path / folder, name)
    for ending in ("pdf", "svg"):
        one, other = (tmp_path / folder / f"{name}.{ending}" for folder in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


def test_ids_of_two_figures_do_not_clash():
    seen = []
    for title in ("router drift of a", "router drift of b"):
        svg = draw(route_drift(title, {"moelora": routes()["cells"]})).svg
        ids = re.findall(r' id="([^"]+)"', svg)
        assert ids and len(ids) == len(set(ids))
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) == set(ids)
        seen += ids
    assert len(seen) == len(set(seen))


def test_what_a_run_is_called_is_text():
    figure = curves("<b> & $x$", {"a<b & $c$": [[50.0]], "d": [[40.0]]}, ["t&<"])
    assert parsed(figure).get("aria-label") == "<b> & $x$"
    assert {"a<b & $c$", "1 t&<"} <= set(texts(figure))
    assert told(figure) == ["a<b & $c$, 1 t&<: 50 → 50", "d, 1 t&<: 40 → 40"]


def test_a_heat_map_shows_every_measured_cell_once():
    figure = heat_map("moelora", TASKS, [[90.0, 20.0], [None, 80.0, 5.0], FORGETS[2]], ZERO)
    cells = told(figure)
    assert len(cells) == 3 + 2 + 2 + 3
    assert "digits after task 3: 40.0 %" in cells
    assert "words after task 0: 0.0 %" in cells
    assert texts(figure).count("90") == 1
    panel = figure.axes[0]
    frames = [patch.get_xy() for patch in panel.patches if not patch.get_fill()]
    assert [(round(x), round(y)) for x, y in frames] == [(0, 1), (1, 2), (2, 3)]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0", "1", "2", "3"]
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        "1 digits",
        "2 icons",
        "3 words",
    ]


def test_a_heat_map_of_one_row():
    figure = heat_map("joint", TASKS, [[95.0, None, 99.0]], ZERO)
    assert told(figure)[3:] == ["digits at the end: 95.0 %", "words at the end: 99.0 %"]
    assert all(patch.get_fill() for patch in figure.axes[0].patches)


def test_a_gain_and_a_loss_differ_in_sign_and_colour():
    figure = FIGURES["effects"]()
    assert told(figure) == ["b, by learning a: +3.0 points", "a, by learning b: -40.0 points"]
    assert {"+3", "−40"} <= set(texts(figure))
    assert {ACCENT, LOSS} <= set(re.findall(r"#[0-9a-f]{6}", draw(figure).svg))


def test_use_shows_the_latest_cell_of_each_task():
    cells = routes()["cells"]
    cells[1]["use"] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    figure = expert_use("use", {**routes(), "cells": cells[::-1]})
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "layer 0 gate_proj",
        "layer 3 down_proj",
    ]
    assert told(figure)[:3] == [
        f"charts, expert {e}: {s}.0 %" for e, s in ((1, 100), (2, 0), (3, 0))
    ]
    assert texts(figure).count("50") == 2


def test_curves_begin_where_a_task_was_learned():
    figure = FIGURES["curves"]()
    digits, icons, words = figure.axes
    assert list(digits.lines[0].get_xydata()[:, 1]) == [90.0, 60.0, 40.0]
    assert list(icons.lines[0].get_xydata()[:, 0]) == [2, 3]
    assert len(digits.lines) == 2 and len(icons.lines) == 1  # joint has no score there
    assert words.lines[1].get_ydata() == [7.0, 7.0]


def test_lines_leave_out_what_was_not_measured():
    (panel,) = route_drift("r", {"a": routes(3, hole=True)["cells"]}).axes
    assert [list(line.get_xdata()) for line in panel.lines] == [[1], [2], [3]]
    (panel,) = expert_movement("e", {"a": routes(3)["cells"]}).axes
    assert list(panel.lines[0].get_ydata()) == [0.0, 0.5, 1.0]
    figure = FIGURES["reroute"]()
    assert [len(panel.lines) for panel in figure.axes] == [1, 1]


def test_bars_add_up_to_what_was_lost():
    figure = FIGURES["shares"]()
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width())
            for bar in figure.axes[0].patches]  # fmt: skip
    assert bars == [
        *((0, 0, 10), (0, 10, 8), (0, 18, 6)),
        *((1, 0, -2), (1, 0, 8), (1, 8, 6)),
    ]
    assert told(figure)[:3] == [
        "moelora, router: 10.0 points",
        "moelora, experts: 8.0 points",
        "moelora, form: 6.0 points",
    ]


def test_a_loss_is_split_as_far_as_it_is_known():
    runs = [loss("a", router=None), loss("b", form=None)]
    assert told(shares("s", runs)) == [
        "a, router or experts: 18.0 points",
        "a, form: 6.0 points",
        "b, cause not known: 24.0 points",
    ]
    untrained = RunLoss("zeroshot", [], None, None, None, None, "", "")
    assert told(shares("s", [untrained])) == []


def test_errors_add_up_to_the_wrong_answers():
    figure = form_errors("e", [form_cell(2, errors={}), form_cell(1), form_cell(1, task=2)], 1)
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height())
            for bar in figure.axes[0].patches]  # fmt: skip
    assert bars == [(1, 0, 2), (1, 2, 3), (2, 0, 5)]


def test_a_stream_shows_every_score_and_fills_all_of_its_steps():
    figure = against_time("a stream", STREAM)
    above, below = figure.axes
    drawn = [dict(zip(*line.get_data(), strict=True)) for line in above.lines]
    assert drawn == [{4: 80.0, 8: 60.0}, {8: 90.0}]
    assert {"accuracy, %", "share of the stream, %", "step"} <= set(texts(figure))
    assert told(figure)[-2:] == ["a: 100 % of the stream where it has most of it",
                                 "b: 75 % of the stream where it has most of it"]  # fmt: skip
    ends = [area.get_paths()[0].get_extents() for area in below.collections]
    assert all((each.x0, each.x1) == (0, 8) for each in ends)
    assert ends[1].y1 == pytest.approx(100)


def test_costs_show_what_was_recorded():
    budget = [spent("a", tokens=3000, peak_bytes=None, resting={"x": 1, "y": 2})]
    figure = costs("c", {"same": budget, "old": [spent("a")], "joint": []})
    read = {panel.get_title(loc="left"): [float(line.get_ydata()[0]) for line in panel.lines]
            for panel in figure.axes}  # fmt: skip
    assert read == {
        "training, seconds": [2.0, 2.0],
        "speed, tokens a second": [1500.0],
        "state, bytes": [2500.0, 2500.0],
        "experts at rest, mean": [1.5],
    }
    assert "2 k" in texts(figure)


@pytest.mark.parametrize(
    "make",
    [
        lambda: heat_map("x", [], []),
        lambda: effects("x", ["a"], []),
        lambda: expert_use("x", {"linears": [], "experts": 0, "cells": []}),
        lambda: curves("x", {}, TASKS),
        lambda: route_drift("x", {}),
        lambda: expert_movement("x", {}),
        lambda: reroute("x", {}),
        lambda: shares("x", []),
        lambda: task_shares("x", RunLoss("a", [], None, None, None, None, "", "")),
        lambda: form_scores("x", [form_cell(1)], 2),
        lambda: form_errors("x", [], 1),
        lambda: costs("x", {"a": []}),
        lambda: against_time("x", {"tasks": [], "steps": 1, "points": [], "mix": []}),
    ],
)
def test_nothing_to_draw_is_an_error(make):
    with pytest.raises(ConfigError, match="nothing to draw for 'x'"):
        make()


def labels(figure):
    """Where each text stands that is drawn beside or above a panel."""
    for panel in figure.axes:
        yield panel._left_title
        for axis, limits in (
            (panel.xaxis, panel.viewLim.intervalx),
            (panel.yaxis, panel.viewLim.intervaly),
        ):
            for tick in axis.get_major_ticks():
                if min(limits) <= tick.get_loc() <= max(limits):
                    yield from (tick.label1, tick.label2)
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()


@pytest.mark.parametrize(
    "make",
    [
        lambda: curves("c", {name: [[90.0]] for name in MANY}, ["charts"]),
        lambda: route_drift("r", {name: routes(2)["cells"] for name in MANY}),
        lambda: shares("s", [loss(name) for name in MANY]),
        lambda: heat_map("h", TEN, [[100.0] * 20] * 8, [1.0] * 20),
        lambda: expert_use("u", routes(10)),
    ],
)
def test_nothing_is_cut_and_nothing_overlaps_however_many_there_are(make):
    figure = make()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    whole = figure.get_tightbbox(renderer)  # in inches
    assert whole.x0 >= -0.01 and whole.x1 <= figure.get_figwidth() + 0.01
    assert whole.y0 >= -0.01 and whole.y1 <= figure.get_figheight() + 0.01
    shown = [(text.get_text(), text.get_window_extent(renderer).padded(-1))
             for text in labels(figure) if text.get_text() and text.get_visible()]  # fmt: skip
    for (one, box), (other, second) in combinations(shown, 2):
        assert not box.overlaps(second), f"{one!r} and {other!r}"


def test_a_long_name_keeps_both_its_ends():
    assert shortened("short", 1.0) == "short"
    short = shortened(MANY[3], 1.0)
    assert len(short) == 18
    assert short.startswith("same (po") and short.endswith("5320d4)") and "…" in short


def test_no_two_of_twelve_runs_look_alike():
    looks = styles(40)
    assert len(set(looks)) == 40
    assert len({(look.marker, look.linestyle) for look in looks[:12]}) == 12


# The ink of a page's text and its paper, in each theme.
THEMES = {
    "light": ("#1c2330", "#ffffff"),
    "dark": ("#e6e9ee", "#14181f"),
    "print": ("#010101", "#ffffff"),
}


def channels(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def luminance(rgb):
    shares = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_numbers_are_readable_on_every_cell(theme):
    ink, paper = map(channels, THEMES[theme])
    for colour in (ACCENT, LOSS):
        for percent in range(101):
            share = STRONGEST * percent / 100
            pairs = zip(channels(colour), paper, strict=True)
            cell = [a * share + b * (1 - share) for a, b in pairs]
            assert contrast(ink, cell) >= 4.5, f"{colour} at {percent} %"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("colour", SERIES)
def test_series_stand_out_from_the_paper(theme, colour):
    assert contrast(channels(colour), channels(THEMES[theme][1])) >= 3


def test_a_pdf_keeps_its_letters(tmp_path):
    export(heat_map("h", ["żółw →"], [[88.0]]), tmp_path, "h")
    pdf = (tmp_path / "h.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    maps = b"".join(map(zlib.decompress, (s for s in streams if s[:1] == b"x")))
    for letter in "żół→8":
        assert f"{ord(letter):04x}".encode() in maps.lower()


def test_commands_that_draw_nothing_do_not_wait_for_matplotlib():
    program = "import sys, undrift.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
