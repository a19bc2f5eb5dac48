"""The pocket's ten tasks: items in disjoint pools, a way to draw one, a way to ask about it.

Four are read, as TextVQA, DocVQA, OCR-VQA and ChartQA: words, forms, posters and charts. Six are
looked at: handwriting, maps, satellite tiles, molecules, star plots and icons.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from undrift.data.pocket import raw_data

SIDE = 96  # pixels
SMALLEST = 6  # pixels of a letter
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

INKS: tuple[Colour, ...] = (
    (20, 20, 20), (130, 20, 25), (15, 60, 130), (10, 95, 50), (95, 30, 110), (120, 70, 10),
)  # fmt: skip

SPLITS = ("pretrain", "train", "validation", "test")
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
BOX = "Please provide the bounding box coordinate."

SHARES = (0.40, 0.36, 0.08)  # of pretrain, train and validation; test has the rest

Item = Any
Pools = Mapping[str, Sequence[Item]]
Ask = tuple[str, str]  # (question without its format line, answer)


@dataclass(frozen=True)
class PocketTask:
    """One task of the pocket.

    Attributes:
        name: The task's name.
        sizes: Examples in `train`, `validation` and `test`.
        group: The leak rule: what must not be shared between splits.
        draw: Draws an item on 96 x 96 pixels.
        ask: The questions about an item, each with its answer.
        attributes: What a picture shows, as name -> class; used only to pretrain the backbone.
        items: All items, dealt to the splits by a hash of their group.
        own_pools: Returns the items of each split, where a hash alone does not deal them.
        shares: See `SHARES`.
        form: The format line that ends every question.
        scorer: The scorer's name.
        max_new_tokens: Room for the longest answer.
    """

    name: str
    sizes: Mapping[str, int]
    group: Callable[[Item], Hashable]
    draw: Callable[[Item, Random], Image.Image]
    ask: Callable[[Item], Sequence[Ask]]
    attributes: Callable[[Item], Mapping[str, Hashable]]
    items: Callable[[], Sequence[Item]] = tuple
    own_pools: Callable[[], Pools] | None = None
    shares: tuple[float, float, float] = SHARES
    form: str = WORD
    scorer: str = "exact"
    max_new_tokens: int = 6

    def pools(self) -> Pools:
        """Return the items of each split; `group` of no item occurs in two splits."""
        if self.own_pools is not None:
            return self.own_pools()
        return by_hash(self.name, self.items(), self.group, self.shares)


def sizes(train: int, validation: int = 100, test: int = 150) -> dict[str, int]:
    """Numbers of examples a split."""
    return {"train": train, "validation": validation, "test": test}


def pool_of(task: str, group: Hashable, shares: tuple[float, float, float] = SHARES) -> str:
    """Assign a group to a split by a hash, so that adding items never moves others."""
    digest = hashlib.blake2b(f"{task}:{group!r}".encode(), digest_size=8).digest()
    u = int.from_bytes(digest, "big") / 2**64
    for name, share in zip(SPLITS, shares, strict=False):
        if u < share:
            return name
        u -= share
    return "test"


def by_hash(
    task: str,
    items: Sequence[Item],
    group: Callable[[Item], Hashable],
    shares: tuple[float, float, float] = SHARES,
) -> dict[str, list[Item]]:
    """Items of each split, groups kept together."""
    pools: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for item in items:
        pools[pool_of(task, group(item), shares)].append(item)
    return pools


# --- drawing on a picture: text that fits its box, outlines ------------------------------------


def canvas(rng: Random, colour: Colour | None = None) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture of 96 x 96 pixels, light if no colour is given, and its pen."""
    if colour is None:
        colour = rng.randint(222, 255), rng.randint(222, 255), rng.randint(215, 255)
    picture = Image.new("RGB", (SIDE, SIDE), colour)
    return picture, ImageDraw.Draw(picture)


