"""A prompt that is read is told from an answer that is decoded by what is in the cache."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    FalconH1Config,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    StaticCache,
)
from transformers.modeling_outputs import BaseModelOutput

from undrift.errors import ConfigError
from undrift.tuner import ForwardContext
from undrift.tuner.forward import cache_of
from undrift.tuner.soft_prompt import Insertion

D = 8
TWO_LAYERS = {
    "num_hidden_layers": 2, "hidden_size": D, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip


class Decoder(nn.Module):
    """A language model of somebody's own: no argument of it has a name that transformers gives."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, D)
        self.lengths = []

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, attention_mask=None, memory=None, inputs_embeds=None):
        if inputs_embeds is None:
            inputs_embeds = self.table(input_ids)
        self.lengths.append((inputs_embeds.shape[1], attention_mask.shape[1]))
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class Model(nn.Module):
    config = SimpleNamespace()

    def __init__(self, positional=False):
        super().__init__()
        self.decoder, self.positional = Decoder(), positional

    def get_decoder(self):
        return self.decoder

    def get_input_embeddings(self):
        return self.decoder.table

    def forward(self, input_ids=None, attention_mask=None, memory=None, labels=None):
        if self.positional:
            return self.decoder(input_ids, attention_mask, memory)
        return self.decoder(input_ids=input_ids, attention_mask=attention_mask, memory=memory)


