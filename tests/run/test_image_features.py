"""Image features are computed once per picture and backbone."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from tests.run.tiny import tiny_llava
from undrift.data.picture_folder import cache_folder
from undrift.errors import DataError
from undrift.run import image_features
from undrift.run.backbone import Backbone
from undrift.run.image_features import FeatureStore


class Encoder:
    def __init__(self):
        self.batches = []

    @property
    def calls(self):
        return [*dict.fromkeys(path for batch in self.batches for path in batch)]

    def __call__(self, paths):
        self.batches.append(paths)
        return torch.stack([torch.full((2, 3), float(path.stem)) for path in paths])


@pytest.fixture
def pictures(tmp_path):
    made = []
    for i in range(5):
        made.append(tmp_path / f"{i}.png")
        Image.new("RGB", (4, 4), (i, i, i)).save(made[-1])
    return made


def test_each_picture_is_encoded_once_in_full_batches(pictures, tmp_path):
    encode = Encoder()
    store = FeatureStore(tmp_path / "kept", encode, batch_size=2)
    told = []
    store.prepare([*pictures[:3], pictures[0]], lambda *now: told.append(now))
    store.prepare(pictures)
    assert encode.batches == [pictures[:2], [pictures[2]] * 2, pictures[3:]]
    assert told == [(2, 3, 2), (3, 3, 1)]
    rows = store.rows([pictures[4], pictures[1]])
    assert store.take(rows)[:, 0, 0].tolist() == [4.0, 1.0]
    assert store.tokens == 2 and store.take(rows).dtype == torch.float16


def test_the_digest_names_the_features_of_what_was_prepared(pictures, tmp_path):
    def digest(of, encode):
        store = FeatureStore(tmp_path / "kept", encode)
        store.prepare(of)
        return store.digest()

    some = digest(pictures[:2], Encoder())
    every = digest(pictures, Encoder())
    assert digest(pictures[1::-1], Encoder()) == some != every  # other pictures' files are read too
    shutil.rmtree(tmp_path / "kept")
    assert digest(pictures[:2], lambda paths: Encoder()(paths) + 1) != some


def test_kept_on_disk_by_content(pictures, tmp_path):
    FeatureStore(tmp_path / "kept", Encoder()).prepare(pictures[:2])
    FeatureStore(tmp_path / "kept", Encoder()).prepare(pictures[2:])
    copy = shutil.copy(pictures[3], tmp_path / "another-name.png")
    again = Encoder()
    store = FeatureStore(tmp_path / "kept", again)
    store.prepare([tmp_path / copy, *pictures])
    assert again.calls == []
    assert store.take(store.rows([tmp_path / copy]))[0, 0, 0] == 3.0
    Image.new("RGB", (4, 4), (99, 0, 0)).save(pictures[3])
    changed = FeatureStore(tmp_path / "kept", again)
    changed.prepare(pictures)
    assert again.calls == [pictures[3]]


def test_a_damaged_file_is_computed_again(pictures, tmp_path):
    FeatureStore(tmp_path / "kept", Encoder()).prepare(pictures)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(b"half a file")
    again = Encoder()
    FeatureStore(tmp_path / "kept", again).prepare(pictures)
    assert again.calls == pictures


@pytest.mark.foreign("4.1")
def test_features_of_pictures_that_were_read_otherwise_are_left_alone(
    pictures, tmp_path, monkeypatch
):
    FeatureStore(tmp_path / "kept", Encoder()).prepare(pictures)
    (file,) = (tmp_path / "kept").iterdir()
    old = file.rename(file.with_name(file.name.partition("-")[2]))  # as they were called before
    before, again, later = old.read_bytes(), Encoder(), Encoder()
    FeatureStore(tmp_path / "kept", again).prepare(pictures)
    monkeypatch.setattr(image_features, "READING", image_features.READING + 1)
    FeatureStore(tmp_path / "kept", later).prepare(pictures)
    assert again.calls == later.calls == pictures
    assert old.read_bytes() == before and len(list((tmp_path / "kept").iterdir())) == 3


def test_features_that_do_not_fit_half_precision_are_refused(pictures, tmp_path):
    store = FeatureStore(tmp_path / "kept", lambda paths: torch.full((len(paths), 2, 3), 1e9))
    with pytest.raises(DataError, match="half precision"):
        store.prepare(pictures)


def test_asking_before_preparing(tmp_path):
    with pytest.raises(DataError, match=r"FeatureStore\.prepare"):
        FeatureStore(tmp_path, Encoder()).take([0])


def test_the_backbone_keeps_its_features_under_its_fingerprint(backbone, tiny):
    backbone.prepare(tiny.tasks[0].train[0].images)
    (folder,) = (cache_folder() / "features").iterdir()
    assert folder.name == backbone.fingerprint[:16]
    assert [place.name for place in folder.iterdir()] == [f"cpu-{torch.get_num_threads()}"]


def test_fingerprint_sees_weights_and_template_not_the_name(backbone):
    model, processor = tiny_llava()
    same = Backbone.of("another name", model, processor)
    assert same.fingerprint == backbone.fingerprint
    model, processor = tiny_llava(seed=1)
    assert Backbone.of("x", model, processor).fingerprint != backbone.fingerprint
    model, processor = tiny_llava()
    processor.chat_template += " "
    assert Backbone.of("x", model, processor).fingerprint != backbone.fingerprint
    model, processor = tiny_llava()
    processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    assert Backbone.of("x", model, processor).fingerprint != backbone.fingerprint