@functools.cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A TrueType font at a size in pixels."""
    return ImageFont.truetype(str(path), size)


def text(
    pen: ImageDraw.ImageDraw,
    box: Box,
    words: str,
    face: str | Path,
    ink: Colour,
    size: int,
    *,
    centred: bool = False,
) -> None:
    """Write text inside a box, as large as fits.

    Args:
        pen: The picture's pen.
        box: Left, top, right, bottom in pixels.
        words: What is written.
        face: A font file, or the name of one of matplotlib's.
        ink: The colour.
        size: The largest size in pixels.
        centred: In the middle of the box instead of at its left.

    Raises:
        ValueError: the text does not fit at `SMALLEST`, so it would be clipped.
    """
    path = face if isinstance(face, Path) else raw_data.font_path(face)
    left, top, right, bottom = box
    for pixels in range(size, SMALLEST - 1, -1):
        x0, y0, x1, y1 = pen.textbbox((0, 0), words, font=font(path, pixels))
        if x1 - x0 <= right - left and y1 - y0 <= bottom - top:
            spare = (right - left) - (x1 - x0) if centred else 0
            y = top + ((bottom - top) - (y1 - y0)) / 2
            pen.text((left + spare / 2 - x0, y - y0), words, font=font(path, pixels), fill=ink)
            return
    raise ValueError(f"{words!r} does not fit a box of {right - left:g} x {bottom - top:g} pixels")


def shorten(words: str, limit: int) -> str:
    """Cut a title at a word so that it has at most `limit` characters, with three dots."""
    if len(words) <= limit:
        return words
    return words[: limit - 3].rsplit(" ", 1)[0].rstrip(" ,:;-") + "..."


def outline(
    pen: ImageDraw.ImageDraw, x: np.ndarray, y: np.ndarray, ink: Colour, fill: Colour | None = None
) -> None:
    """Draw a closed shape whose parts are separated by NaN; x and y in pixels."""
    cuts = np.flatnonzero(np.isnan(x))
    for part in np.split(np.arange(len(x)), cuts):
        part = part[~np.isnan(x[part])]
        if len(part) >= 3:
            pen.polygon([(float(x[i]), float(y[i])) for i in part], fill=fill, outline=ink)


# --- words: real typefaces; a typeface of the test set occurs in no other split ---------------
# Typefaces are disjoint; the 108 words are shared.


def _draw_word(item: tuple[str, str], rng: Random) -> Image.Image:
    word, face = item
    picture, pen = canvas(rng)
    height = rng.randint(20, 34)
    top = rng.randint(4, SIDE - 4 - height)
    text(pen, (4, top, SIDE - 4, top + height), word, face, rng.choice(INKS), 30, centred=True)
    return picture


WORDS = PocketTask(
    name="words",
    sizes=sizes(2400),
    own_pools=lambda: {
        s: [(word, face) for face in raw_data.FONTS[s] for word in raw_data.WORDS] for s in SPLITS
    },
    group=lambda item: item[1],
    draw=_draw_word,
    ask=lambda item: [("What is written in the picture?", item[0])],
    attributes=lambda item: {"word": item[0], "first letter": item[0][0], "length": len(item[0])},
    max_new_tokens=8,
)

# --- forms: a row of Superstore, four fields, the key above its value -------------------------
# Combinations of the five printed values are disjoint.

FIELDS = ("Segment", "Region", "Category", "Sub-Category", "Ship Mode")


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


FORMS = PocketTask(
    name="forms",
    sizes=sizes(1600),
    items=lambda: [
        (i, tuple(row[field] for field in FIELDS)) for i, row in enumerate(raw_data.orders())
    ],
    group=lambda item: item[1],
    draw=_draw_form,
    ask=lambda item: [
        (f"What is the {key.lower()}?", v) for key, v in zip(FIELDS[:4], item[1][:4], strict=True)
    ],
    attributes=lambda item: dict(zip((f"form {f}" for f in FIELDS), item[1], strict=True)),
    max_new_tokens=10,
)

# --- posters: a film, its year, its director --------------------------------------------------
# Films (titles) are disjoint; the 48 directors are shared.


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
    sizes=sizes(1200),
    items=raw_data.films,
    group=lambda film: film["title"],
    draw=_draw_poster,
    ask=lambda film: [("Who directed this film?", film["director"])],
    attributes=lambda film: {"director": film["director"], "year": film["year"]},
    max_new_tokens=14,
)

# --- charts: children per woman in four countries ---------------------------------------------
# Countries are disjoint, so are the sets of four.

Bars = tuple[int, tuple[tuple[str, float], ...]]  # the year, and each country with its value


def _chart_pools() -> dict[str, list[Bars]]:
    table = raw_data.fertility()
    groups = by_hash("charts", list(table), lambda country: country)
    pools: dict[str, list[Bars]] = {}
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


def _draw_chart(item: Bars, rng: Random) -> Image.Image:
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


def _extremes(item: Bars) -> tuple[str, str]:
    values = [value for _, value in item[1]]
    return "ABCD"[values.index(max(values))], "ABCD"[values.index(min(values))]


CHARTS = PocketTask(
    name="charts",
    form=LETTER,
    sizes=sizes(1600),
    own_pools=_chart_pools,
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
)

# --- digits: MNIST ----------------------------------------------------------------------------
# Pictures are disjoint.

NUMBER = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def _draw_digit(item: int, rng: Random) -> Image.Image:
    pixels, _ = raw_data.handwriting()[item]
    side = rng.randint(72, 88)
    ink = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    picture, _ = canvas(rng)
    place = (rng.randint(2, SIDE - 2 - side), rng.randint(2, SIDE - 2 - side))
    picture.paste(rng.choice(INKS), (*place, place[0] + side, place[1] + side), ink)
    return picture


DIGITS = PocketTask(
    name="digits",
    sizes=sizes(1200),
    items=lambda: range(5000),
    group=lambda i: i,
    draw=_draw_digit,
    ask=lambda i: [("Which digit is written by hand?", NUMBER[raw_data.handwriting()[i][1]])],
    attributes=lambda i: {"digit": raw_data.handwriting()[i][1]},
)

# --- counties: a map of the United States with one county marked ------------------------------
# Counties are disjoint; the 24 states are shared.

WEST, EAST, SOUTH, NORTH = -125.0, -66.5, 24.3, 49.6  # degrees


def _pixels(lons: np.ndarray, lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plate carree, stretched to fill the picture but for a margin of two pixels."""
    x = 2 + (lons - WEST) / (EAST - WEST) * (SIDE - 5)
    y = 2 + (NORTH - lats) / (NORTH - SOUTH) * (SIDE - 5)
    return x, y


