"""What a method says about its own cost; `budget.py` does the counting."""

from __future__ import annotations

from torch import nn


class Cost:
    """The part of `Method` for adapters that grow, rest or keep more than an adapter's file."""

    def make_room(self, model: nn.Module, tasks: int) -> None:
        """Bring a fresh adapter to its size after so many tasks, to see what it will cost.

        Args:
            model: What `attach` returned; its tensors may have shapes only.
            tasks: How many tasks; nothing is done where the adapter does not grow.
        """

    def idle_parameters(self, model: nn.Module) -> int:
        """Count those of its parameters that a token is NOT multiplied with when the model answers.

        Args:
            model: What `attach` returned.

        Returns:
            By default 0.
        """
        return 0

    def extra_bytes(self, model: nn.Module, tasks: int) -> int:
        """Count what is saved after so many tasks beside the adapter's own file.

        Args:
            model: What `attach` returned, with room made; its tensors may have shapes only.
            tasks: How many tasks.

        Returns:
            Bytes of tensors; by default 0.
        """
        return 0

    def resting(self, model: nn.Module) -> dict[str, int] | None:
        """Count the experts that rest in the task which is learned; asked before the task ends.

        Args:
            model: What `attach` returned.

        Returns:
            By linear; None, the default, where no expert ever rests.
        """
        return None
