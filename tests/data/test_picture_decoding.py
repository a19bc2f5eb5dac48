"""Pictures that cannot be used: each is refused with a reason, the large ones undecoded."""

from __future__ import annotations

import warnings
from time import sleep

import pytest
from PIL import Image

from tests.data.damaged import bomb, cut
from undrift.data import picture_decoding
from undrift.data.picture_decoding import open_picture, survey
from undrift.errors import DataError


def noise(path, **options):
    Image.effect_noise((64, 48), 80).convert("RGB").save(path, **options)
    return path


@pytest.fixture
def bad(tmp_path):
    """Pictures with something wrong, and what is said of them."""
    text, folder = tmp_path / "text.jpg", tmp_path / "folder.jpg"
    text.write_text("<html>404</html>")
    folder.mkdir()
    damaged = noise(tmp_path / "damaged.png")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged.write_bytes(data)
    return {
        cut(noise(tmp_path / "cut.jpg"), 0.6): "truncated.*damaged, get it again",
        cut(noise(tmp_path / "cut.png"), 0.6): "truncated.*damaged, get it again",
        damaged: "damaged, get it again",
        bomb(tmp_path / "bomb.png", 30_000, 30_000): "30000 x 30000 pixels are more than the "
        "89,478,485 that are opened; make it smaller",
        bomb(tmp_path / "over.png", 9460, 9460): "9460 x 9460 pixels are more",
        text: "no picture, or of a kind that Pillow does not know",
        folder: "directory",
        tmp_path / "absent.jpg": "No such file",
    }


def test_each_is_refused_with_its_reason(bad):
    for path, reason in bad.items():
        with pytest.raises(DataError, match=rf"cannot read the picture {path}: .*{reason}"):
            open_picture(path)


def test_only_the_unreadable_are_returned(bad, tmp_path):
    good = [noise(tmp_path / f"{n}.png") for n in range(70)]
    seen = []
    paths = [*good[:35], *bad, *good, *bad]
    found = survey(paths, workers=3, progress=lambda *now: seen.append(now))
    assert found.unreadable.keys() == bad.keys()
    assert found.sizes == dict.fromkeys(good, (64, 48))
    assert seen[-1] == (78, 78) and seen == sorted(seen) and len(seen) > 1
    assert survey(paths).unreadable == found.unreadable
    assert survey(good).unreadable == survey([]).unreadable == {}


def test_a_stop_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(picture_decoding, "_opened", lambda _: opened.append(sleep(0.002)) or "x")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey([tmp_path / str(n) for n in range(960)], workers=1, progress=stop)
    assert len(opened) < 960


def test_nothing_is_decoded_of_a_picture_that_is_too_large(tmp_path, monkeypatch):
    path = noise(tmp_path / "x.jpg")
    monkeypatch.setattr(picture_decoding, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="64 x 48 pixels are more than the 100 that"):
        open_picture(path)


def test_pillow_warns_of_none_that_is_opened_and_keeps_its_own_limit(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    assert limit == picture_decoding.MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether warnings are errors or not, it is refused
        over = survey([bomb(tmp_path / "x.png", 9460, 9460)]).unreadable
        huge = survey([bomb(tmp_path / "y.png", 30_000, 30_000)]).unreadable
    assert "9460 x 9460" in next(iter(over.values()))
    assert "30000 x 30000" in next(iter(huge.values()))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_a_picture_of_any_mode_becomes_rgb(tmp_path, mode):
    kind = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (3, 2)).save(tmp_path / f"x.{kind}")
    opened = open_picture(tmp_path / f"x.{kind}")
    assert (opened.mode, opened.size) == ("RGB", (3, 2))


def test_a_open_picture_is_turned_as_the_camera_says_and_carries_nothing_along(tmp_path):
    wide = Image.new("RGB", (800, 400), "blue")
    wide.paste("red", (0, 0, 400, 400))  # on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    wide.save(tmp_path / "turned.jpg", exif=exif, icc_profile=b"colours" * 5000, quality=95)
    small = open_picture(tmp_path / "turned.jpg", 160)
    assert small.size == (80, 160) and not small.info
    top, bottom = small.getpixel((40, 10)), small.getpixel((40, 150))
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]  # left becomes top


def test_a_open_picture_of_every_mode(tmp_path):
    for mode in ("1", "L", "P", "RGBA", "I;16"):
        Image.new(mode, (300, 30)).save(tmp_path / "some.png")
        small = open_picture(tmp_path / "some.png", 160)
        assert (small.mode, small.size) == ("RGB", (160, 16))


def test_a_open_picture_is_refused_as_a_large_one_is(bad):
    for path, reason in bad.items():
        with pytest.raises(DataError, match=rf"cannot read the picture {path}: .*{reason}"):
            open_picture(path, 160)
