"""How a task's examples are dealt out to processes: the same steps on any number of them.

A step takes `global_batch` examples, in an order that seed and epoch alone decide, whoever they
are dealt to. Where a task's last step has fewer, they are spread as evenly as can be; a process
that is left without one reads an example again and takes no part in the step, for a step is
something that all processes do together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from undrift.data.collate import Encoded
from undrift.data.types import Example
from undrift.errors import ConfigError
from undrift.run.backbone import Collator

KEPT = 8192
"""Examples of a training that are encoded before its first step, and kept."""


class Share(NamedTuple):
    """What one process takes of a step.

    Attributes:
        step: Examples of the whole step, of all processes.
        examples: Of each micro-batch, at most.
        accumulation: Micro-batches.
    """

    step: int
    examples: int
    accumulation: int


def share_of(global_batch: int, most: int, processes: int) -> Share:
    """Share a step among processes, in as few micro-batches as possible.

    Args:
        global_batch: Examples a step, of all processes together.
        most: Examples that a process takes at once, at most.
        processes: How many there are.

    Returns:
        The share of each.

    Raises:
        ConfigError: If the examples cannot be shared equally; the nearest numbers are named.
    """
    if global_batch % processes:
        below = global_batch - global_batch % processes
        near = " or ".join(str(n) for n in (below, below + processes) if n)
        raise ConfigError(
            f"train.global_batch is {global_batch} examples a step, which {processes} processes "
            f"cannot share equally; take {near}"
        )
    own = global_batch // processes
    pieces = -(-own // most)
    return Share(global_batch, -(-own // pieces), pieces)


class Step(NamedTuple):
    """What all processes take together.

    Attributes:
        examples: The places of its examples among those of the training.
        pieces: Micro-batches of all processes.
    """

    examples: Sequence[int]
    pieces: int


class Place(NamedTuple):
    """An example of a micro-batch, and whether it is read to keep step only."""

    example: int
    step: Step
    idle: bool = False


class Dealt(NamedTuple):
    """An example of a micro-batch.

    Attributes:
        example: The example.
        labels: How many labelled tokens a micro-batch of this step has, in the mean over those of
            all processes; 0 for an example that is read to keep step only.
        examples: How many examples it has, likewise.
    """

    example: Encoded
    labels: float
    examples: float


class Encodings(Dataset[Dealt]):
    """The examples of a training as the model reads them, by what the dealer names.

    Up to `KEPT` are encoded before the first step, and kept. Of more, those that could be refused
    for a token in a text are tried before the first step, and each is encoded when its step comes:
    then encodings take no memory, and no time before.

    Args:
        examples: The examples.
        collator: Encodes them.

    Raises:
        DataError: If one is refused.
    """

    def __init__(self, examples: Sequence[Example], collator: Collator) -> None:
        self._examples, self._collator = examples, collator
        self._kept: Sequence[Encoded] | None = None
        self._step: Step | None = None
        self._own: dict[int, Encoded] = {}  # of that step
        if len(examples) <= KEPT:
            self._kept = collator.encode(examples, answered=True)
        else:
            collator.check(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: Place) -> Dealt:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[Dealt]:
        """Return a micro-batch."""
        step = places[0].step
        if step is not self._step:
            self._own = dict(zip(step.examples, self._encoded(step.examples), strict=True))
            self._step = step
        labels = sum(len(example.answer) for example in self._own.values()) / step.pieces
        examples = len(step.examples) / step.pieces
        return [
            Dealt(self._own[at], *((0.0, 0.0) if idle else (labels, examples)))
            for at, _, idle in places
        ]

    def _encoded(self, places: Sequence[int]) -> Sequence[Encoded]:
        if self._kept is not None:
            return [self._kept[at] for at in places]
        return self._collator.encode([self._examples[at] for at in places], answered=True)


class Dealer(Sampler[list[Place]]):
    """Names the micro-batches of one process, an epoch at a time.

    Args:
        examples: How many examples there are.
        share: What a process takes of a step.
        rank: The number of this process.
        processes: How many there are.
        seed: Decides the order, with the number of the epoch.
        order: The order itself, of a stream; each example as often as it stands there.
    """

    def __init__(
        self,
        examples: int,
        share: Share,
        rank: int,
        processes: int,
        seed: int,
        order: Sequence[int] | None = None,
    ) -> None:
        self._share, self._rank, self._processes = share, rank, processes
        shuffled = SeedableRandomSampler(range(examples), data_seed=seed)
        self._order = shuffled if order is None else order

    def set_epoch(self, epoch: int) -> None:
        """Deal in the order of an epoch, from 0; that of a stream is always its own."""
        if isinstance(self._order, SeedableRandomSampler):
            self._order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._order), self._share.step)
        return whole * self._share.accumulation + -(-rest // self._together)

    def __iter__(self) -> Iterator[list[Place]]:
        order = list(self._order)
        for start in range(0, len(order), self._share.step):
            places = order[start : start + self._share.step]
            pieces = -(-len(places) // self._together)  # micro-batches of each process
            count = pieces * self._processes
            step = Step(places, count)
            for piece in range(pieces):
                number = piece * self._processes + self._rank
                first, end = (len(places) * n // count for n in (number, number + 1))
                own = [Place(at, step) for at in places[first:end]]
                yield own or [Place(places[0], step, idle=True)]

    @property
    def _together(self) -> int:
        """Examples that all processes take at once."""
        return self._share.examples * self._processes


class Batches(DataLoader[Dealt]):
    """The micro-batches of one process.

    Args:
        examples: All examples of the training.
        dealer: Deals them out.
        **options: What `DataLoader` takes.
    """

    batch_sampler: Dealer

    def __init__(self, examples: Encodings, dealer: Dealer, **options: object) -> None:
        super().__init__(examples, batch_sampler=dealer, **options)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Begin with the order of an epoch, from 0."""
        self.batch_sampler.set_epoch(epoch)