def keys(length):
    return torch.randn(2, 2, length, D // 2)


def attended(cache: Cache, length=5) -> Cache:
    """The cache after one layer of attention has read so many tokens."""
    cache.update(keys(length), keys(length), 0)
    return cache


def state(cache: Cache, layer=0) -> Cache:
    """The cache after one layer of linear attention has read something."""
    cache.update_conv_state(torch.randn(2, D, 4), layer)
    return cache


def llama():
    return LlamaConfig(**TWO_LAYERS)


def jamba():
    """One layer of state space, and one of attention behind it."""
    return JambaConfig(**TWO_LAYERS, attn_layer_period=2, attn_layer_offset=1)


def static() -> Cache:
    cache = StaticCache(config=llama(), max_cache_len=16)
    cache.early_initialization(2, 2, D // 2, torch.float32, torch.device("cpu"))
    return cache


def both(filled: bool, crossed: bool) -> Cache:
    """Of a decoder with cross-attention, which may have read the picture and no token yet."""
    own, across = DynamicCache(), DynamicCache()
    return EncoderDecoderCache(
        attended(own) if filled else own, attended(across, 9) if crossed else across
    )


def hybrid(filled: bool) -> Cache:
    cache = DynamicCache(config=jamba())
    if filled:
        state(cache).update(keys(5), keys(5), 1)
    return cache


class Older:
    """A cache such as models on the Hub bring along."""

    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return torch.tensor(self.length)


EMPTY = {
    "none": lambda: None,
    "dynamic": DynamicCache,
    "made for the model": lambda: DynamicCache(config=llama()),
    "preallocated": static,
    "reset": lambda: (cache := attended(static()), cache.reset())[0],
    "encoder-decoder": lambda: both(False, False),
    "encoder-decoder, the picture read": lambda: both(False, True),
    "linear": lambda: DynamicCache(config=MambaConfig(num_hidden_layers=2)),
    "hybrid": lambda: hybrid(False),
    "both in one layer": lambda: DynamicCache(config=FalconH1Config(**TWO_LAYERS)),
    "tuples": lambda: ((keys(0), keys(0)), (keys(0), keys(0))),
    "no tuples": tuple,
    "pairs of position embeddings": lambda: (torch.randn(2, 5, D), torch.randn(2, 5, D)),
    "pictures": lambda: [torch.randn(2, 3, 8, 8), torch.randn(1, 3, 8, 8)],
    "pictures of samples": lambda: [[torch.randn(3, 8, 8)] * 2] * 2,
    "somebody's own": lambda: Older(0),
    "somebody's own state": lambda: SimpleNamespace(has_previous_state=False),
    "an offset": lambda: SimpleNamespace(seqlen_offset=torch.tensor([0])),
}
FILLED = {
    "dynamic": lambda: attended(DynamicCache()),
    "made for the model": lambda: attended(DynamicCache(config=llama())),
    "preallocated": lambda: attended(static()),
    "encoder-decoder": lambda: both(True, True),
    "linear": lambda: state(state(DynamicCache(config=MambaConfig(num_hidden_layers=2))), 1),
    "hybrid": lambda: hybrid(True),
    "both in one layer": lambda: attended(DynamicCache(config=FalconH1Config(**TWO_LAYERS))),
    "tuples": lambda: ((keys(5), keys(5)), (keys(5), keys(5))),
    "lists, the first layer without": lambda: [None, [keys(5), keys(5), keys(9), keys(9)]],
    "somebody's own": lambda: Older(5),
    "somebody's own state": lambda: SimpleNamespace(has_previous_state=True),
    "an offset": lambda: SimpleNamespace(seqlen_offset=torch.tensor([5])),
}


def shown(model):
    seen = []
    ForwardContext.attach(model).on_prompt = seen.append
    return seen


def tokens(length, behind=0):
    return {
        "input_ids": torch.randint(0, 20, (2, length)),
        "attention_mask": torch.ones(2, behind + length),
    }


@pytest.mark.foreign("1.6")
@pytest.mark.parametrize("positional", [False, True], ids=["named", "positional"])
@pytest.mark.parametrize("kind", FILLED)
def test_an_answer_is_decoded_behind_a_filled_cache_of_any_kind_and_name(kind, positional):
    model = Model(positional)
    seen = shown(model)
    model(**tokens(5), memory=DynamicCache())
    model(**tokens(1, behind=5), memory=FILLED[kind]())
    assert [prompt.embeds.shape[1] for prompt in seen] == [5]
    model(input_ids=tokens(1)["input_ids"], attention_mask=torch.ones(2, 1), memory=FILLED[kind]())
    assert len(seen) == 1  # with a mask that does not show it either


@pytest.mark.parametrize("positional", [False, True], ids=["named", "positional"])
@pytest.mark.parametrize("kind", EMPTY)
def test_a_prompt_is_read_with_an_empty_cache_or_none(kind, positional):
    model = Model(positional)
    seen = shown(model)
    for length in (5, 1):
        model(**tokens(length), memory=EMPTY[kind]())
    assert [prompt.embeds.shape[1] for prompt in seen] == [5, 1]


@pytest.mark.foreign("1.6")
def test_a_prompt_in_chunks_and_guesses_ahead_are_refused():
    model = Model()
    seen = shown(model)
    model(**tokens(5), memory=DynamicCache())
    with pytest.raises(ConfigError, match=r"3 tokens at once go on .* prefill_chunk_size"):
        model(**tokens(3, behind=5), memory=attended(DynamicCache()))
    ForwardContext.attach(model).on_prompt = None
    model(**tokens(3, behind=5), memory=attended(DynamicCache()))  # nobody decides by the prompt
    assert len(seen) == 1


@pytest.mark.foreign("1.6")
@pytest.mark.parametrize("positional", [False, True], ids=["named", "positional"])
@pytest.mark.parametrize("kind", FILLED)
def test_tokens_are_inserted_into_a_prompt_and_counted_behind_any_cache(kind, positional):
    model = Model(positional)
    insertion = Insertion(None, lambda: True)
    insertion.attach(model.decoder)
    insertion.chosen = torch.zeros(2, 3, D)
    model(**tokens(5), memory=DynamicCache())
    model(**tokens(1, behind=5), memory=FILLED[kind]())
    assert model.decoder.lengths == [(5 + 3, 5 + 3), (1, 5 + 1 + 3)]


@pytest.mark.foreign("1.6")
def test_the_short_loop_hands_the_cache_on_under_the_name_that_the_model_has_for_it():

    for kind, made in FILLED.items():
        cache = made()
        out = {"logits": keys(1), "memory": cache, "hidden_states": (keys(1), keys(1)), "no": None}
        assert cache_of(out) == {"memory": cache}, kind
