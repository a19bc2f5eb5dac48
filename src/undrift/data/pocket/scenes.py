"""Pictures one looks at: handwriting, maps, satellite tiles, molecules, star plots, icons."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from undrift.data.pocket import sources
from undrift.data.pocket.drawing import INKS, SIDE, canvas, outline, text
from undrift.data.pocket.task import (
    BOX,
    LETTER,
    SPLITS,
    WORD,
    PocketTask,
    by_hash,
    pool_of,
    sizes,
)

# --- digits: MNIST ----------------------------------------------------------------------------

NUMBER = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def _draw_digit(item: int, rng: Random) -> Image.Image:
    pixels, _ = sources.handwriting()[item]
    side = rng.randint(72, 88)
    ink = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    picture, _ = canvas(rng)
    place = (rng.randint(2, SIDE - 2 - side), rng.randint(2, SIDE - 2 - side))
    picture.paste(rng.choice(INKS), (*place, place[0] + side, place[1] + side), ink)
    return picture


DIGITS = PocketTask(
    name="digits",
    form=WORD,
    sizes=sizes(1200),
    pools=lambda: by_hash("digits", range(5000), lambda i: i),
    group=lambda i: i,
    draw=_draw_digit,
    ask=lambda i: [("Which digit is written by hand?", NUMBER[sources.handwriting()[i][1]])],
    attributes=lambda i: {"digit": sources.handwriting()[i][1]},
    leak_rule="pictures are disjoint",
)

# --- counties: a map of the United States with one county marked ------------------------------

WEST, EAST, SOUTH, NORTH = -125.0, -66.5, 24.3, 49.6  # degrees


def _pixels(lons: np.ndarray, lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plate carree, stretched to fill the picture but for a margin of two pixels."""
    x = 2 + (lons - WEST) / (EAST - WEST) * (SIDE - 5)
    y = 2 + (NORTH - lats) / (NORTH - SOUTH) * (SIDE - 5)
    return x, y


def _draw_county(item: int, rng: Random) -> Image.Image:
    county = sources.counties()[item]
    picture, pen = canvas(rng)
    for lons, lats in sources.state_outlines():
        outline(pen, *_pixels(lons, lats), ink=(120, 120, 120))
    x, y = _pixels(county["lons"], county["lats"])
    colour = rng.choice(((210, 30, 30), (30, 60, 200), (0, 130, 60)))
    outline(pen, x, y, colour, fill=colour)
    cx, cy = float(np.nanmean(x)), float(np.nanmean(y))
    pen.ellipse((cx - 2.5, cy - 2.5, cx + 2.5, cy + 2.5), fill=colour)
    return picture


COUNTIES = PocketTask(
    name="counties",
    form=WORD,
    sizes=sizes(1600),
    pools=lambda: by_hash(
        "counties", range(len(sources.counties())), lambda i: sources.counties()[i]["id"]
    ),
    group=lambda i: sources.counties()[i]["id"],
    draw=_draw_county,
    ask=lambda i: [
        ("In which state is the marked county?", sources.counties()[i]["state"].lower())
    ],
    attributes=lambda i: {"state": sources.counties()[i]["state"]},
    leak_rule="counties are disjoint; the 24 states are shared",
)

# --- satellite: tiles of NASA's Blue Marble ---------------------------------------------------

TILE = 8.0  # degrees, 120 pixels of the mosaic
BANDS = 18  # of 20 degrees; a tile lies inside one band


def _satellite_pools() -> dict[str, list[tuple[int, float, float]]]:
    pools: dict[str, list[tuple[int, float, float]]] = {name: [] for name in SPLITS}
    order = Random("satellite:bands").sample(range(BANDS), BANDS)
    split = dict(zip(order, ["pretrain"] * 7 + ["train"] * 6 + ["validation"] * 2 + ["test"] * 3,
                     strict=True))  # fmt: skip
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
    share = float(sources.earth()[1][row : row + size, column : column + size].mean())
    quarters = round(share * 4)
    return quarters if abs(share - quarters / 4) <= 0.09 else None


