"""Pictures one reads: words, forms, posters and charts (as TextVQA, DocVQA, OCR-VQA, ChartQA)."""

from __future__ import annotations

from random import Random
from typing import Any

from PIL import Image

from undrift.data.pocket import sources
from undrift.data.pocket.drawing import INKS, SIDE, canvas, shorten, text
from undrift.data.pocket.task import LETTER, SPLITS, WORD, Asked, PocketTask, by_hash, sizes

# --- words: real typefaces; a typeface of the test set occurs in no other split ---------------


def _word_pools() -> dict[str, list[tuple[str, str]]]:
    return {s: [(w, face) for face in sources.FONTS[s] for w in sources.WORDS] for s in SPLITS}


def _draw_word(item: tuple[str, str], rng: Random) -> Image.Image:
    word, face = item
    picture, pen = canvas(rng)
    height = rng.randint(20, 34)
    top = rng.randint(4, SIDE - 4 - height)
    text(pen, (4, top, SIDE - 4, top + height), word, face, rng.choice(INKS), 30, centred=True)
    return picture


WORDS = PocketTask(
    name="words",
    form=WORD,
    sizes=sizes(2400),
    pools=_word_pools,
    group=lambda item: item[1],
    draw=_draw_word,
    ask=lambda item: [("What is written in the picture?", item[0])],
    attributes=lambda item: {"word": item[0], "first letter": item[0][0], "length": len(item[0])},
    leak_rule="typefaces are disjoint; the 108 words are shared",
    max_new_tokens=8,
)

# --- forms: a row of Superstore, four fields, the key above its value -------------------------

FIELDS = ("Segment", "Region", "Category", "Sub-Category", "Ship Mode")


def _form_items() -> list[tuple[int, tuple[str, ...]]]:
    rows = sources.orders()
    return [(i, tuple(row[f] for f in FIELDS)) for i, row in enumerate(rows)]


def _draw_form(item: tuple[int, tuple[str, ...]], rng: Random) -> Image.Image:
    picture, pen = canvas(rng)
    ink = rng.choice(INKS)
    face = rng.choice(("DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold"))
    for row, (key, value) in enumerate(zip(FIELDS, item[1], strict=True)):
        top = 2 + row * 18.5
        text(pen, (4, top, SIDE - 4, top + 7), key + ":", "DejaVuSans", (90, 90, 90), 7)
        text(pen, (8, top + 7, SIDE - 4, top + 17), value, face, ink, 11)
        pen.line([(3, top + 17.5), (SIDE - 4, top + 17.5)], fill=(190, 190, 190))
    return picture


def _ask_form(item: tuple[int, tuple[str, ...]]) -> list[Asked]:
    return [
        (f"What is the {key.lower()}?", v) for key, v in zip(FIELDS[:4], item[1][:4], strict=True)
    ]


FORMS = PocketTask(
    name="forms",
    form=WORD,
    sizes=sizes(1600),
    pools=lambda: by_hash("forms", _form_items(), lambda item: item[1]),
    group=lambda item: item[1],
    draw=_draw_form,
    ask=_ask_form,
    attributes=lambda item: dict(zip((f"form {f}" for f in FIELDS), item[1], strict=True)),
    leak_rule="combinations of the five printed values are disjoint",
    max_new_tokens=10,
)

# --- posters: a film, its year, its director --------------------------------------------------