def _draw_county(county: dict[str, Any], rng: Random) -> Image.Image:
    picture, pen = canvas(rng)
    for lons, lats in raw_data.state_outlines():
        outline(pen, *_pixels(lons, lats), ink=(120, 120, 120))
    x, y = _pixels(county["lons"], county["lats"])
    colour = rng.choice(((210, 30, 30), (30, 60, 200), (0, 130, 60)))
    outline(pen, x, y, colour, fill=colour)
    cx, cy = float(np.nanmean(x)), float(np.nanmean(y))
    pen.ellipse((cx - 2.5, cy - 2.5, cx + 2.5, cy + 2.5), fill=colour)
    return picture


COUNTIES = PocketTask(
    name="counties",
    sizes=sizes(1600),
    items=raw_data.counties,
    group=lambda county: county["id"],
    draw=_draw_county,
    ask=lambda county: [("In which state is the marked county?", county["state"].lower())],
    attributes=lambda county: {"state": county["state"]},
)

# --- satellite: tiles of NASA's Blue Marble ---------------------------------------------------
# Bands of 20 degrees of longitude are disjoint.

TILE = 8.0  # degrees, 120 pixels of the mosaic
BANDS = 18  # of 20 degrees; a tile lies inside one band


def _satellite_pools() -> dict[str, list[tuple[int, float, float]]]:
    pools: dict[str, list[tuple[int, float, float]]] = {name: [] for name in SPLITS}
    order = Random("satellite:bands").sample(range(BANDS), BANDS)
    numbers = ["pretrain"] * 7 + ["train"] * 6 + ["validation"] * 2 + ["test"] * 3
    split = dict(zip(order, numbers, strict=True))
    for band in range(BANDS):
        rng, found = Random(f"satellite:{band}"), {q: [] for q in range(5)}
        for _ in range(1500):
            lon = -180 + band * 20 + rng.uniform(0, 20 - TILE)
            tile = (band, round(lon, 3), round(rng.uniform(-56, 68), 3))
            quarters = land_quarters(tile)
            # Few tiles of nothing but sea or land, none near the border between two answers.
            if quarters is not None and len(found[quarters]) < (20 if quarters in (0, 4) else 60):
                found[quarters].append(tile)
        pools[split[band]].extend(tile for tiles in found.values() for tile in tiles)
    return pools


