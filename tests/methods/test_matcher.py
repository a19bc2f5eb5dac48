"""The task matcher: exact means, unseen tasks, missing modalities, the oracle, the count."""

from __future__ import annotations

import pytest
import torch

from tests.methods.matching import WEIGHTS, chosen, random_features
from tests.precision import assert_same
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.methods.shared.prompt_features import Features
from undrift.methods.shared.task_matcher import Matching, TaskMatcher

SIZE = 8


def learned(*tasks: Features, **options) -> TaskMatcher:
    plain = {"weights": WEIGHTS, "tau": 0.1, "centred": False}
    matcher = TaskMatcher(Matching(**{**plain, **options}), SIZE)
    for features in tasks:
        matcher.start_task()
        matcher.see(features)
        matcher.end_task()
    return matcher


def axes(image: int | None, text: int | None) -> Features:
    """One prompt whose features are axes of the space; None where it lacks the modality."""
    eye, zero = torch.eye(SIZE), torch.zeros(SIZE)
    places = {"image": image, "text": text}
    of = {name: (zero if at is None else eye[at])[None] for name, at in places.items()}
    return Features(of, {name: torch.tensor([at is not None]) for name, at in places.items()})


def test_a_prototype_is_the_exact_mean_however_the_examples_came():
    whole = random_features(1000, SIZE)
    matcher = learned(random_features(3, SIZE, seed=1))
    matcher.start_task()
    for start in range(0, 1000, 7):
        matcher.see(chosen(whole, slice(start, start + 7)))
    matcher.end_task()
    for name in WEIGHTS:
        there = whole.present[name]
        mean = whole.of[name][there].double().mean(0)
        assert int(matcher.counts[name][1]) == int(there.sum()) < 1000
        assert_same(matcher.prototypes(name)[1], mean, len(mean), dtype=torch.float64, scale=1.0)


def test_the_first_example_is_the_prototype_there_is_no_random_start():
    one = random_features(1, SIZE)
    matcher = learned(one)
    torch.testing.assert_close(matcher.prototypes("text")[0], one.of["text"][0].double())


def test_a_task_that_is_being_learned_has_no_share_until_it_ends():
    matcher = learned(axes(0, 0), axes(1, 1))
    matcher.start_task()
    matcher.see(axes(2, 2))
    assert matcher.match(axes(2, 2)).shape == (1, 2)
    matcher.end_task()
    assert matcher.match(axes(2, 2)).argmax() == 2


def test_weights_are_the_softmax_of_the_mean_cosines():
    matcher = learned(axes(0, 0), axes(1, 0))
    want = torch.tensor([[1.0, 0.5]]) / 0.1
    torch.testing.assert_close(matcher.match(axes(0, 0)), want.softmax(1))
    sharp = learned(axes(0, 0), axes(1, 0), choice="argmax")
    assert sharp.match(axes(0, 0)).tolist() == [[1.0, 0.0]]


def test_what_all_prompts_share_makes_weights_alike_unless_cosines_are_centred():
    """A large common part, as the words of a chat template are, and a small one of each task."""

    def prompt(task: int) -> Features:
        text = 10 * torch.eye(SIZE)[:1] + torch.eye(SIZE)[task : task + 1]
        unit = torch.nn.functional.normalize(text, dim=1)
        none = torch.zeros(1, dtype=torch.bool)
        return Features({"image": 0 * unit, "text": unit}, {"image": none, "text": ~none})

    tasks = [prompt(task) for task in (1, 2, 3)]
    plain, centred = (learned(*tasks, centred=option) for option in (False, True))
    for task, asked in enumerate(tasks):
        assert plain.match(asked).argmax() == centred.match(asked).argmax() == task
        assert plain.match(asked)[0, task] < 0.4 and centred.match(asked)[0, task] > 0.99
    mean = centred.prototypes("text").mean(0)
    shifted = [f.of["text"][0].double() - mean for f in tasks]
    want = torch.stack([torch.cosine_similarity(shifted[0], each, dim=0) for each in shifted])
    torch.testing.assert_close(centred.scores(tasks[0])[0], want.float())
    assert learned(tasks[0], centred=True).match(tasks[1]).tolist() == [[1.0]]


def test_a_missing_modality_is_weighed_anew_and_another_sample_never_decides():
    matcher = learned(axes(0, 0), axes(1, 1))
    assert matcher.scores(axes(None, 1)).tolist() == [[0.0, 1.0]]
    assert matcher.scores(axes(0, None)).tolist() == [[1.0, 0.0]]
    assert matcher.match(axes(None, None)).tolist() == [[0.5, 0.5]]


def test_a_task_without_pictures_is_compared_by_its_texts():
    matcher = learned(axes(None, 0), axes(1, 1))
    assert matcher.scores(axes(2, 0)).tolist() == [[1.0, 0.0]]
    weights = matcher.match(axes(2, None))  # only pictures: the first task has nothing to show
    assert weights.tolist() == [[0.0, 1.0]]


def test_the_oracle_is_told_and_needs_to_be():
    matcher = learned(axes(0, 0), axes(1, 1), oracle=True)
    with pytest.raises(ConfigError, match="needs to be told"):
        matcher.match(axes(0, 0))
    assert matcher.match(axes(0, 0), asked=2).tolist() == [[0.0, 1.0]]
    assert matcher.match(axes(0, 0), asked=3).tolist() == [[1.0, 0.0]]  # not learned yet


def test_identification_is_counted_where_the_task_is_known():
    matcher = learned(axes(0, 0), axes(1, 1), oracle=True)
    for prompt in (axes(0, 0), axes(0, None), axes(1, 1)):
        matcher.match(prompt, asked=1)
    assert matcher.identified.facts() == {"identified": pytest.approx(200 / 3), "prompts": 3}
    matcher.match(axes(0, 0), asked=3)
    assert matcher.identified.facts() == {}


def test_saved_inside_a_task_it_goes_on_bit_for_bit(tmp_path):
    straight = learned(random_features(9, SIZE, seed=1))
    straight.start_task()
    straight.see(random_features(9, SIZE, seed=2))
    straight.state().save(tmp_path, "matcher")
    other = learned(random_features(4, SIZE, seed=5), random_features(4, SIZE, seed=6))
    other.restore(other.state().read(tmp_path, "matcher"))
    for matcher in (straight, other):
        matcher.see(random_features(9, SIZE, seed=3))
        matcher.end_task()
    want, got = straight.state().tensors, other.state().tensors
    assert want.keys() == got.keys() and other.tasks == 2
    assert all(torch.equal(want[key], got[key]) for key in want)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    matcher = learned(random_features(4, SIZE))
    with pytest.raises(RunDirError, match="is missing"):
        matcher.state().read(tmp_path, "matcher")
    matcher.state().save(tmp_path, "matcher")
    saved = matcher.state().read(tmp_path, "matcher")
    with pytest.raises(AdapterMismatch, match="of another method, other options"):
        TaskMatcher(matcher.matching, SIZE + 1).restore(saved)
    with pytest.raises(AdapterMismatch, match="of another method, other options"):
        TaskMatcher(Matching({"text": 1.0}, 0.1), SIZE).restore(saved)