def _draw_poster(item: dict[str, Any], rng: Random) -> Image.Image:
    dark = rng.random() < 0.5
    ground = tuple(rng.randint(0, 60) if dark else rng.randint(200, 255) for _ in range(3))
    picture, pen = canvas(rng, ground)  # pyright: ignore[reportArgumentType]
    ink = (250, 245, 225) if dark else rng.choice(INKS)
    band = tuple(rng.randint(60, 190) for _ in range(3))
    pen.rectangle((0, 30, SIDE, 46), fill=band)  # pyright: ignore[reportArgumentType]
    title = shorten(item["title"], 20)
    text(pen, (4, 4, SIDE - 4, 26), title, rng.choice(("DejaVuSerif-Bold", "cmb10")), ink, 15)
    text(pen, (30, 32, SIDE - 4, 45), str(item["year"]), "DejaVuSans-Bold", (255, 255, 255), 13)
    first, _, last = item["director"].rpartition(" ")
    text(pen, (4, 52, SIDE - 4, 70), first, "DejaVuSans-Bold", ink, 15, centred=True)
    text(pen, (4, 72, SIDE - 4, 92), last, "DejaVuSans-Bold", ink, 17, centred=True)
    return picture


POSTERS = PocketTask(
    name="posters",
    form=WORD,
    sizes=sizes(1200),
    pools=lambda: by_hash("posters", sources.films(), lambda film: film["title"]),
    group=lambda film: film["title"],
    draw=_draw_poster,
    ask=lambda film: [("Who directed this film?", film["director"])],
    attributes=lambda film: {"director": film["director"], "year": film["year"]},
    leak_rule="films (titles) are disjoint; the 48 directors are shared",
    max_new_tokens=14,
)

# --- charts: children per woman in four countries ---------------------------------------------


def _chart_pools() -> dict[str, list[tuple[int, tuple[tuple[str, float], ...]]]]:
    table = sources.fertility()
    groups = by_hash("charts", list(table), lambda country: country)
    pools: dict[str, list[tuple[int, tuple[tuple[str, float], ...]]]] = {}
    for split, countries in groups.items():
        rng, items = Random(f"charts:{split}"), []
        while len(items) < 2500:
            year = rng.choice((1964, 1972, 1980, 1988, 1996, 2004))
            chosen = rng.sample(countries, 4)
            values = [table[c][year] for c in chosen]
            ordered = sorted(values)
            # Bars that a person can tell apart: the extremes stand 8 % of the longest bar clear.
            clear = 0.08 * ordered[-1]
            if ordered[1] - ordered[0] > clear and ordered[3] - ordered[2] > clear:
                items.append((year, tuple(zip(chosen, values, strict=True))))
        pools[split] = items
    return pools


def _draw_chart(item: tuple[int, tuple[tuple[str, float], ...]], rng: Random) -> Image.Image:
    year, bars = item
    picture, pen = canvas(rng)
    text(pen, (4, 2, SIDE - 4, 12), f"children a woman, {year}", "DejaVuSans", (60, 60, 60), 9)
    largest = max(value for _, value in bars)
    colour = rng.choice(INKS[1:])
    for row, (_, value) in enumerate(bars):
        top = 17 + row * 20
        text(pen, (3, top, 15, top + 14), "ABCD"[row], "DejaVuSans-Bold", (20, 20, 20), 13)
        pen.rectangle((17, top, 17 + 74 * value / largest, top + 13), fill=colour)
    return picture


def _extremes(item: tuple[int, tuple[tuple[str, float], ...]]) -> tuple[str, str]:
    values = [value for _, value in item[1]]
    return "ABCD"[values.index(max(values))], "ABCD"[values.index(min(values))]


CHARTS = PocketTask(
    name="charts",
    form=LETTER,
    sizes=sizes(1600),
    pools=_chart_pools,
    group=lambda item: frozenset(country for country, _ in item[1]),
    draw=_draw_chart,
    ask=lambda item: [
        ("Which bar is the longest? A, B, C or D?", _extremes(item)[0]),
        ("Which bar is the shortest? A, B, C or D?", _extremes(item)[1]),
    ],
    attributes=lambda item: (
        {"longest": _extremes(item)[0], "shortest": _extremes(item)[1]}
        | {
            f"bar {i}": round(8 * v / max(u for _, u in item[1]))
            for i, (_, v) in enumerate(item[1])
        }
    ),
    leak_rule="countries are disjoint, so are the sets of four",
)
