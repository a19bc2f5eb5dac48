from __future__ import annotations

from undrift.report.protocol import (
    NOT_RECORDED,
    NOT_TRAINED,
    differences,
    facts,
    made_with,
    untrained,
)
from undrift.rundir.files import short_hash

MANIFEST = {
    "method": "same",
    "benchmark": "coin",
    "order": ["VQAv2", "REC"],
    "seed": 3,
    "settings": {"rank": 2, "top_k": None, "learning_rate": 0.01},
    "protocol": {
        "tasks": [{"name": "REC", "train": 9, "scorer": "coin/Grounding"}],
        "prompt": "USER: ...",
        "pictures": {"size": {"height": 336}, "do_pad": True, "image_mean": [0.5, 0.4]},
        "training": {"global_batch": 48},
    },
    "data": {"fingerprint": "abc", "licence": "free"},
    "weights": {"fingerprint": "0123456789abcdef", "parameters": 7},
    "commit": "e719b59",
    "versions": {"torch": "2.13"},
    "seconds": {"train": 9.0},
}


def test_a_manifest_is_flattened():
    assert facts(MANIFEST) == {
        "benchmark": "coin",
        "order": "VQAv2, REC",
        "seed": "3",
        "data.fingerprint": "abc",
        "weights.fingerprint": "0123456789ab",
        "task.REC.train": "9",
        "task.REC.scorer": "coin/Grounding",
        "prompt_hash": short_hash("USER: ..."),
        "pictures.size.height": "336",
        "pictures.do_pad": "True",
        "pictures.image_mean": "0.5, 0.4",
        "training.global_batch": "48",
        "training.learning_rate": "0.01",
        "method.rank": "2",
        "method.top_k": "none",
    }
    assert made_with(MANIFEST) == {"commit": "e719b59", "versions.torch": "2.13"}


def test_what_an_older_manifest_lacks_is_not_recorded():
    older = {**MANIFEST, "protocol": {"prompt": "USER: ..."}}
    found = {d.key: d.values for d in differences([facts(MANIFEST), facts(older)])}
    assert found["training.global_batch"] == ["48", NOT_RECORDED]
    assert "prompt_hash" not in found  # an older one is compared by its text
    assert facts({}) == {} and made_with({}) == {}


def test_options_are_compared_between_the_methods_that_have_them():
    sides = [{"method.rank": "2", "method.mu": "0.1"}, {"method.rank": "2"}, {"method.rank": "4"}]
    assert [(d.key, d.values) for d in differences(sides)] == [("method.rank", ["2", "2", "4"])]


def test_how_one_trains_does_not_matter_to_what_is_not_trained():
    trained = facts(MANIFEST)
    zero_shot = untrained(facts({**MANIFEST, "seed": 0, "settings": {"rank": 8}}))
    assert zero_shot["seed"] == zero_shot["method.rank"] == NOT_TRAINED
    assert zero_shot["training.global_batch"] == NOT_TRAINED
    assert zero_shot["prompt_hash"] == trained["prompt_hash"]
    found = {d.key for d in differences([trained, zero_shot])}
    assert found == {"training.learning_rate"}
