"""nearlora: a LoRA a task, found by what prompts look like; the base where no task is near."""

from __future__ import annotations

import pytest
import torch

from tests.methods.pooled import answered, learned, mixture, prompt, seen_and_said
from tests.methods.training import SMALL, attached
from undrift.errors import AdapterMismatch, ConfigError
from undrift.methods.nearlora import NearestTask, NearLora
from undrift.methods.shared.prompt_features import Features
from undrift.methods.shared.state import State
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

SIZE, DAMPING, REACH = 6, 1e-3, 4.0


@pytest.fixture(autouse=True)
def _prompts(monkeypatch):
    answered(monkeypatch)


def looks(n: int, seed: int, *, kind: int | None = None, size: int = SIZE) -> Features:
    """Prompts of one kind: unit vectors around a mean of their own."""
    draw = torch.Generator().manual_seed(seed)
    of = {}
    for name in ("image", "text"):
        mean = torch.randn(size, generator=torch.Generator().manual_seed(1000 + (kind or seed)))
        rows = mean + 0.05 * torch.randn(n, size, generator=draw)
        of[name] = torch.nn.functional.normalize(rows, dim=1)
    return Features(of, {name: torch.ones(n, dtype=torch.bool) for name in of})


def rows(each: Features, at: slice | torch.Tensor) -> Features:
    return Features(*({k: v[at] for k, v in part.items()} for part in (each.of, each.present)))


def matcher(kinds: list[Features], batch: int = 4, **options) -> NearestTask:
    made = NearestTask(SIZE, **{"width": 64, "damping": DAMPING, "reach": REACH, **options})
    for each in kinds:
        made.start_task()
        for start in range(0, len(each.of["text"]), batch):
            made.see(rows(each, slice(start, start + batch)))
        made.end_task()
    return made


KINDS = [looks(n, seed) for n, seed in ((40, 1), (90, 2), (60, 3))]
ASKED = looks(20, 7, kind=2)
OTHER = looks(20, 9)


def covariance(phi: torch.Tensor) -> torch.Tensor:
    return torch.cov(phi.T, correction=0)


def metric(S: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    half = len(S) // 2
    image, text = S.diagonal()[:half].mean(), S.diagonal()[half:].mean()
    floor = damping * torch.cat([image.expand(half), text.expand(half)])
    return torch.linalg.inv(S + floor.diag())


def test_the_distance_is_that_of_the_sum_of_the_tasks_covariances():
    made = matcher(KINDS)
    phi = [made.look(each) for each in KINDS]
    P = metric(sum(map(covariance, phi)))
    x = made.look(ASKED)
    want = torch.stack([((x - p.mean(0)) @ P * (x - p.mean(0))).sum(1) for p in phi], 1)
    torch.testing.assert_close(made.distances(ASKED), want)


def test_no_order_of_the_tasks_matters_and_no_batches():
    forth, back = matcher(KINDS), matcher(KINDS[::-1], batch=7)
    torch.testing.assert_close(forth.distances(ASKED), back.distances(ASKED).flip(1))


def test_the_spread_is_the_mean_distance_of_one_half_in_the_metric_of_the_other():
    made, phi = matcher(KINDS[:1]), matcher([]).look(KINDS[0])
    grains = torch.arange(1.0, 2 * SIZE + 1, dtype=torch.float64).sin()
    halves = (phi @ grains / 1e-3).floor().long() % 2
    one, other = phi[halves == 0], phi[halves == 1]
    assert min(len(one), len(other)) > 5
    apart = other - one.mean(0)
    want = (apart @ metric(covariance(one)) * apart).sum(1).mean()
    torch.testing.assert_close(made.state().tensors["spread"][0], want)


def test_a_prompt_that_comes_again_counts_in_the_same_half():
    once, thrice = matcher(KINDS[:1]), matcher([])
    thrice.start_task()
    for step in range(3):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(step))
        thrice.see(rows(KINDS[0], order))
    thrice.end_task()
    for name in ("spread", "means", "scatter"):
        a, b = once.state().tensors[name], thrice.state().tensors[name]
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_every_kind_is_known_again_and_what_is_like_none_belongs_to_none():
    made = matcher(KINDS)
    for number, each in enumerate(KINDS, 1):
        weights = made.match(each, number)
        assert weights[:, number - 1].all() and weights.sum() == len(weights)
    assert made.identified.facts() == {"identified": 100.0, "prompts": 190}
    assert made.match(ASKED)[:, 1].all()  # the second kind's, which it has not seen
    assert not made.match(OTHER).any()
    endless = matcher(KINDS, reach=float("inf"))
    assert endless.match(OTHER).sum(1).tolist() == [1.0] * 20


