"""How much each expert of a pool counts: one number an expert, or one row a sample or a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from undrift.errors import ConfigError, unknown

Gates = Tensor | Literal["all", "newest"] | Callable[[Tensor], Tensor]
"""What an expert counts for, oldest first:

- a tensor (E,), the same for every token; (B, E), a row for every sample; (B, L, E), for every
  token. It may be in a graph: the layers hand its gradient back;
- "all": 1 for every expert;
- "newest": 1 for those that are trained, and the past ones are not even computed;
- a function of the layer's input x (..., d_in) that gives (..., E): a router.
"""


class GateContext:
    """Holds the gates of one model's pools, from the prompt on and through all decoding steps.

    Attributes:
        layers: The names of the linears that ask for their gates here.
    """

    def __init__(self) -> None:
        self.layers: set[str] = set()
        self._gates: Mapping[str, Gates] = {}

    def set(self, gates: Gates | Mapping[str, Gates]) -> None:
        """Set the gates that count from now on; what was set before is forgotten.

        Args:
            gates: Of every layer; or by the layer's name, with those of all other layers, if there
                are any, under "".

        Raises:
            UnknownName: If no layer of that name has a pool.
        """
        if not isinstance(gates, Mapping):
            gates = {"": gates}
        for name in gates.keys() - {""}:
            if name not in self.layers:
                raise unknown("layer with a pool", name, self.layers)
        self._gates = gates

    def clear(self) -> None:
        """Forget the gates."""
        self.set({})

    def for_layer(self, name: str) -> Gates | None:
        """Return a layer's gates.

        Args:
            name: The layer's name.

        Returns:
            Its own or else those of all layers; None where none are set.
        """
        return self._gates[name] if name in self._gates else self._gates.get("")


def in_groups(gates: Tensor, tokens: int, experts: int, name: str) -> Tensor:
    """Bring gates into rows that serve equally many consecutive tokens.

    A search with beams asks for every sample several times in a row; its copies get the sample's
    gates.

    Args:
        gates: (E,), (B, E) or (B, L, E).
        tokens: How many there are, sample after sample.
        experts: E.
        name: The layer's name, for messages.

    Returns:
        (G, E); tokens is a multiple of G.

    Raises:
        ConfigError: If the gates are for another number of experts or samples.
    """
    if gates.shape[-1] != experts or gates.dim() > 3:
        raise ConfigError(
            f"{name} has {experts} experts, and gates of shape {tuple(gates.shape)} were set; "
            "expected (experts,), (batch, experts) or (batch, length, experts)"
        )
    if gates.dim() == 3:
        copies = tokens // max(1, gates[..., 0].numel())
        gates = gates.repeat_interleave(copies, 0) if copies > 1 else gates
    rows = gates.reshape(-1, experts)
    if tokens % len(rows) or (gates.dim() == 3 and tokens != len(rows)):
        raise ConfigError(
            f"{name} is called with {tokens} tokens, and gates of shape {tuple(gates.shape)} were "
            "set, which are of another batch; set the gates of this one first"
        )
    return rows
