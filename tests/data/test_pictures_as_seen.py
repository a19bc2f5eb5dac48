"""A model sees what people see: turned, laid on white, scaled to 8 bits, the same everywhere."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, features
from transformers.image_utils import load_image

from undrift.data.doctor import examine
from undrift.data.picture_decoding import as_seen, open_picture, survey
from undrift.errors import DataError

ORIENTATION = 0x0112
SOURCE = Path(__file__).parents[2] / "src" / "undrift"


def half(size=(64, 32)) -> Image.Image:
    """Red on the left, blue on the right, and a green corner: no turn leaves it as it is."""
    picture = Image.new("RGB", size, "blue")
    picture.paste("red", (0, 0, size[0] // 2, size[1]))
    picture.paste("lime", (0, 0, size[0] // 4, size[1] // 2))
    return picture


def turned(path: Path, orientation: int, **options) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    half().save(path, exif=exif, **options)
    return path


def png(path: Path, bits: int, kind: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> Path:
    """Write a PNG that Pillow cannot write: of 2, 4 or 16 bits a sample, with any chunks."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    width = len(rows[0]) * 8 // bits // channels
    data = b"\x89PNG\r\n\x1a\n"
    header = (b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    for name, content in (header, *chunks, pixels, (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + check
    path.write_bytes(data)
    return path


def assert_alike(one: Image.Image, other: Image.Image, most: int = 0) -> None:
    assert (one.mode, one.size) == (other.mode, other.size) == ("RGB", other.size)
    assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= most


# ---------------------------------------------------------------- turned

KINDS = {
    "jpg": {"quality": 95}, "png": {}, "webp": {"lossless": True}, "tiff": {},
    "avif": {"quality": 100},
}  # fmt: skip


@pytest.mark.foreign("4.1")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(kind, orientation, tmp_path):
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = turned(tmp_path / f"x.{kind}", orientation, **KINDS[kind])
    seen = open_picture(path)
    assert seen.size == ((64, 32) if orientation < 5 else (32, 64))
    assert_alike(seen, load_image(str(path)))
    if orientation > 1:
        assert seen.tobytes() != open_picture(turned(path, 1, **KINDS[kind])).tobytes()


@pytest.mark.foreign("4.1")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_datasets_library_sees_the_same(orientation, tmp_path):
    datasets = pytest.importorskip("datasets")
    path = turned(tmp_path / "x.jpg", orientation, quality=95)
    theirs = datasets.Image().decode_example({"path": str(path), "bytes": None})
    assert_alike(open_picture(path), theirs.convert("RGB"))


@pytest.mark.foreign("4.1")
def test_xmp_and_imagemagicks_text_turn_a_picture_as_well(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    half().save(tmp_path / "x.jpg", xmp=xmp)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    raw = exif.tobytes()
    text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    rows = [row.tobytes() for row in np.asarray(half())]
    chunk = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    png(tmp_path / "x.png", 8, 2, rows, chunk)
    for name in ("x.jpg", "x.png"):
        assert open_picture(tmp_path / name).size == (32, 64)


@pytest.mark.foreign("4.1")
def test_thumbnail_survey_and_a_picture_in_memory_agree_with_what_is_opened(tmp_path):
    path = turned(tmp_path / "x.jpg", 6, quality=95)
    seen = open_picture(path)
    assert_alike(open_picture(path, 64), seen)
    assert survey([path]).sizes == {path: (32, 64)}
    with Image.open(path) as picture:
        assert_alike(as_seen(picture), seen)
        assert picture.size == (64, 32)  # what is given stays as it was
    again = as_seen(seen)
    assert_alike(again, seen)
    assert_alike(load_image(again), seen)  # a processor that turns pictures finds nothing to turn


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"])
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_a_damaged_orientation_does_not_cost_the_picture(exif, tmp_path):
    half().save(tmp_path / "x.jpg", exif=exif)
    assert open_picture(tmp_path / "x.jpg").size == (64, 32)
    for orientation in (0, 9, 77):
        assert open_picture(turned(tmp_path / "y.jpg", orientation)).size == (64, 32)


# ---------------------------------------------------------------- laid on white


def ink() -> Image.Image:
    """Black on transparent black: its left half is opaque, its right a ramp of 16 alphas."""
    alpha = np.full((16, 32), 255, np.uint8)
    alpha[:, 16:] = np.arange(0, 256, 17, dtype=np.uint8)
    return Image.merge("RGBA", [*Image.new("RGB", (32, 16)).split(), Image.fromarray(alpha)])


@pytest.mark.foreign("4.2")
@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [("RGBA", "x.png", {}), ("RGBA", "x.webp", {"lossless": True}), ("RGBA", "x.tiff", {}),
     ("RGBA", "x.ico", {"sizes": [(32, 16)]}), ("LA", "x.png", {}), ("LA", "x.tiff", {}),
     ("PA", "x.tiff", {})],
)  # fmt: skip
def test_what_is_transparent_lies_on_white(mode, name, options, tmp_path):
    ink().convert(mode).save(tmp_path / name, **options)
    seen = open_picture(tmp_path / name)
    expected = 255 - np.asarray(ink().getchannel("A"), dtype=np.int32)
    assert (seen.mode, seen.size) == ("RGB", (32, 16))
    assert np.abs(np.asarray(seen, dtype=np.int32) - expected[..., None]).max() <= 1


@pytest.mark.foreign("4.2")
@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_colours_lie_on_white(mode):
    seen = as_seen(ink().convert("LA" if mode == "La" else "RGBA").convert(mode))
    expected = 255 - np.asarray(ink().getchannel("A"), dtype=np.int32)
    assert np.abs(np.asarray(seen, dtype=np.int32) - expected[..., None]).max() <= 1


@pytest.mark.foreign("4.2")
@pytest.mark.parametrize("kind", ["png", "gif"])
@pytest.mark.parametrize("key", [0, bytes([0, 255, 128])])
def test_a_palette_with_transparent_colours_lies_on_white(key, kind, tmp_path):
    if kind == "gif" and isinstance(key, bytes):
        key = 0  # a GIF knows one transparent colour
    picture = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
    picture.save(tmp_path / f"x.{kind}", transparency=key)
    seen = open_picture(tmp_path / f"x.{kind}")
    last = (0, 0, 200) if isinstance(key, int) else (127, 127, 227)
    assert [seen.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (200, 0, 0), last]


@pytest.mark.foreign("4.2")
@pytest.mark.parametrize(
    ("bits", "kind", "row", "key", "seen"),
    [
        (1, 0, b"\x0f", ">H 0", [255] * 8),
        (1, 0, b"\x0f", ">H 1", [0] * 4 + [255] * 4),
        (2, 0, b"\x1b", ">H 2", [0, 85, 255, 255]),
        (2, 0, b"\x1b", ">H 0", [255, 85, 170, 255]),
        (4, 0, b"\x3c", ">H 3", [255, 204]),
        (8, 0, b"\x03\x30", ">H 3", [255, 48]),
        (16, 0, b"\x12\x34\x12\x35", ">H 4660", [255, 18]),
        (8, 2, b"\1\2\3\1\2\4", ">HHH 1 2 3", [255, (1, 2, 4)]),
        (16, 2, b"\1\0\2\0\3\0\1\0\2\0\4\0", ">HHH 256 512 768", [255, (1, 2, 4)]),
    ],
)  # fmt: skip
def test_the_one_transparent_colour_of_a_png_is_white(bits, kind, row, key, seen, tmp_path):
    form, *numbers = key.split()
    chunk = (b"tRNS", struct.pack(form, *map(int, numbers)))
    picture = open_picture(png(tmp_path / "x.png", bits, kind, [row], chunk))
    found = [picture.getpixel((x, 0)) for x in range(picture.width)]
    assert found == [each if isinstance(each, tuple) else (each,) * 3 for each in seen]


@pytest.mark.foreign("4.2")
def test_a_picture_that_could_be_transparent_and_is_not_stays_as_it_is(tmp_path):
    half().convert("RGBA").save(tmp_path / "x.png")
    assert_alike(open_picture(tmp_path / "x.png"), half())
    assert not survey([tmp_path / "x.png"]).changes


# ---------------------------------------------------------------- scaled


def ramp(kind: str = "<u2", most: float = 65535) -> np.ndarray:
    return np.tile(np.linspace(0, most, 256).astype(kind), (8, 1))


@pytest.mark.foreign("4.3")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.png", "<u2"), ("x.tiff", "<u2"), ("b.tiff", ">u2"), ("x.pgm", "<u2"), ("x.jp2", "<u2")],
)
def test_sixteen_bits_of_grey_are_scaled_by_the_range_of_their_type(name, kind, tmp_path):
    Image.fromarray(ramp(kind)).save(tmp_path / name)
    seen = np.asarray(open_picture(tmp_path / name))
    assert (seen == np.arange(256)[None, :, None]).all()  # 65535 / 255 is whole: no rounding


@pytest.mark.foreign("4.3")
def test_a_dark_picture_stays_dark_and_the_pixels_are_rounded(tmp_path):
    Image.fromarray(np.array([[0, 128, 129, 300, 1000, 65535]], "<u2")).save(tmp_path / "x.png")
    seen = open_picture(tmp_path / "x.png")
    assert [seen.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 1, 1, 4, 255]


@pytest.mark.foreign("4.3")
def test_twelve_bits_and_white_that_is_zero_are_read_as_a_tiff_says(tmp_path):
    def tiff(name: str, bits: int, meaning: int, data: bytes, width: int) -> Path:
        tags = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, meaning),
                (273, 4, 0), (277, 3, 1), (278, 3, 1), (279, 4, len(data))]  # fmt: skip
        start = 8 + 2 + 12 * len(tags) + 4
        tags = [(tag, kind, start if tag == 273 else value) for tag, kind, value in tags]
        entries = b"".join(
            struct.pack("<HHI", tag, kind, 1) + struct.pack("<H2x" if kind == 3 else "<I", value)
            for tag, kind, value in tags
        )
        head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
        (tmp_path / name).write_bytes(head + data)
        return tmp_path / name

    twelve = open_picture(tiff("12.tiff", 12, 1, b"\xff\xf8\x00", 2))  # 4095, 2048
    assert [twelve.getpixel((x, 0))[0] for x in range(2)] == [255, 128]
    negative = open_picture(tiff("0.tiff", 16, 0, b"\0\0\xff\xff\0\x80", 3))
    assert [negative.getpixel((x, 0))[0] for x in range(3)] == [255, 0, 127]