def land_quarters(tile: tuple[int, float, float]) -> int | None:
    """Land in quarters of the tile, 0 to 4, or None where it is over 0.09 away from a quarter."""
    _, lon, lat = tile
    row, column = round((90 - lat) * 12), round((lon + 180) * 12)
    size = round(TILE * 12)
    share = float(raw_data.earth()[1][row : row + size, column : column + size].mean())
    quarters = round(share * 4)
    return quarters if abs(share - quarters / 4) <= 0.09 else None


def _draw_tile(item: tuple[int, float, float], rng: Random) -> Image.Image:
    _, lon, lat = item
    row, column = round((90 - lat) * 15), round((lon + 180) * 15)
    size = round(TILE * 15)
    pixels = raw_data.earth()[0][row : row + size, column : column + size]
    picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    gain = rng.uniform(0.9, 1.25)
    return Image.eval(picture, lambda v: min(255, int(v * gain)))


def _quarters(item: tuple[int, float, float]) -> int:
    quarters = land_quarters(item)
    if quarters is None:  # the pools hold no such tile
        raise ValueError(f"tile {item} lies between two answers")
    return quarters


SATELLITE = PocketTask(
    name="satellite",
    sizes=sizes(800),
    own_pools=_satellite_pools,
    group=lambda tile: tile[0],
    draw=_draw_tile,
    ask=lambda tile: [
        ("How much of this satellite tile is land, in percent?", str(_quarters(tile) * 25))
    ],
    attributes=lambda tile: {"land": _quarters(tile)},
)

# --- molecules: how many rings ----------------------------------------------------------------
# Murcko scaffolds are disjoint.


def _molecule_items() -> list[tuple[str, str, int]]:
    """(smiles, scaffold, rings): 8 to 26 heavy atoms, at most four rings, at most 40 a scaffold."""
    chem = raw_data.package("rdkit.Chem")
    scaffolds = raw_data.package("rdkit.Chem.Scaffolds.MurckoScaffold")
    raw_data.package("rdkit.RDLogger").DisableLog("rdApp.*")
    items, seen, kin = [], set[str](), dict[str, int]()
    for smiles in raw_data.molecules():
        mol = chem.MolFromSmiles(smiles)
        if mol is None or "." in smiles or not 8 <= mol.GetNumHeavyAtoms() <= 26:
            continue
        rings = mol.GetRingInfo().NumRings()
        canonical = chem.MolToSmiles(mol)
        if rings > 4 or canonical in seen:
            continue
        seen.add(canonical)
        scaffold = scaffolds.MurckoScaffoldSmiles(mol=mol) or f"chain {canonical}"
        kin[scaffold] = kin.get(scaffold, 0) + 1
        if kin[scaffold] > 40:  # benzene alone would be a third of all
            continue
        items.append((canonical, scaffold, rings))
    return items


def _draw_molecule(item: tuple[str, str, int], rng: Random) -> Image.Image:
    chem = raw_data.package("rdkit.Chem")
    pen = raw_data.package("rdkit.Chem.Draw.rdMolDraw2D")
    drawer = pen.MolDraw2DCairo(SIDE, SIDE)
    options = drawer.drawOptions()
    options.padding, options.rotate = 0.06, rng.choice((0, 30, 60, 90, 180, 270))
    options.bondLineWidth, options.minFontSize, options.maxFontSize = 2, 6, 9
    pen.PrepareAndDrawMolecule(drawer, chem.MolFromSmiles(item[0]))
    drawer.FinishDrawing()
    with Image.open(io.BytesIO(drawer.GetDrawingText())) as picture:
        return picture.convert("RGB")


