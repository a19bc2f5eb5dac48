"""Which tokens of the current forward pass count (no padding, only those sampled), and how much."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from undrift.errors import ConfigError
from undrift.tuner.packing import packed_examples, without_padding

_RESOLUTION = 1 << 24  # a token is sampled where its hash modulo this is small enough
_PRIMES = (-7046029254386353131, -4417276706812531889, 1609587929392839161)


@dataclass(frozen=True, eq=False)
class Choice:
    """The rows that count, of matrices with one row per token.

    Attributes:
        count: How many tokens count.
        index: The rows to gather, (K,) int64; all rows where None.
        weight: 1 for a row that counts and 0 for one that does not, (K,); all count where None.
    """

    count: Tensor | int
    index: Tensor | None = None
    weight: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """Gather the rows of x (T, d); a row that does not count is zero."""
        if self.index is not None:
            across = x.stride(0) == 1 and x.stride(1) > 1  # a transposed view: gather its columns
            x = x.mT.index_select(1, self.index).mT if across else x.index_select(0, self.index)
        return x if self.weight is None else x * self.weight.to(x.dtype)[:, None]


class Tokens:
    """The tokens of one forward pass.

    Args:
        mask: 0 for padding, else a token, (batch, length); no padding where not given.
        ids: What tells examples apart, (batch,) int64.
        content: Where there are no ids: something of the tokens to make ids from, (batch, length).
        given: What the model is called with, see `packed_examples`.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        content: Tensor | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.mask, self.ids, self.content, self._given = mask, ids, content, given or {}
        self._choices: dict[tuple[int, float, int], Choice] = {}
        self._inputs: dict[str, tuple[int, set[str]]] = {}

    def choose(self, count: int, fraction: float, seed: int, device: torch.device) -> Choice:
        """Choose the rows that count, the same ones whatever the batch, its padding or the rank.

        Args:
            count: T, how many rows there are.
            fraction: The share of tokens to sample, by a hash of (seed, example, position among
                the example's tokens).
            seed: See `fraction`.
            device: Where the rows are.

        Returns:
            The choice; asking again costs nothing.

        Raises:
            ConfigError: The mask is not one of these rows, or sampling lacks ids.
        """
        key = (count, fraction, seed)
        if key not in self._choices:
            self._choices[key] = self._choose(count, fraction, seed, device)
        return self._choices[key]

    def _choose(self, count: int, fraction: float, seed: int, device: torch.device) -> Choice:
        mask = self._counting(count, fraction, seed)
        if mask is None:
            return Choice(count)
        if device.type != "cpu":
            return self.fixed_size(count, fraction, seed, device)
        index = mask.flatten().to(device).nonzero().flatten()
        return Choice(count) if len(index) == count else Choice(len(index), index)

    def fixed_size(self, count: int, fraction: float, seed: int, device: torch.device) -> Choice:
        """Make the same choice with sizes that do not depend on the data: nothing is read back.

        Args:
            count: As in `choose`.
            fraction: As in `choose`; there is room for 1.5 times this share of the rows.
            seed: As in `choose`.
            device: Where the rows are.

        Returns:
            The choice; rows that fill it up have the weight 0.
        """
        mask = self._counting(count, fraction, seed)
        if mask is None:
            return Choice(count)
        keep = mask.flatten().to(device) != 0
        if fraction == 1:
            return Choice(keep.sum(), None, keep.float())
        size = min(count, int(1.5 * fraction * count) + 64)
        index = torch.nonzero_static(keep, size=size, fill_value=-1).flatten()
        return Choice((index >= 0).sum(), index.clamp_min(0), (index >= 0).float())

    def _counting(self, count: int, fraction: float, seed: int) -> Tensor | None:
        """The mask of the tokens that count, (batch, length); None where all do."""
        mask = self.mask
        if mask is not None and (mask.dim() != 2 or mask.numel() != count):
            raise ConfigError(
                f"the attention mask has shape {tuple(mask.shape)} but the linear saw {count} "
                "tokens; call the model with a mask of shape (batch, length), or with none"
            )
        return mask if fraction == 1 else self._sampled(fraction, seed)

    def _sampled(self, fraction: float, seed: int) -> Tensor:
        """The mask of the sampled tokens, (batch, length)."""
        like = self.mask if self.mask is not None else self.content
        if like is None or (self.ids is None and self.content is None):
            raise ConfigError(
                "token_fraction < 1 chooses tokens by example and position: call the model with "
                "input_ids or inputs_embeds as keywords, or set TokenContext.example_ids"
            )
        there = torch.ones_like(like) if self.mask is None else self.mask
        mask = (there != 0).long()  # which may number examples, see `packed_examples`
        position = self._within(mask) * mask
        ids = self.ids
        if ids is None and self.content is not None:
            ids = self._identity(self.content, mask)
        elif ids is not None:
            ids = ids[:, None]
        if ids is None:
            raise RuntimeError("unreachable: ids or content were checked above")
        hashed = _mixed(_mixed(ids.to(mask.device) + seed) + position)
        return ((hashed & (_RESOLUTION - 1)) < fraction * _RESOLUTION) & (mask != 0)

    def _identity(self, content: Tensor, mask: Tensor) -> Tensor:
        """A number of every token's example, made of its tokens, (batch, length) or (batch, 1)."""
        bits = content.float().view(torch.int32) if content.is_floating_point() else content
        place = self._within(mask) * mask * _PRIMES[0]
        return self._summed(_mixed(bits.long() + place) * mask)

    def weights(self, kind: str, chosen: Choice, g: Tensor) -> Tensor | None:
        """Weigh the rows that count.

        Args:
            kind: "same", "gradient" or "share", see `core.settings.Metrics`.
            chosen: The K rows.
            g: The gradient at every token, (T, anything).

        Returns:
            u, (K,); None where all weigh the same.
        """
        if kind == "same":
            return None
        if kind == "gradient":
            return torch.linalg.vector_norm(chosen.rows(g), dim=1, dtype=torch.float32).square()
        shares = self.shares(torch.linalg.vector_norm(g, dim=1, dtype=torch.float32))
        return chosen.rows(shares[:, None]).squeeze(1)

    def shares(self, sizes: Tensor) -> Tensor:
        """Divide what each token has by the sum over its example.

        Args:
            sizes: Of every token, padding included, >= 0, (T,).

        Returns:
            (T,); 0 at padding, and 0 for an example whose sum is 0.

        Raises:
            ConfigError: It is not known which rows belong to one example.
        """
        like = self.mask if self.mask is not None else self.content
        if like is None or like.dim() != 2 or like.numel() != sizes.numel():
            raise ConfigError(
                'token_weights="share" weighs the tokens of an example against each other: call '
                "the model with attention_mask, input_ids or inputs_embeds as keywords"
            )
        of_example = sizes.view(like.shape)
        if self.mask is not None:
            of_example = of_example * (self.mask != 0)
        total = self._summed(of_example)
        return (of_example / total.clamp_min(torch.finfo(total.dtype).tiny)).flatten()

    @cached_property
    def examples(self) -> Tensor | None:
        """Which example each token is of, where a row holds several, (batch, length) int64."""
        return packed_examples(self._given)

    def _summed(self, each: Tensor) -> Tensor:
        """The sum over every token's example, (batch, length) or (batch, 1)."""
        if self.examples is None:
            return each.sum(1, keepdim=True)
        where = self.examples.to(each.device)
        room = each.new_zeros(each.numel())  # as many examples as tokens, at most
        return room.index_add(0, where.flatten(), each.flatten())[where]

    def _within(self, mask: Tensor) -> Tensor:
        """How many tokens of its example count up to every token, (batch, length)."""
        counted = mask.cumsum(1)
        if self.examples is None:
            return counted
        where, flat = self.examples.to(mask.device), mask.flatten().cumsum(0).view_as(mask)
        first = torch.full((mask.numel(),), mask.numel(), device=mask.device)
        first.scatter_reduce_(0, where.flatten(), (flat - mask).flatten(), "amin")
        return flat - first[where]

    def check_shared(self, group: str, member: str, address: int) -> None:
        """Make sure that linears which share a sketch really read the same tensor.

        Args:
            group: The linear that owns the sketch.
            member: The linear that is being called.
            address: Where its input lies in memory.

        Raises:
            ConfigError: The inputs differ.
        """
        first, members = self._inputs.get(group, (address, set()))
        if member in members:  # recomputation has begun
            first, members = address, set()
        if address != first:
            raise ConfigError(
                f"{member} does not read the same input as {group}, whose sketch it shares; "
                "set share_inputs=False in the MoeLoraConfig"
            )
        self._inputs[group] = (address, members | {member})


