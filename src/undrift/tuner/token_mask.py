"""Which tokens of a forward pass count: no padding, only those sampled, each with its example.

A row may be packed, that is hold several examples one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor

from undrift.errors import ConfigError

IGNORED = -100  # the label that cross entropy leaves out
_RESOLUTION = 1 << 24  # a token is sampled where its hash modulo this is small enough
_PRIMES = (-7046029254386353131, -4417276706812531889, 1609587929392839161)


@dataclass(frozen=True, eq=False)
class Choice:
    """The rows that count, of matrices with one row per token.

    Attributes:
        count: How many tokens count; an estimate where they are sampled.
        index: The rows to gather, (K,) int64; all rows where None.
        weight: 1 for a row that counts and 0 for one that does not, (K,); all count where None.
        times: How many tokens a row stands for, one over the share that is sampled.
    """

    count: Tensor | float
    index: Tensor | None = None
    weight: Tensor | None = None
    times: float = 1.0

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
        predicts: Which tokens predict one that carries a label, (batch, length); None where the
            model is called without labels.
        pictures: Pixels, of any shape: where there are no ids and many examples ask alike, they
            tell them apart.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        content: Tensor | None = None,
        given: Mapping[str, Any] | None = None,
        predicts: Tensor | None = None,
        pictures: Tensor | None = None,
    ) -> None:
        self.mask, self.ids, self.content, self._given = mask, ids, content, given or {}
        self.pictures = pictures
        self.predicts = predicts
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
        if device.type != "cpu":
            return self.fixed_size(count, fraction, seed, device)
        mask = self._counting(count, fraction, seed)
        if mask is None:
            return Choice(count)
        index = mask.flatten().to(device).nonzero().flatten()
        times = 1 / fraction
        if len(index) == count:
            return Choice(count * times, times=times)
        return Choice(len(index) * times, index, times=times)

    def fixed_size(self, count: int, fraction: float, seed: int, device: torch.device) -> Choice:
        """Make the same choice in sizes that do not depend on the data: nothing is read back.

        There is room for 1.5 times the share of the rows; rows that fill it up have the weight 0.
        """
        mask = self._counting(count, fraction, seed)
        if mask is None:
            return Choice(count)
        keep = mask.flatten().to(device) != 0
        if fraction == 1:
            return Choice(keep.sum(), None, keep.float())
        size = min(count, int(1.5 * fraction * count) + 64)
        index = torch.nonzero_static(keep, size=size, fill_value=-1).flatten()
        times = 1 / fraction
        there = (index >= 0).float()
        return Choice(there.sum() * times, index.clamp_min(0), there, times)

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
                "input_ids or inputs_embeds as keywords, or within ForwardContext.of(model)"
                ".given(example_ids=...)"
            )
        there = torch.ones_like(like) if self.mask is None else self.mask
        mask = (there != 0).long()  # which may number examples, see `packed_examples`
        position = self._within(mask) * mask
        ids = self._made_ids(mask) if self.ids is None else self.ids[:, None]
        hashed = _mixed(_mixed(ids.to(mask.device) + seed) + position)
        return ((hashed & (_RESOLUTION - 1)) < fraction * _RESOLUTION) & (mask != 0)

    def _made_ids(self, mask: Tensor) -> Tensor:
        """A number of every token's example, made of its content, (batch, length) or (batch, 1)."""
        content = self.content
        assert content is not None  # `_sampled` has looked
        bits = content.float().view(torch.int32) if content.is_floating_point() else content
        place = self._within(mask) * mask * _PRIMES[0]
        made = self._summed(_mixed(bits.long() + place) * mask)
        if self.pictures is None or content.is_floating_point():  # which holds the pictures
            return made
        return made + _mixed(_of_pixels(self.pictures, len(mask))).to(mask.device)[:, None]

    def weights(self, kind: str, chosen: Choice, g: Tensor) -> Tensor | None:
        """Weigh the rows that count, so that the sum over them is unbiased for all tokens.

        An example's shares are taken over all of its tokens, sampled or not.

        Args:
            kind: "same", "gradient", "share" or "answer", see `core.settings.Metrics`.
            chosen: The K rows.
            g: The gradient at every token, (T, anything).

        Returns:
            u, (K,); None where all weigh 1.

        Raises:
            ConfigError: It is not known which rows belong to one example, or to an answer.
        """
        if kind == "same":
            return _stand_for(chosen, g)
        if kind == "gradient":
            sizes = torch.linalg.vector_norm(chosen.rows(g), dim=1, dtype=torch.float32)
            return _finite(sizes.square()).mul_(chosen.times)
        shares = self.shares(torch.linalg.vector_norm(g, dim=1, dtype=torch.float32))
        if kind == "answer":
            shares = (shares + self.even_shares) / 2
        return chosen.rows(shares[:, None]).squeeze(1).mul_(chosen.times)

    def shares(self, sizes: Tensor) -> Tensor:
        """Divide what each token has by the sum over its example.

        Args:
            sizes: Of every token, padding included, >= 0, (T,).

        Returns:
            (T,); 0 at padding, and 0 for an example whose sum is 0 or not finite.

        Raises:
            ConfigError: It is not known which rows belong to one example.
        """
        like = self.mask if self.mask is not None else self.content
        if like is None or like.dim() != 2 or like.numel() != sizes.numel():
            raise ConfigError(
                'token_weights="answer" and "share" weigh the tokens of an example against each '
                "other: call the model with attention_mask, input_ids or inputs_embeds as keywords"
            )
        of_example = sizes.view(like.shape)
        if self.mask is not None:
            of_example = of_example * (self.mask != 0)
        return _finite(of_example / self._summed(of_example)).flatten()

    @cached_property
    def even_shares(self) -> Tensor:
        """Divide each example evenly among the tokens that predict its answer.

        Returns:
            The shares, (T,) float32: one in all for every example that has an answer.

        Raises:
            ConfigError: The model was called without labels.
        """
        if self.predicts is None:
            raise ConfigError(
                'token_weights="answer" asks which tokens are answers: call the model with labels, '
                'or set token_weights="share"'
            )
        return self.shares(self.predicts.float().flatten())

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