@pytest.mark.foreign("4.3")
def test_floating_point_is_black_to_white_from_0_to_1(tmp_path):
    for name in ("x.tiff", "x.pfm"):
        Image.fromarray(ramp("<f4", 1.0)).save(tmp_path / name)
        seen = np.asarray(open_picture(tmp_path / name))
        assert (seen == np.arange(256)[None, :, None]).all()


@pytest.mark.foreign("4.3")
@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (ramp("<f4", 255.0), "floating-point numbers go from 0 to 255, .*save it with 8 or 16"),
        (ramp("<f4", 1.0) - 0.5, "from -0.5 to 0.5"),
        (np.full((2, 2), np.nan, "<f4"), "from nan to nan"),
        (ramp("<i4", 2**31 - 1), "nothing says which .* is white; save it with 8 bits"),
        (ramp("<i4", 65535), "nothing says which"),
    ],
)
def test_where_white_is_not_known_a_line_says_so(picture, said, tmp_path):
    Image.fromarray(picture).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=rf"cannot read the picture .*x.tiff: .*{said}") as caught:
        open_picture(tmp_path / "x.tiff")
    assert "damaged" not in str(caught.value) and "\n" not in str(caught.value)
    assert "is white" in survey([tmp_path / "x.tiff"]).unreadable[tmp_path / "x.tiff"] or (
        "to 1 for white" in survey([tmp_path / "x.tiff"]).unreadable[tmp_path / "x.tiff"]
    )
    with pytest.raises(DataError):
        as_seen(Image.fromarray(picture))


