"""Pictures in rows: by name, or inside the row as bytes; and what looks like one and is not read.

What stands inside a row is written once into the cache, byte for byte, under the digest of its
content, since examples name their pictures by path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from undrift.data.picture_decoding import as_seen
from undrift.data.picture_folder import PictureFolder, cache_folder
from undrift.errors import DataError, brief
from undrift.rundir import atomic_write
from undrift.untrusted import is_regular

KEYS = ("image", "images")

_DATA_URL = re.compile(r"data:[^\s,]*(?:/|;base64)[^\s,]*,", re.IGNORECASE)
_BETWEEN = re.compile(r"[\n,;\[\]\"']+\s*")  # names in one text
_LONGEST = 4096  # characters of a name
_SUFFIX = 8  # characters of a name that its suffix is looked for in
_MOVING = re.compile(
    r"\.(mp4|avi|mov|mkv|webm|mpe?g|m4v|3gp|gifv|wma|wav|mp3|flac|ogg|m4a|aac|opus)", re.I
)
_STILL = re.compile(
    r"\.(jpe?g?|jxl|jfif|png|gif|bmp|tiff?|webp|heic|heif|avif|jp2|p[bgpn]m|psd|exr|eps|svg|ico|tga|dcm)",
    re.I,
)
_NAME = re.compile(
    r"(?:[a-z]+_)*(image|img|pic|picture|photo|screenshot|thumbnail|frame|media|jpe?g|png|webp"
    r"|video|audio|speech)s?_?\d*"
    r"(_?(path|file|filename|name|url|uri|bytes|data|b64|base64|list|left|right|before|after))*s?"
)
_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk0")  # PNG, JPEG, WebP, GIF, BMP in it
_OF_A_PICTURE = ("bytes", "path", "image", "url", "image_url")


def pictures_of(row: Mapping[str, Any]) -> list[Any]:
    """Return the pictures of a row as it holds them.

    Args:
        row: The row; `image` or `images` is one picture or a list, and nothing (`""`, null, `[]`)
            means that there is none.

    Returns:
        Names, bytes, or what else stands for a picture.

    Raises:
        DataError: If both keys hold pictures, and other ones, or if a list has gaps.
    """
    found = [(key, _listed(row[key], key)) for key in KEYS if key in row]
    given = [(key, pictures) for key, pictures in found if pictures]
    if len(given) == 2 and given[0][1] != given[1][1]:
        raise DataError("image and images hold different pictures; leave one of the keys out")
    return given[0][1] if given else []


def _listed(value: Any, key: str) -> list[Any]:
    """Return pictures as a list, whether there is one, several or none."""
    several = value if isinstance(value, list | tuple) else [value]
    there = [one for one in several if not _is_nothing(one)]
    if there and len(there) < len(several):
        raise DataError(f"{key} holds {len(there)} pictures and {len(several) - len(there)} gaps")
    return there


def find_picture(held: Any, pictures: PictureFolder) -> Path:
    """Return the file of a picture, writing it into the cache if it stands inside the row.

    Args:
        held: A name, a data URL, bytes, a PIL image, or an object with `bytes`, `path`, `url` ...
        pictures: Where names are looked for.

    Returns:
        The file.

    Raises:
        DataError: If there is no such file, or no picture can be made of it.
    """
    if isinstance(held, str):
        if _is_base64(held):
            held = f"data:;base64,{held}"
        return _cached(_decoded(held)) if held[:5].lower() == "data:" else pictures.find(held)
    if isinstance(held, bytes) and held:
        return _cached(held)
    if isinstance(held, Image.Image):
        file = io.BytesIO()
        as_seen(held).save(file, "png")
        return _cached(file.getvalue(), ".png")
    if isinstance(held, Mapping):
        content = held.get("bytes")
        if isinstance(content, bytes) and content:
            name = str(held.get("path") or "")[-_SUFFIX:]
            return _cached(content, PurePosixPath(name).suffix.lower())
        named = [held[key] for key in _OF_A_PICTURE[1:] if held.get(key)]
        if content in (None, b"") and len(named) == 1:
            return find_picture(named[0], pictures)
        if "bytes" in held:
            raise DataError(
                "a picture of the dataset holds no bytes; save it with the pictures inside "
                "(Dataset.save_to_disk does), or give their names instead"
            )
    raise DataError(
        f"image is {brief(held)}; expected the name of a picture or a list of names, and nothing "
        "where there is no picture"
    )


def other_keys(held: Any) -> dict[str, Any]:
    """Return what an object that stands for a picture holds besides it."""
    if not isinstance(held, Mapping):
        return {}
    more = {key: one for key, one in held.items() if key not in _OF_A_PICTURE and one is not None}
    return more | {
        name: one for key in _OF_A_PICTURE for name, one in other_keys(held.get(key)).items()
    }


def unread_media(held: Mapping[str, Any], shown: Iterable[Any]) -> list[str]:
    """Name what was not read of a row and looks like a picture, a video or sound.

    The name of a picture that is shown may stand under another key as well.

    Args:
        held: What was not read, by key.
        shown: The pictures that were.

    Returns:
        What to say, a text each.
    """
    names = names_of(shown)
    return [
        f"videos and sound are not supported, and {key!r} is {brief(value)}"
        if what == "moving"
        else f"the key {key!r} is not read, and looks like a picture ({brief(value)}): call it "
        "image or images, or leave it out"
        for key, value in held.items()
        if (what := _media_in(str(key), value, names))
    ]


def names_of(shown: Iterable[Any]) -> set[str]:
    """Return the names of pictures, as the row has them; one of bytes alone has none."""
    return {name for one in shown if (name := _name_of(one))}


def _media_in(key: str, value: Any, names: set[str]) -> str:
    """Tell whether a value looks like a "picture" or like "moving" ones; of neither it is ""."""
    waiting = [(key.rsplit(".", 1)[-1], value)]
    while waiting:
        key, one = waiting.pop()
        named = _NAME.fullmatch(key.strip().lower().replace("-", "_"))
        if named and named[1] == "media" and (inner := _media_in("", one, names)):
            return inner
        known = names if named is None or named[2] != "name" else {*names, *_short(names)}
        if named and _may_hold_media(one, known):
            return "moving" if named[1] in ("video", "audio", "speech") else "picture"
        if isinstance(one, Mapping) and one and not {*one} - {"bytes", "path"}:
            return "picture"  # as `datasets` keeps them
        if isinstance(one, Mapping):
            waiting += [(str(inner), held) for inner, held in one.items()]
        elif isinstance(one, list | tuple):
            waiting += [("", held) for held in one]
        elif isinstance(one, str):
            if what := media_in_text(one, {*names, *_short(names)}):
                return what
        elif isinstance(one, Image.Image) or (isinstance(one, bytes) and len(one) > _SUFFIX):
            return "picture"
    return ""


def media_in_text(text: str, names: Iterable[str] = ()) -> str:
    """Tell what a text looks like that is not in `names`: "picture", "moving" or neither, ""."""
    if _DATA_URL.match(text) or _is_base64(text):
        return "moving" if text[:11].lower() in ("data:video/", "data:audio/") else "picture"
    if len(text) > _LONGEST or text in names:
        return ""
    several = [one for one in _BETWEEN.split(text) if one] or [""]
    ends = [_suffix(one) for one in (several if len(several) > 1 else [text.strip("[]\"' \n")])]
    if all(map(_MOVING.fullmatch, ends)):
        return "moving"
    left = [e for e, one in zip(ends, several, strict=True) if one not in names]
    return "picture" if left and all(map(_STILL.fullmatch, ends)) else ""


def _suffix(name: str) -> str:
    return PurePosixPath(re.split(r"[?#]", name)[0][-_SUFFIX:].strip()).suffix


def _short(names: Iterable[str]) -> set[str]:
    """The names without their folders."""
    return {PurePosixPath(name).name for name in names}


def _may_hold_media(value: Any, names: set[str]) -> bool:
    """Tell whether there is anything that could be a picture: numbers, say, could not."""
    if isinstance(value, list | tuple):
        return any(_may_hold_media(one, names) for one in value)
    if isinstance(value, str):
        return bool(value.strip()) and value not in names
    return isinstance(value, bytes | Image.Image) or (isinstance(value, Mapping) and bool(value))


def _is_base64(text: str) -> bool:
    """Tell whether a text is a picture in base64: no name is so long."""
    return len(text) > 255 and text.startswith(_BASE64)


def _is_nothing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return not any(one is not None for one in value.values())
    return value is None or (isinstance(value, str | bytes | list | tuple) and not value)


def _name_of(held: Any) -> str:
    name = held.get("path") if isinstance(held, Mapping) else held
    return name if isinstance(name, str) else ""


def _decoded(url: str) -> bytes:
    """Decode a data URL."""
    head, _, content = url.partition(",")
    try:
        if not head.lower().endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the data URL {brief(url)} cannot be decoded: {error}") from error


def _cached(content: bytes, suffix: str = "") -> Path:
    """Write a picture into the cache, unless it is there."""
    if not content:
        raise DataError("a picture inside the row holds no bytes")
    digest = hashlib.sha256(content).hexdigest()
    name = digest + (suffix if suffix.isascii() and suffix[1:].isalnum() else "")
    path = cache_folder() / "pictures" / digest[:2] / name
    if not is_regular(path):
        atomic_write(path, content)
    return path
