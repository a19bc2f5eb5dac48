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
from undrift.errors import ConfigError


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


Place = tuple[int, float, float]  # of an example, with what is to become of it


class _Examples(Dataset[Dealt]):
    """The examples by what the dealer names."""

    def __init__(self, examples: Sequence[Encoded]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: Place) -> Dealt:
        return Dealt(self._examples[place[0]], *place[1:])


class Dealer(Sampler[list[Place]]):
    """Names the micro-batches of one process, an epoch at a time.

    Args:
        examples: All examples of the task.
        share: What a process takes of a step.
        rank: The number of this process.
        processes: How many there are.
        seed: Decides the order, with the number of the epoch.
    """

    def __init__(
        self, examples: Sequence[Encoded], share: Share, rank: int, processes: int, seed: int
    ) -> None:
        self._labels = [len(example.answer) for example in examples]
        self._share, self._rank, self._processes = share, rank, processes
        self._order = SeedableRandomSampler(range(len(examples)), data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Deal in the order of an epoch, from 0."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._labels), self._share.step)
        return whole * self._share.accumulation + -(-rest // self._together)

    def __iter__(self) -> Iterator[list[Place]]:
        order = list(self._order)
        for start in range(0, len(order), self._share.step):
            places = order[start : start + self._share.step]
            pieces = -(-len(places) // self._together)  # micro-batches of each process
            count = pieces * self._processes
            means = sum(self._labels[place] for place in places) / count, len(places) / count
            for piece in range(pieces):
                number = piece * self._processes + self._rank
                first, end = (len(places) * n // count for n in (number, number + 1))
                yield [(p, *means) for p in places[first:end]] or [(places[0], 0.0, 0.0)]

    @property
    def _together(self) -> int:
        """Examples that all processes take at once."""
        return self._share.examples * self._processes


class Batches(DataLoader[Dealt]):
    """The micro-batches of one process.

    Args:
        examples: All examples of the task.
        dealer: Deals them out.
        **options: What `DataLoader` takes.
    """

    batch_sampler: Dealer

    def __init__(self, examples: Sequence[Encoded], dealer: Dealer, **options: object) -> None:
        super().__init__(_Examples(examples), batch_sampler=dealer, **options)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Begin with the order of an epoch, from 0."""
        self.batch_sampler.set_epoch(epoch)