# ---------------------------------------------------------------- all of them

COLOUR = {
    "RGB": 0, "RGBX": 0, "CMYK": 0, "YCbCr": 3, "HSV": 6, "LAB": 24, "P": 0, "RGBA": 0, "RGBa": 0,
}  # fmt: skip


@pytest.mark.foreign("4.2")
@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_is_seen_or_refused(mode):
    shown = half() if mode in COLOUR else half().convert("L").convert("RGB")
    plain = shown.convert("LA").convert(mode) if mode in ("La", "PA") else None
    if mode.startswith("I;16"):
        kind = ">u2" if mode.endswith("B") else "<u2"
        grey = np.asarray(shown.convert("L")).astype(kind) * 257
        plain = Image.frombytes(mode, shown.size, grey.astype(kind).tobytes())
    if mode == "I":
        with pytest.raises(DataError, match="is white"):
            as_seen(shown.convert("L").convert("I"))
        return
    if mode == "F":
        plain = Image.fromarray(np.asarray(shown.convert("L"), np.float32) / 255)
    if mode == "1":
        shown = Image.frombytes("L", (2, 1), b"\0\xff").convert("RGB")
        plain = shown.convert("1")
    assert_alike(as_seen(plain or shown.convert(mode)), shown, COLOUR.get(mode, 0))