class TokenContext:
    """Holds the `Tokens` of the current forward pass of one model.

    Under gradient checkpointing a forward pass must be followed by its backward pass before the
    next forward pass, as every trainer does.

    Attributes:
        current: The tokens of the current, or last, forward pass.
        example_ids: Set it before a forward pass to tell examples apart by number, (batch,) int64,
            instead of by their content; used once.
        handle: Ends it.
    """

    def __init__(self) -> None:
        self.current = Tokens()
        self.example_ids: Tensor | None = None
        self.handle: RemovableHandle | None = None
        self._names: list[str] = []

    @classmethod
    def attach(cls, model: nn.Module) -> TokenContext:
        """Make a context that sees every call of `model`, also one inside a PeftModel."""
        context = cls()
        context._names = list(inspect.signature(model.forward).parameters)
        context.handle = model.register_forward_pre_hook(context._begin, with_kwargs=True)
        return context

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        mask, content = given.get("attention_mask"), _content(given)
        if _has_encoder(module):  # the linears are the decoder's
            labels, mask = given.get("labels"), given.get("decoder_attention_mask")
            content = _content(given, "decoder_")
            content = labels if content is None else content
            if mask is None and isinstance(labels, Tensor):
                mask = labels != -100
            if mask is None and module.training and torch.is_grad_enabled():
                raise ConfigError(
                    f"{type(module).__name__} has an encoder, whose attention_mask does not tell "
                    "the decoder's padding: call it with labels or decoder_attention_mask"
                )
            given = {}
        elif mask is None:
            mask = without_padding(given)
        if not isinstance(mask, Tensor | None):
            raise ConfigError(
                "undrift cannot read the padding from a prepared attention mask; call the model "
                "with a mask of shape (batch, length), or with none"
            )
        self.current = Tokens(mask, self.example_ids, content, given)
        self.example_ids = None


def _content(given: Mapping[str, Any], of: str = "") -> Tensor | None:
    """Something of every token, (batch, length); `of` is the prefix of the decoder's arguments."""
    ids, embedded = given.get(f"{of}input_ids"), given.get(f"{of}inputs_embeds")
    return embedded.detach()[..., 0] if ids is None and isinstance(embedded, Tensor) else ids


def _has_encoder(module: nn.Module) -> bool:
    """Whether a model reads in an encoder and writes in a decoder, also one behind a tower."""
    config = getattr(module, "config", None)
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    return any(getattr(each, "is_encoder_decoder", False) for each in (config, text))


def _mixed(x: Tensor) -> Tensor:
    """Scramble int64 numbers (the finaliser of splitmix64, shifts without sign)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _PRIMES[1]
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _PRIMES[2]
    return x ^ ((x >> 31) & ((1 << 33) - 1))