def _stand_for(chosen: Choice, like: Tensor) -> Tensor | None:
    """How many tokens each row stands for, (K,); None where that is one."""
    if chosen.times == 1:
        return None
    if chosen.weight is not None:
        return chosen.weight * chosen.times
    rows = len(like if chosen.index is None else chosen.index)
    return torch.full((rows,), chosen.times, device=like.device)


def packed_examples(given: Mapping[str, Any]) -> Tensor | None:
    """Tell apart the examples that a packed batch holds in one row.

    Args:
        given: What a model is called with: positions begin anew with every example, `seq_idx`
            and an attention mask with values above 1 number the examples, `cu_seq_lens_q` says
            where each begins in the one row.

    Returns:
        The number of every token's example, (batch, length) int64; None where a row is an example.
    """
    index, ends, positions = (
        given.get(name) for name in ("seq_idx", "cu_seq_lens_q", "position_ids")
    )
    if isinstance(index, Tensor) and index.dim() == 2:
        new = index[:, 1:] != index[:, :-1]
    elif isinstance(ends, Tensor):
        new = torch.zeros(1, int(ends[-1]) - 1, dtype=torch.bool, device=ends.device)
        new[0, ends[1:-1].long() - 1] = True
    elif _numbers(mask := given.get("attention_mask")):
        new = mask[:, 1:] != mask[:, :-1]
    elif isinstance(positions, Tensor) and positions.dim() in (2, 3):
        several = positions.dim() == 3  # of time, height and width: pictures stand still in time
        time = positions[0] if several else positions
        new = time[:, 1:] < time[:, :-1]
        if not several:
            new = new | (time[:, 1:] == 0)
    else:
        return None
    first = torch.ones(new.shape[0], 1, dtype=torch.bool, device=new.device)
    if not isinstance(ends, Tensor) and not bool(_attended(given, new).any()):
        return None
    return torch.cat([first, new], 1).flatten().cumsum(0).view(new.shape[0], -1) - 1


def without_padding(given: Mapping[str, Any]) -> Tensor | None:
    """Leave out the padding of packed rows that come without a mask.

    Padding looks like examples of one token each, at position 0, behind all others and without a
    label.

    Args:
        given: What a model is called with.

    Returns:
        The mask of the tokens, (batch, length) bool; None where positions and labels do not tell.
    """
    positions, labels = given.get("position_ids"), given.get("labels")
    if not isinstance(positions, Tensor) or not isinstance(labels, Tensor):
        return None
    position = positions.amax(0) if positions.dim() == 3 else positions
    if position.dim() != 2 or position.shape != labels.shape:
        return None
    ahead = position.flip(1).cummax(1).values.flip(1)  # the largest from here to the row's end
    return (ahead > 0) | (labels != IGNORED) | (ahead[:, :1] == 0)


def _numbers(mask: Any) -> TypeGuard[Tensor]:
    """Whether a mask says more than which tokens are there."""
    return isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask > 1).any())


def _attended(given: Mapping[str, Any], new: Tensor) -> Tensor:
    """The beginnings that follow a token which counts: padding has positions of any kind."""
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != new.shape[1] + 1:
        return new
    there = mask.to(new.device) != 0
    return new & there[:, 1:] & there[:, :-1]


def _finite(u: Tensor) -> Tensor:
    """Take 0 for what is not finite: a step that float16's scaler leaves out has such gradients."""
    return torch.nan_to_num(u, nan=0.0, posinf=0.0)


def _of_pixels(pixels: Tensor, rows: int) -> Tensor:
    """A number of every row's pixels, (rows,) int64; of all together where they are not by row."""
    bits = pixels.detach().float().view(torch.int32)
    if len(bits) == rows:
        return bits.flatten(1).sum(1)  # of whole numbers: in any order, and on any device
    return bits.sum().expand(rows)


def _mixed(x: Tensor) -> Tensor:
    """Scramble int64 numbers (the finaliser of splitmix64, shifts without sign)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _PRIMES[1]
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _PRIMES[2]
    return x ^ ((x >> 31) & ((1 << 33) - 1))