def frames(path: Path, **options) -> Path:
    half().save(path, save_all=True, append_images=[Image.new("RGB", (64, 32), "white")], **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.gif", {}), ("x.png", {}), ("x.webp", {"lossless": True}), ("x.tiff", {}),
     ("x.mpo", {"quality": 95})],
)  # fmt: skip
def test_of_several_frames_the_first_is_seen_and_that_is_told(name, options, tmp_path):
    path = frames(tmp_path / name, **options)
    half().save(tmp_path / f"one-{name.replace('mpo', 'jpg')}", **options)
    one = tmp_path / f"one-{name.replace('mpo', 'jpg')}"
    assert_alike(open_picture(path), open_picture(one))
    assert survey([path, one]).changes == {path: ("first of several",)}


def test_the_survey_tells_what_was_done(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    ink().save(tmp_path / "both.png", exif=exif)
    Image.fromarray(ramp()).save(tmp_path / "deep.png")
    paths = [turned(tmp_path / "x.jpg", 3), turned(tmp_path / "x.tiff", 6), tmp_path / "both.png",
             tmp_path / "deep.png", turned(tmp_path / "y.jpg", 1)]  # fmt: skip
    assert survey(paths, workers=2).changes == {
        paths[0]: ("turned",),
        paths[1]: ("turned",),
        paths[2]: ("flattened", "turned"),
        paths[3]: ("scaled",),
    }


def test_a_plain_picture_is_what_pillow_makes_of_it(tmp_path):
    noise = Image.effect_noise((64, 48), 80)
    for mode, name in (("RGB", "x.jpg"), ("L", "x.png"), ("CMYK", "c.jpg"), ("RGB", "x.webp")):
        noise.convert(mode).save(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert_alike(open_picture(tmp_path / name), picture.convert("RGB"))


def test_nothing_else_opens_a_picture_of_a_user():
    """Only the pocket does, of what it draws itself."""
    own = {"data/picture_decoding.py", "data/pocket/raw_data.py", "data/pocket/tasks.py"}
    files = [path for path in SOURCE.rglob("*.py") if "Image.open(" in path.read_text()]
    assert {path.relative_to(SOURCE).as_posix() for path in files} == own


def test_bytes_are_seen_like_their_file(tmp_path):
    path = turned(tmp_path / "x.jpg", 5)
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        assert_alike(as_seen(picture), open_picture(path))


@pytest.mark.foreign("4.1")
@pytest.mark.foreign("4.2")
@pytest.mark.foreign("4.3")
def test_the_doctor_counts_what_was_turned_flattened_scaled_and_left_out(tmp_path):
    task = tmp_path / "bills"
    task.mkdir()
    turned(task / "phone.jpg", 6)
    ink().resize((64, 64)).save(task / "logo.png")
    Image.fromarray(np.tile(ramp(), (8, 1))).save(task / "scan.tiff")
    frames(task / "moving.gif")
    Image.fromarray(ramp("<i4")).save(task / "numbers.tiff")
    half().save(task / "plain.png")
    names = ["phone.jpg", "logo.png", "scan.tiff", "moving.gif", "numbers.tiff", "plain.png"]
    rows = [
        {"question_id": n, "image": name, "text": f"What is number {n}?", "answer": "a bill"}
        for n, name in enumerate([*names, "phone.jpg"])
    ]
    (task / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (task / "test.jsonl").write_text(json.dumps({**rows[0], "text": "And what is this?"}))
    report = examine("folder", tmp_path)
    found = {f.check: f for f in report.findings}
    assert [(f.check, f.message) for f in report.findings if f.severity == "error"] == [
        ("unreadable picture", "1 picture that cannot be opened")
    ]
    for check, name, row, said in (
        ("turned picture", "phone.jpg", 1, "1 picture turned as the camera says"),
        ("transparent picture", "logo.png", 2, "1 picture partly transparent, laid on white"),
        ("deep picture", "scan.tiff", 3, "1 picture of more than 8 bits, scaled to 8"),
        ("several frames", "moving.gif", 4, "1 picture of which the first frame or page is seen"),
    ):
        assert found[check].severity == "note" and found[check].message.startswith(said)
        ((what, _, file, line),) = found[check].items
        assert (Path(what).name, file, line) == (name, task / "train.jsonl", row)
    assert report.sizes[task / "phone.jpg"] == (32, 64)
