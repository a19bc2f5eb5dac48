"""A light copy of the font that comes with matplotlib, so that a PDF takes a third of the time.

A PDF carries the letters that it uses, cut out of the font. Most of that time goes into tables
for scripts and ligatures that no label needs; a copy without them is made once a process.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from fontTools import subset
from matplotlib.font_manager import findfont, fontManager

_FULL = "DejaVu Sans"
LIGHT = "Report Sans"
_LETTERS = (
    *range(0x20, 0x250),  # Latin
    *range(0x370, 0x530),  # Greek, Cyrillic
    *range(0x2010, 0x2040),  # dashes, quotation marks, the ellipsis
    *(0x2190, 0x2192, 0x2212),  # arrows, minus
)
_NAMES = (1, 4, 6, 16)  # family, full name, PostScript name, typographic family


@cache
def light_font() -> str:
    """Make the copy known to matplotlib.

    Returns:
        Its family.
    """
    options = subset.Options(layout_features=[], name_IDs=["*"], glyph_names=True)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "MATH", "FFTM", "kern"]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=_LETTERS)
    folder = Path(tempfile.mkdtemp(prefix="undrift-font-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with subset.load_font(str(findfont(_FULL)), options) as font:
        cutter.subset(font)
        names = font["name"]
        for record in list(names.names):
            if record.nameID in _NAMES:
                where = (record.nameID, record.platformID, record.platEncID, record.langID)
                names.setName(LIGHT.replace(" ", "" if record.nameID == 6 else " "), *where)
        font.save(folder / "light.ttf")
    fontManager.addfont(folder / "light.ttf")
    return LIGHT