def _draw_tile(item: tuple[int, float, float], rng: Random) -> Image.Image:
    _, lon, lat = item
    row, column = round((90 - lat) * 15), round((lon + 180) * 15)
    size = round(TILE * 15)
    pixels = sources.earth()[0][row : row + size, column : column + size]
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
    form=WORD,
    sizes=sizes(800),
    pools=_satellite_pools,
    group=lambda tile: tile[0],
    draw=_draw_tile,
    ask=lambda tile: [
        ("How much of this satellite tile is land, in percent?", str(_quarters(tile) * 25))
    ],
    attributes=lambda tile: {"land": _quarters(tile)},
    leak_rule="bands of 20 degrees of longitude are disjoint",
)

# --- molecules: how many rings ----------------------------------------------------------------


def _molecule_items() -> list[tuple[str, str, int]]:
    """(smiles, scaffold, rings): 8 to 26 heavy atoms, at most four rings, at most 40 a scaffold."""
    chem = sources.package("rdkit.Chem")
    scaffolds = sources.package("rdkit.Chem.Scaffolds.MurckoScaffold")
    sources.package("rdkit.RDLogger").DisableLog("rdApp.*")
    items, seen, kin = [], set[str](), dict[str, int]()
    for smiles in sources.molecules():
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
    chem = sources.package("rdkit.Chem")
    pen = sources.package("rdkit.Chem.Draw.rdMolDraw2D")
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
    form=WORD,
    sizes=sizes(1200),
    pools=lambda: by_hash("molecules", _molecule_items(), lambda m: m[1]),
    group=lambda m: m[1],
    draw=_draw_molecule,
    ask=lambda m: [("How many rings does the molecule have?", str(m[2]))],
    attributes=lambda m: {"rings": m[2], "atoms": len(m[0]) // 5, "nitro": "[N+]" in m[0]},
    leak_rule="Murcko scaffolds are disjoint",
)

# --- biopsy: ten measurements of a tumour as a star -------------------------------------------


def _standardised() -> np.ndarray:
    """Measurements scaled by the quantiles of the pretraining and training rows only."""
    values, _ = sources.biopsies()
    seen = [i for i in range(len(values)) if pool_of("biopsy", i, _BIOPSY) in ("pretrain", "train")]
    low, high = np.quantile(values[seen], [0.02, 0.98], axis=0)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


_BIOPSY = (0.20, 0.48, 0.07)


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


def _malignant(item: int) -> int:
    return int(sources.biopsies()[1][item])


BIOPSY = PocketTask(
    name="biopsy",
    form=LETTER,
    sizes=sizes(320, validation=40, test=140),
    pools=lambda: by_hash("biopsy", range(len(sources.biopsies()[1])), lambda i: i, _BIOPSY),
    group=lambda i: i,
    draw=_draw_star,
    ask=lambda i: [
        (
            "The star shows ten measurements of a tumour. Is it A. malignant or B. benign?",
            "BA"[_malignant(i)],
        )
    ],
    attributes=lambda i: {"malignant": _malignant(i)},
    leak_rule="rows are disjoint; scaled by quantiles of pretraining and training rows",
)

# --- grounding: where is the green icon -------------------------------------------------------

CELLS = 5  # a side; 19 pixels each


def _icon_pools() -> dict[str, list[dict[str, Any]]]:
    groups = by_hash("grounding", sources.icons(), lambda icon: icon)
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
        text(pen, box, icon, sources.icon_font(), ink, 17, centred=True)
    return picture


def box_of(cell: int) -> str:
    """The box of a cell as the answer writes it, in shares of the picture's side."""
    x, y = cell % CELLS, cell // CELLS
    return "[" + ",".join(f"{v / CELLS:.1f}" for v in (x, y, x + 1, y + 1)) + "]"


GROUNDING = PocketTask(
    name="grounding",
    form=BOX,
    sizes=sizes(2400),
    pools=_icon_pools,
    group=lambda item: frozenset(item["icons"]),
    draw=_draw_icons,
    ask=lambda item: [("Where is the green icon?", box_of(item["cells"][0]))],
    attributes=lambda item: {
        "green column": item["cells"][0] % CELLS,
        "green row": item["cells"][0] // CELLS,
    },
    leak_rule="icons are disjoint, so are the sets of four",
    scorer="box",
    max_new_tokens=20,
)