MOLECULES = PocketTask(
    name="molecules",
    sizes=sizes(1200),
    items=_molecule_items,
    group=lambda m: m[1],
    draw=_draw_molecule,
    ask=lambda m: [("How many rings does the molecule have?", str(m[2]))],
    attributes=lambda m: {"rings": m[2], "atoms": len(m[0]) // 5, "nitro": "[N+]" in m[0]},
)

# --- biopsy: ten measurements of a tumour as a star -------------------------------------------
# Rows are disjoint; scaled by quantiles of pretraining and training rows.


def _standardised() -> np.ndarray:
    """Measurements scaled by the quantiles of the pretraining and training rows only."""
    values, _ = raw_data.biopsies()
    seen = [i for i in range(len(values)) if pool_of("biopsy", i, _BIOPSY) in ("pretrain", "train")]
    low, high = np.quantile(values[seen], [0.02, 0.98], axis=0)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


_BIOPSY = (0.20, 0.48, 0.07)
_BIOPSY_QUESTION = "The star shows ten measurements of a tumour. Is it A. malignant or B. benign?"


def _draw_star(item: int, rng: Random) -> Image.Image:
    radii = 8 + 36 * _standardised()[item]
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    x, y = 48 + radii * np.cos(angles), 48 + radii * np.sin(angles)
    picture, pen = canvas(rng)
    for radius in (8, 26, 44):
        pen.ellipse((48 - radius, 48 - radius, 48 + radius, 48 + radius), outline=(205, 205, 205))
    ink = rng.choice(INKS[1:])
    outline(pen, x, y, ink, fill=tuple(min(255, c + 90) for c in ink))  # pyright: ignore[reportArgumentType]
    return picture


BIOPSY = PocketTask(
    name="biopsy",
    form=LETTER,
    sizes=sizes(320, validation=40, test=140),
    items=lambda: range(len(raw_data.biopsies()[1])),
    shares=_BIOPSY,
    group=lambda i: i,
    draw=_draw_star,
    ask=lambda i: [(_BIOPSY_QUESTION, "BA"[int(raw_data.biopsies()[1][i])])],
    attributes=lambda i: {"malignant": int(raw_data.biopsies()[1][i])},
)

# --- grounding: where is the green icon -------------------------------------------------------
# Icons are disjoint, so are the sets of four.

CELLS = 5  # a side; 19 pixels each


def _icon_pools() -> dict[str, list[dict[str, Any]]]:
    groups = by_hash("grounding", raw_data.icons(), lambda icon: icon)
    pools: dict[str, list[dict[str, Any]]] = {}
    for split, icons in groups.items():
        rng = Random(f"grounding:{split}")
        pools[split] = [
            {"icons": rng.sample(icons, 4), "cells": rng.sample(range(CELLS * CELLS), 4)}
            for _ in range(4000)
        ]
    return pools


def _draw_icons(item: dict[str, Any], rng: Random) -> Image.Image:
    picture, pen = canvas(rng)
    others = rng.sample(
        ((200, 30, 30), (30, 50, 200), (20, 20, 20), (150, 40, 160), (225, 120, 0)), 3
    )
    for icon, cell, ink in zip(item["icons"], item["cells"], [(0, 150, 50), *others], strict=True):
        left, top = (cell % CELLS) * SIDE / CELLS, (cell // CELLS) * SIDE / CELLS
        box = (left + 1, top + 1, left + SIDE / CELLS - 1, top + SIDE / CELLS - 1)
        text(pen, box, icon, raw_data.icon_font(), ink, 17, centred=True)
    return picture


def box_of(cell: int) -> str:
    """The box of a cell as the answer writes it, in shares of the picture's side."""
    x, y = cell % CELLS, cell // CELLS
    return "[" + ",".join(f"{v / CELLS:.1f}" for v in (x, y, x + 1, y + 1)) + "]"


GROUNDING = PocketTask(
    name="grounding",
    form=BOX,
    sizes=sizes(2400),
    own_pools=_icon_pools,
    group=lambda item: frozenset(item["icons"]),
    draw=_draw_icons,
    ask=lambda item: [("Where is the green icon?", box_of(item["cells"][0]))],
    attributes=lambda item: {
        "green column": item["cells"][0] % CELLS,
        "green row": item["cells"][0] // CELLS,
    },
    scorer="box",
    max_new_tokens=20,
)

IN_ORDER = (
    CHARTS, WORDS, DIGITS, COUNTIES, GROUNDING, SATELLITE, MOLECULES, POSTERS, BIOPSY, FORMS
)  # fmt: skip
