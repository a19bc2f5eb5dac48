"""A frozen linear, whatever its kind, joined by past experts and new ones."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undrift.errors import ConfigError
from undrift.tuner.gates import GateContext, Gates, in_groups
from undrift.tuner.linear import AdaptedLinear, Remade, compute_dtype
from undrift.tuner.pool.config import PoolLoraConfig
from undrift.tuner.pool.product import add_pool

NOT_MERGEABLE = (
    "the experts of a pool stay apart, for their gates and for later tasks: keep the adapter on "
    "the model, or train method steadylora, whose adapter is a plain LoRA that merges"
)


@dataclass(frozen=True)
class _Options:
    scale: float
    gates: str


class PoolLoraLayer(AdaptedLinear):
    """Wraps a linear layer of any kind and adds the experts' part to its output.

    Args:
        base_layer: What is wrapped, see `tuner.linear.is_linear`.
        name: The layer's name in the model, for gates of its own and for messages.
        context: Where the gates are looked up.

    Attributes:
        pool_lora_A: Per adapter, of the newest experts, (n, r, d_in).
        pool_lora_B: Per adapter, B transposed, (n, r, d_out); zero at first.
        pool_lora_past_A: Per adapter, of the past experts, oldest first; never trained.
        pool_lora_past_B: Likewise.
    """

    adapter_layer_names = ("pool_lora_A", "pool_lora_B")
    other_param_names = ("pool_lora_past_A", "pool_lora_past_B", "pool_lora_options")
    not_mergeable = NOT_MERGEABLE

    def __init__(self, base_layer: nn.Module, name: str, context: GateContext) -> None:
        super().__init__(base_layer, name)
        self.context = context
        context.layers.add(name)
        self.pool_lora_A = nn.ParameterDict()
        self.pool_lora_B = nn.ParameterDict()
        self.pool_lora_past_A = nn.ParameterDict()
        self.pool_lora_past_B = nn.ParameterDict()
        self.pool_lora_options: dict[str, _Options] = {}
        self._packed: dict[tuple[str, bool], tuple[Any, tuple[Tensor, Tensor]]] = Remade()

    def update_layer(self, adapter_name: str, config: PoolLoraConfig) -> None:
        """Add an adapter: A Kaiming-uniform as in LoRA, B zero, room for the past.

        Args:
            adapter_name: Its name.
            config: Its configuration.
        """
        n, r = config.num_new, config.r
        self.pool_lora_A[adapter_name] = nn.Parameter(torch.empty(n, r, self.in_features))
        self.pool_lora_B[adapter_name] = nn.Parameter(torch.empty(n, r, self.out_features))
        self.pool_lora_options[adapter_name] = _Options(config.lora_alpha / r, config.gates)
        self.make_room(adapter_name, config.past_of(self.name))
        self.begin_anew(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def experts(self, adapter_name: str) -> int:
        """Return E, how many experts an adapter has, past and new."""
        return len(self.pool_lora_past_A[adapter_name]) + len(self.pool_lora_A[adapter_name])

    @torch.no_grad()
    def make_room(self, adapter_name: str, past: int) -> None:
        """Make room for so many past experts, whose values are then loaded.

        Args:
            adapter_name: The adapter's name.
            past: How many.
        """
        for new, old in self._pairs(adapter_name):
            room = new.new_zeros(past, *new.shape[1:])
            old[adapter_name] = nn.Parameter(room, requires_grad=False)
        self.forget_packed()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **named: Any) -> None:
        """Make room for the past experts of a state, which may be of another number of tasks."""
        for name, past in self.pool_lora_past_A.items():
            saved = state_dict.get(f"{prefix}pool_lora_past_A.{name}")
            if saved is not None and len(saved) != len(past):
                self.make_room(name, len(saved))
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    @torch.no_grad()
    def grow(self, adapter_name: str) -> None:
        """Put the newest experts at the end of the past ones, and begin anew in their place.

        The parameters that are trained stay the same objects, so that an optimiser and a trainer
        who hold them already need not know.

        Args:
            adapter_name: The adapter's name.
        """
        for new, old in self._pairs(adapter_name):
            grown = torch.cat([old[adapter_name], new.detach().to(old[adapter_name].dtype)])
            old[adapter_name] = nn.Parameter(grown, requires_grad=False)
        self.begin_anew(adapter_name)

    @torch.no_grad()
    def begin_anew(self, adapter_name: str) -> None:
        """Give the newest experts their first values: A drawn, B zero.

        A is drawn from torch's seed, the layer's name and the number of past experts alone,
        whatever else was drawn before, so that a task begins alike on all ranks and after a resume.

        Args:
            adapter_name: The adapter's name.
        """
        A, B = self.pool_lora_A[adapter_name], self.pool_lora_B[adapter_name]
        drawn = torch.empty(A.shape[0] * A.shape[1], A.shape[2], device="cpu")
        generator = generator_of(self.name, len(self.pool_lora_past_A[adapter_name]))
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        A.copy_(drawn.view_as(A))
        B.zero_()
        self.forget_packed()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W0 x plus the part of every active adapter.

        Args:
            x: Tokens, (..., d_in), sample after sample.
            *args: Passed on to the base layer.
            **kwargs: Passed on to the base layer.

        Returns:
            (..., d_out), in the base layer's dtype.
        """
        names = [name for name in self.active_adapters if name in self.pool_lora_A]
        if self.disable_adapters or not names:
            return self.base_layer(x, *args, **kwargs)
        gates: list[Gates] = [self._gates(name, x) for name in names]
        plain, shape = self.base_is_plain(), x.shape[:-1]
        if plain:  # in two dimensions the output is a fresh matrix, which may be written into
            x = x.reshape(-1, x.shape[-1])
        y = self.base_layer(x, *args, **kwargs)
        for name, given in zip(names, gates, strict=True):
            y = self._add(name, y, x, given, in_place=plain)
        return y.view(*shape, y.shape[-1]) if plain else y

    def routes(self, x: Tensor) -> Tensor:
        """Return what each expert of the active adapter counts for, as shares; oldest first.

        Gates need not have the sum 1: an expert's share is its gate's size among all.

        Args:
            x: The linear's input, (B, L, d_in).

        Returns:
            (tokens, E) float32.
        """
        name = next(name for name in self.active_adapters if name in self.pool_lora_A)
        gates, tokens = self._gates(name, x), x.shape[:-1].numel()
        experts = self.experts(name)
        if isinstance(gates, str):
            newest = len(self.pool_lora_A[name]) if gates == "newest" else experts
            gates = (torch.arange(experts, device=x.device) >= experts - newest).float()
        assert isinstance(gates, Tensor)  # `_gates` has called what is a function
        rows = in_groups(gates.detach().to(x.device), tokens, experts, self.name)
        sizes = rows.float().abs()
        shares = sizes / sizes.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return shares.repeat_interleave(tokens // len(rows), 0)

    def _gates(self, name: str, x: Tensor) -> Gates:
        gates = self.context.for_layer(self.name)
        if gates is None:
            if self.pool_lora_options[name].gates == "given":
                raise ConfigError(
                    "no gates are set for the experts of this adapter: its method sets them from "
                    "every prompt. Use the model that Method.attach returns, or open the adapter "
                    "with undrift; by hand, set them through GateContext"
                )
            return "all"
        if isinstance(gates, Tensor) or gates == "all" or gates == "newest":
            return gates
        return gates(x)

    def _add(self, name: str, y: Tensor, x: Tensor, gates: Gates, *, in_place: bool) -> Tensor:
        rows = None
        if isinstance(gates, Tensor):
            tokens = x.numel() // x.shape[-1]
            rows = in_groups(gates.to(x.device), tokens, self.experts(name), self.name)
        return add_pool(
            y,
            x,
            rows,
            self.pool_lora_A[name],
            self.pool_lora_B[name],
            self._pack(name, compute_dtype(x), newest=isinstance(gates, str) and gates == "newest"),
            self.pool_lora_options[name].scale,
            in_place=in_place,
        )

    @torch.no_grad()
    def _pack(self, name: str, dtype: torch.dtype, *, newest: bool) -> tuple[Tensor, Tensor]:
        """The experts as the products read them; kept while nothing is trained.

        An optimiser may write past the parameters' versions, so in training it is made anew.
        """
        pairs = [[new] if newest else [old[name], new] for new, old in self._pairs(name)]
        versions = (dtype, *((id(p), p.data_ptr(), p._version) for pair in pairs for p in pair))
        kept = self._packed.get((name, newest))
        if kept is not None and not self.training and kept[0] == versions:
            return kept[1]
        A, B = (torch.cat([p.detach().to(dtype).flatten(0, 1) for p in pair]) for pair in pairs)
        if not self.training:
            self._packed[name, newest] = (versions, (A, B))
        return A, B

    def _pairs(self, name: str) -> tuple[tuple[Tensor, nn.ParameterDict], ...]:
        """The newest experts' A and B, each with what holds the past ones."""
        return (
            (self.pool_lora_A[name], self.pool_lora_past_A),
            (self.pool_lora_B[name], self.pool_lora_past_B),
        )

    def forget_packed(self) -> None:
        """Forget what was made of the masters for the products."""
        self._packed.clear()

    def __repr__(self) -> str:
        return f"pool_lora.{super().__repr__()}"


def generator_of(*place: str | int) -> torch.Generator:
    """Make random numbers that depend on torch's seed and a place, and on nothing drawn before.

    Args:
        *place: What they are for.

    Returns:
        A generator on the CPU.
    """
    digest = hashlib.sha256(repr((torch.initial_seed(), place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
