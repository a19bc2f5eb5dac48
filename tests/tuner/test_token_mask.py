"""Which tokens count."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedConfig

from undrift.errors import ConfigError
from undrift.tuner import ForwardContext
from undrift.tuner.token_mask import Tokens

CPU = torch.device("cpu")


def chosen(tokens: Tokens, count: int, fraction: float = 1.0, seed: int = 0) -> list[int]:
    choice = tokens.choose(count, fraction, seed, CPU)
    return choice.rows(torch.arange(count, dtype=torch.float32)[:, None]).flatten().long().tolist()


def test_everything_counts_without_a_mask_or_with_one_of_ones():
    assert chosen(Tokens(), 6) == chosen(Tokens(torch.ones(2, 3)), 6) == list(range(6))
    assert chosen(Tokens(torch.tensor([[1, 1, 0], [0, 1, 1]])), 6) == [0, 1, 4, 5]


def test_ids_and_positions_decide_not_the_place_in_the_batch():
    ids = torch.tensor([7, 8])
    right = Tokens(torch.tensor([[1] * 30 + [0] * 10, [1] * 40]), ids)
    left = Tokens(torch.tensor([[1] * 40, [0] * 10 + [1] * 30]), ids.flip(0))
    of_right, of_left = chosen(right, 80, 0.5), chosen(left, 80, 0.5)
    first = [place for place in of_right if place < 40]
    second = [place - 40 for place in of_right if place >= 40]
    assert first == [place - 50 for place in of_left if place >= 40]
    assert second == [place for place in of_left if place < 40]
    assert first != [place for place in second if place < 30]
    assert chosen(right, 80, 0.5, seed=1) != of_right


def test_about_the_asked_share_is_sampled():
    tokens = Tokens(ids=torch.arange(100), mask=torch.ones(100, 200))
    for fraction in (0.125, 0.5):
        chosen = tokens.choose(20000, fraction, 0, CPU)
        assert chosen.index is not None and chosen.times == 1 / fraction
        assert abs(len(chosen.index) / 20000 - fraction) < 0.015
        assert chosen.count == len(chosen.index) / fraction
        of_a_device = tokens.fixed_size(20000, fraction, 0, CPU)
        assert of_a_device.count == chosen.count
        x = torch.ones(20000, 1)
        for kind in ("same", "gradient"):
            u, v = (tokens.weights(kind, each, x) for each in (chosen, of_a_device))
            assert u.sum() == v.sum() == chosen.count


def test_the_fixed_size_choice_of_an_accelerator_is_the_same_choice():
    mask = torch.ones(4, 50)
    mask[:, 40:] = 0
    for fraction in (1.0, 0.3):
        tokens = Tokens(mask, ids=torch.arange(4))
        exact = tokens.choose(200, fraction, 0, CPU)
        padded = tokens.fixed_size(200, fraction, 0, CPU)
        x = torch.randn(200, 3)
        torch.testing.assert_close(
            padded.rows(x).T @ padded.rows(x), exact.rows(x).T @ exact.rows(x)
        )
        assert padded.count == exact.count


def test_shares_sum_to_one_in_every_example_whatever_the_scale_and_the_padding():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    sizes = torch.tensor([9.0, 1.0, 3.0, 2e-30, 1e-30, 1e-30, 0.0, 0.0, 0.0])
    expected = [0, 0.25, 0.75, 0.5, 0.25, 0.25, 0, 0, 0]
    assert Tokens(mask).shares(sizes).tolist() == pytest.approx(expected)
    alone = Tokens(content=torch.zeros(1, 2)).shares(sizes[1:3])
    assert alone.tolist() == pytest.approx(expected[1:3])


@pytest.mark.parametrize("tokens", [Tokens(), Tokens(torch.ones(2, 3))])
def test_shares_need_to_know_the_examples(tokens):
    with pytest.raises(ConfigError, match="attention_mask"):
        tokens.shares(torch.ones(4))


def test_the_context_follows_calls_by_keyword_and_by_position():
    class Model(torch.nn.Module):
        def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
            return None

    model = Model()
    context = ForwardContext.attach(model)
    ids, mask = torch.arange(6).view(2, 3), torch.ones(2, 3)
    model(ids, mask)
    assert context.tokens.mask is mask and context.tokens.content is ids
    with context.given(example_ids=torch.tensor([4, 5])):
        model(inputs_embeds=torch.randn(2, 3, 8), attention_mask=mask)
    assert context.tokens.content.shape == (2, 3)
    assert context.tokens.ids is not None
    model(ids, mask)
    assert context.tokens.ids is None


@pytest.mark.parametrize(
    ("encodes", "labels", "expected"),
    [
        (False, [[-100, -100, 7, 8], [-100, 7, -100, -100]], [[0, 0.5, 0.5, 0], [1, 0, 0, 0]]),
        (False, [[-100, 7, 8], [7, 8, 9]], [[0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0]]),  # the last only
        (True, [[-100, -100, 7, 8], [-100, 7, -100, -100]], [[0, 0, 0.5, 0.5], [0, 1, 0, 0]]),
    ],
)
def test_an_answers_tokens_are_those_that_predict_a_label(encodes, labels, expected):
    class Model(torch.nn.Module):
        config = PreTrainedConfig(is_encoder_decoder=encodes)

        def forward(self, **given):
            return None

    model, mask = Model(), torch.ones(2, 4)
    context = ForwardContext.attach(model)
    model(attention_mask=mask, decoder_attention_mask=mask, labels=torch.tensor(labels))
    assert context.tokens.even_shares.view(2, 4).tolist() == expected
    model(attention_mask=mask, decoder_attention_mask=mask)
    with pytest.raises(
        ConfigError, match='call the model with labels, or set token_weights="share"'
    ):
        context.tokens.weights("answer", context.tokens.choose(8, 1.0, 0, CPU), torch.ones(8, 3))


def test_pictures_tell_apart_examples_that_ask_alike():
    mask, asked = torch.ones(4, 64), torch.arange(64).repeat(4, 1)
    by_row, in_one = torch.rand(4, 3, 8, 8), torch.rand(40, 12)  # a picture a row; patches of all
    alone = chosen(Tokens(mask, content=asked), 256, 0.5)
    rows = [[place - 64 * row for place in alone if place // 64 == row] for row in range(4)]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    seen = chosen(Tokens(mask, content=asked, pictures=by_row), 256, 0.5)
    rows = [tuple(place - 64 * row for place in seen if place // 64 == row) for row in range(4)]
    assert len({*rows}) == 4
    last = Tokens(mask[3:], content=asked[3:], pictures=by_row[3:])  # whatever the batch
    assert tuple(chosen(last, 64, 0.5)) == rows[3]
    assert chosen(Tokens(mask, content=asked, pictures=in_one), 256, 0.5) != alone
    embedded = asked.float()  # pictures are among them
    kept = chosen(Tokens(mask, content=embedded), 256, 0.5)
    assert chosen(Tokens(mask, content=embedded, pictures=by_row), 256, 0.5) == kept


@pytest.mark.parametrize("kind", ["gradient", "share", "answer"])
def test_a_step_that_is_not_finite_weighs_nothing(kind):
    g = torch.ones(8, 2)
    g[5, 0] = torch.inf
    g[6, 0] = torch.nan
    tokens = Tokens(torch.ones(2, 4), predicts=torch.zeros(2, 4, dtype=torch.bool))
    u = tokens.weights(kind, tokens.choose(8, 1.0, 0, CPU), g)
    assert u.isfinite().all() and (u[:4] > 0).all() and (u[4:] == 0).tolist()[1:3] == [True, True]
