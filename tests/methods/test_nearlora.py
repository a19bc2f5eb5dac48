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
from undrift.run.ranks import facts_together
from undrift.tuner.pool_lora import pool_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

SIZE, DAMPING, REACH = 6, 1e-3, 6.0


@pytest.fixture(autouse=True)
def _prompts(monkeypatch):
    answered(monkeypatch)


def looks(n: int, seed: int, *, kind: int | None = None, size: int = SIZE) -> Features:
    """Prompts of one kind: unit vectors around a mean of their own."""
    draw = torch.Generator().manual_seed(seed)
    of = {}
    for name in ("image", "text"):
        mean = torch.randn(size, generator=torch.Generator().manual_seed(1000 + (kind or seed)))
        rows = (mean + 0.05 * torch.randn(n, size, generator=draw)).double()
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


def floor(S: torch.Tensor) -> torch.Tensor:
    image, text = S.diagonal()[:SIZE].mean(), S.diagonal()[SIZE : 2 * SIZE].mean()
    own = torch.cat([image.expand(SIZE), text.expand(SIZE), torch.zeros(2)])
    return (DAMPING * own).clamp_min(1e-6)


def test_the_distance_is_that_of_the_sum_of_the_tasks_covariances():
    made = matcher(KINDS)
    phi = [made.look(each) for each in KINDS]
    S = sum(map(covariance, phi))
    P, x = torch.linalg.inv(S + floor(S).diag()), made.look(ASKED)
    want = torch.stack([((x - p.mean(0)) @ P * (x - p.mean(0))).sum(1) for p in phi], 1)
    torch.testing.assert_close(made.distances(x), want)


def q(phi: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The squared distance from the mean of a task's own prompts, in units of theirs."""
    parts = [
        [(each - own.mean(0))[:, part].square().sum(1) for each in (phi, own)]
        for part in (slice(0, SIZE), slice(SIZE, 2 * SIZE))
    ]
    return sum(asked / mine.mean() for asked, mine in parts)


@pytest.mark.parametrize("some", [False, True])
def test_near_is_in_deviations_of_how_far_a_tasks_own_prompts_are(some):
    kind = KINDS[1]
    if some:  # every third prompt without a picture
        there = torch.arange(90) % 3 > 0
        image = kind.of["image"] * there[:, None]
        kind = Features({**kind.of, "image": image}, {**kind.present, "image": there})
    made = matcher([kind])
    own, x = made.look(kind), made.look(ASKED)
    usual = q(own, own)
    want = (q(x, own) - usual.mean() * (1 + 2 / 90)) / usual.std(correction=0)
    torch.testing.assert_close(made.excess(x)[:, 0], want)


def test_no_order_of_the_tasks_matters_and_no_batches():
    forth, back = matcher(KINDS), matcher(KINDS[::-1], batch=7)
    x = forth.look(ASKED)
    torch.testing.assert_close(forth.distances(x), back.distances(x).flip(1))
    torch.testing.assert_close(forth.excess(x), back.excess(x).flip(1))


def test_what_is_known_of_a_task_is_not_changed_by_later_ones():
    one, three = (matcher(kinds).state().tensors for kinds in (KINDS[:1], KINDS))
    for name in ("means", "apart", "usual"):
        assert torch.equal(three[name][0], one[name][0])


def test_every_kind_is_known_again_and_what_is_like_none_belongs_to_none():
    made = matcher(KINDS)
    for number, each in enumerate(KINDS, 1):
        weights = made.match(each, number)
        assert weights[:, number - 1].all() and weights.sum() == len(weights)
    assert made.identified.facts() == {"identified": 100.0, "base": 0.0, "prompts": 190}
    assert made.match(ASKED)[:, 1].all()  # the second kind's, which it has not seen
    assert not made.match(OTHER, 1).any()
    assert made.identified.facts() == {"identified": 0.0, "base": 100.0, "prompts": 20}
    endless = matcher(KINDS, reach=float("inf"))
    assert endless.match(OTHER).sum(1).tolist() == [1.0] * 20


def test_a_task_of_a_few_prompts_takes_in_all_that_is_nearest_to_it():
    few = matcher([rows(KINDS[0], slice(0, 1))])
    assert few.match(OTHER).all()
    assert all(each.isfinite().all() for each in few.state().tensors.values())
    alike = rows(KINDS[0], torch.zeros(12, dtype=torch.long))  # one prompt, twelve times
    made = matcher([alike])
    assert made.match(alike).all() and not made.match(OTHER).any()


def test_a_task_that_is_not_learned_yet_is_not_counted():
    made = matcher(KINDS[:1])
    made.match(ASKED, 2)
    assert made.identified.facts() == {}


def test_text_alone_tells_tasks_and_a_picture_is_like_none_of_them():
    text = [
        Features({**e.of, "image": 0 * e.of["image"]}, {**e.present, "image": ~e.present["text"]})
        for e in KINDS
    ]
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
    assert made.state().tensors["means"].shape == (2, 34)
    parts = made.look(kinds[0])[:, :-2].unflatten(1, (2, 16))  # q is linear for unit vectors only
    torch.testing.assert_close(parts.norm(dim=2), torch.ones(60, 2, dtype=parts.dtype))
    assert made.match(kinds[0])[:, 0].all() and made.match(kinds[1])[:, 1].all()


def test_what_is_saved_answers_alike_and_another_width_is_refused():
    made = matcher(KINDS)
    again = matcher([])
    again.restore(State({k: v.clone() for k, v in made.state().tensors.items()}))
    assert again.tasks == 3
    assert torch.equal(again.distances(again.look(ASKED)), made.distances(made.look(ASKED)))
    assert not made.state().tensors["running_moment"].numel()  # no sums are left
    with pytest.raises(AdapterMismatch, match="of another method, other options"):
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
    method, model = made()
    method._matcher.reach = -float("inf")  # nothing is near
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


def test_what_processes_told_is_put_together():
    told = [
        {"identified": 100.0, "base": 0.0, "prompts": 1},
        {},
        {"identified": 50.0, "base": 25.0, "prompts": 4},
    ]
    assert facts_together(told) == {"identified": 60.0, "base": 20.0, "prompts": 5}