def test_a_task_of_a_few_prompts_takes_in_all_that_is_nearest_to_it():
    few = matcher([rows(KINDS[0], slice(0, 1))])
    assert few.match(OTHER).all()
    alike = rows(KINDS[0], torch.zeros(12, dtype=torch.long))  # one prompt, twelve times
    made = matcher([alike])
    assert made.match(alike).all() and not made.match(OTHER).any()


def test_a_task_that_is_not_learned_yet_is_not_counted():
    made = matcher(KINDS[:1])
    made.match(ASKED, 2)
    assert made.identified.facts() == {}


def test_text_alone_tells_tasks_and_a_picture_is_like_none_of_them():
    none = {name: torch.zeros(1, dtype=torch.bool) for name in ("image", "text")}
    text = [Features({"image": 0 * e.of["image"], "text": e.of["text"]}, none) for e in KINDS]
    made = matcher(text)
    assert made.match(text[1])[:, 1].all()
    assert not made.match(KINDS[1]).any()


def test_wide_features_are_shortened_and_still_tell():
    kinds = [looks(60, seed, size=64) for seed in (1, 2)]
    made = NearestTask(64, 32, DAMPING, REACH)
    for each in kinds:
        made.start_task()
        made.see(each)
        made.end_task()
    assert made.state().tensors["means"].shape == (2, 32)
    assert made.match(kinds[0])[:, 0].all() and made.match(kinds[1])[:, 1].all()


def test_what_is_saved_answers_alike_and_another_width_is_refused():
    made = matcher(KINDS)
    again = matcher([])
    again.restore(State({k: v.clone() for k, v in made.state().tensors.items()}))
    assert again.tasks == 3
    assert torch.equal(again.distances(ASKED), made.distances(ASKED))
    assert made.state().size < matcher([]).state().size + 4 * 8 * 2 * SIZE  # no sums are left
    with pytest.raises(AdapterMismatch, match="of another method, width or backbone"):
        matcher([], width=8).restore(made.state())
    with pytest.raises(ConfigError, match="width is 7, expected an even number"):
        NearLora(width=7)


# ------------------------------------------------------------ the method


def made(tasks: int = 2, **options):
    method = NearLora(**SMALL, **options)
    return method, learned(method, attached(method), tasks)


def test_every_linear_answers_with_the_lora_of_the_task():
    method, model = made(reach=float("inf"))
    batch = prompt()
    said = seen_and_said(model, batch)
    (gates,) = {id(g): g for g in map(method._context.gates_of, pool_layers(model))}.values()
    assert gates.sum(1).tolist() == [1.0] * 3
    for name, layer in pool_layers(model).items():
        x, y = said[name]
        torch.testing.assert_close(y, mixture(layer, x, gates), rtol=1e-3, atol=1e-6)


def test_what_is_near_no_task_the_base_answers_bit_for_bit():
    _, model = made(reach=1e-9)
    _, near = made(reach=float("inf"))
    with torch.no_grad():
        got = model(**prompt()).logits
        with model.disable_adapter():
            want = model(**prompt()).logits
        assert not torch.allclose(near(**prompt()).logits, want)
    assert torch.equal(got, want)


def test_the_oracle_is_told():
    told, model = made(oracle=True)
    told.asked = 2
    with torch.no_grad():
        model(**prompt())
    (gates,) = {id(g): g for g in map(told._context.gates_of, pool_layers(model))}.values()
    assert gates.tolist() == [[0.0, 1.0]] * 3
